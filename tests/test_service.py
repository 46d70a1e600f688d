"""The service behind the routes: who is let in, and what is left when somebody goes."""

import asyncio
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from config import Settings
from predictor import SpeechPredictor
from service import ClientGone, Service, _unless_gone
from speech.audio import Waveform
from speech.errors import NotReady, QueueFull
from tests.conftest import FakeEngine
from tests.test_long import Scribe, flac
from tests.test_streaming import noise, voice


class Request:
    """One whose client stays, or left."""

    def __init__(self, left: bool = False) -> None:
        self.left = left

    async def receive(self) -> dict[str, str]:
        await asyncio.sleep(0.01 if self.left else 60)
        return {"type": "http.disconnect"}


class Held(FakeEngine):
    """Waits before everything but the warm-up."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, frames: np.ndarray, n_frames: np.ndarray) -> np.ndarray:
        if n_frames.max() > 200:
            self.begun.set()
            assert self.go_on.wait(20)
        return super().__call__(frames, n_frames)


def run(scenario: Callable[[Service], Any], settings: Settings, engine: FakeEngine | None = None, **changed: Any):
    """Run an async scenario with a running service; nothing of either is left behind."""

    async def main() -> None:
        before = set(threading.enumerate())
        service = Service(settings.model_copy(update=changed), SpeechPredictor(engine or FakeEngine()))
        async with asyncio.timeout(30), service.running():
            await asyncio.wrap_future(service.start())
            await scenario(service)
        assert not {t.name for t in set(threading.enumerate()) - before} & {"batcher-0", "batcher-1"}
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_each_who_is_refused_is_told_a_later_turn(settings: Settings):
    async def scenario(service: Service) -> None:
        waits = []
        service.in_flight += 1
        for _ in range(5):
            with pytest.raises(QueueFull) as refused:
                await service.check_room()
            waits.append(refused.value.retry_after)
        service.in_flight -= 1
        assert waits == sorted(waits)
        assert waits[0] + 1 < waits[-1] < 5

    run(scenario, settings, max_uploads=1)


def test_live_streams_take_no_places_of_uploads(settings: Settings):
    async def scenario(service: Service) -> None:
        with service.stream():
            await service.check_room()
            service.in_flight += 1
            with pytest.raises(QueueFull, match="1 uploads at once, found 1"):
                await service.check_room()
            service.in_flight -= 1

    run(scenario, settings, max_uploads=1)


def test_an_upload_waits_for_a_loading_model_as_long_as_a_request_may_take(settings: Settings):
    class Slow(FakeEngine):
        def __call__(self, frames: np.ndarray, n_frames: np.ndarray) -> np.ndarray:
            assert ready.wait(20)
            return super().__call__(frames, n_frames)

    async def scenario() -> None:
        service = Service(settings.model_copy(update={"timeout": 0.1}), SpeechPredictor(Slow()))
        async with service.running():
            try:
                with pytest.raises(NotReady, match="still loading"):
                    await service.check_room()
            finally:
                ready.set()

    ready = threading.Event()
    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_who_gives_up_a_file_leaves_no_work(settings: Settings):
    engine = Scribe(lambda number: number <= 2 or go_on.wait(20))
    go_on = threading.Event()

    async def scenario(service: Service) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(flac(voice(100))["file"][1])
            tasks, heard = len(asyncio.all_tasks()), service.transcribe_pieces(file, Request())
            await anext(heard)
            await heard.aclose()
            assert len(asyncio.all_tasks()) == tasks
        go_on.set()

    run(scenario, settings, engine)


def test_the_work_of_a_client_that_left_is_cancelled():
    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def scenario() -> None:
        with pytest.raises(ClientGone):
            await _unless_gone(work(), Request(left=True))
        await asyncio.sleep(0)
        assert cancelled

    cancelled: list[bool] = []
    asyncio.run(scenario())


def test_partial_texts_are_not_worth_a_long_queue_nor_noise_the_network(settings: Settings):
    async def scenario(service: Service) -> None:
        assert (await service.preview(Waveform(noise(4)))).text == ""
        assert engine.batches == [1]  # the warm-up
        busy = asyncio.create_task(service.hear(Waveform(voice(3)), patient=False))
        await asyncio.to_thread(engine.begun.wait, 20)
        waiting = asyncio.create_task(service.hear(Waveform(voice(3)), patient=False))
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull, match="partial text"):
            await service.preview(Waveform(voice(1)))
        engine.go_on.set()
        await asyncio.gather(busy, waiting)
        assert (await service.preview(Waveform(voice(1)))).text

    engine = Held()
    run(scenario, settings, engine, max_queue_seconds=10)
