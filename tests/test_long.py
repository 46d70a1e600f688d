"""Files of any length at OpenAI's endpoint, over a real socket: piece by piece, in order, and no longer than wanted."""

import asyncio
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from string import ascii_lowercase

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn

from api import create_app
from config import Settings
from predictor import SpeechPredictor
from service import ClientGone, Service, _unless_gone
from speech.alphabet import Alphabet
from speech.audio import Waveform
from speech.errors import QueueFull
from tests.conftest import RATE, FakeEngine
from tests.test_streaming import noise, voice

PATH = "/v1/audio/transcriptions"


class Scribe(FakeEngine):
    """Writes one word in the middle of each clip: a for the first it is given, b … as they come. May be made to wait or
    to fail, but not with the first two pieces of a file: they are heard at once, in either order."""

    def __init__(self, before: Callable[[int], None] = lambda number: None) -> None:
        super().__init__()
        self.heard, self.before = 0, before

    def __call__(self, frames: np.ndarray, n_frames: np.ndarray) -> np.ndarray:
        log_probs = np.full((len(frames), (frames.shape[1] + 1) // 2, Alphabet().size), -20.0, np.float32)
        log_probs[:, :, -1] = -1.0
        for row, n in zip(log_probs, n_frames, strict=True):
            if n > 200:  # not the warm-up
                self.heard += 1
                self.before(self.heard)
                row[n // 4, self.heard] = 0.0
        return log_probs


@contextmanager
def serving(settings: Settings, engine: FakeEngine) -> Iterator[str]:
    app = create_app(settings, SpeechPredictor(engine))
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def flac(*parts: np.ndarray) -> dict[str, tuple[str, bytes]]:
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(parts), RATE, format="FLAC")
    return {"file": ("long.flac", file.getvalue())}


def events(response: httpx.Response) -> Iterator[dict]:
    for line in response.iter_lines():
        if line:
            yield json.loads(line.removeprefix("data: "))


def test_a_long_file_is_one_text_with_times_of_the_whole(settings: Settings):
    engine = Scribe()
    with serving(settings, engine) as url:
        data = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
        found = httpx.post(url + PATH, files=flac(voice(200)), data=data, timeout=60).json()
    assert 200 / 16 < engine.heard <= 200 / 8 + 1
    assert sorted(found["text"].split()) == [chr(ord("a") + i) for i in range(engine.heard)]
    assert found["duration"] == 200.0
    starts = [word["start"] for word in found["words"]]
    assert all(4 < after - before < 20 for before, after in pairwise(starts))
    assert starts[-1] > 180
    assert [segment["text"] for segment in found["segments"]] == found["text"].split()


def test_deltas_come_while_the_rest_is_still_heard(settings: Settings):
    go_on = threading.Event()

    def before(number: int) -> None:
        assert number <= 2 or go_on.wait(20)

    with (
        serving(settings, Scribe(before)) as url,
        httpx.stream("POST", url + PATH, files=flac(voice(70)), data={"stream": "true"}, timeout=60) as response,
    ):
        found = events(response)
        first = next(found)
        go_on.set()
        *deltas, done = first, *found
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    text = "".join(event["delta"] for event in deltas)
    assert sorted(text.split()) == list(ascii_lowercase[: len(deltas)])
    assert len(deltas) >= 5
    assert done == {"type": "transcript.text.done", "text": text}


def test_a_short_clip_does_not_wait_for_the_pieces_of_a_file(settings: Settings):
    third, go_on = threading.Event(), threading.Event()

    def before(number: int) -> None:
        if number == 3:
            third.set()
            assert go_on.wait(20)

    with serving(settings, Scribe(before)) as url:
        file, clip = flac(voice(70)), flac(voice(2))
        with httpx.stream("POST", url + PATH, files=file, data={"stream": "true"}, timeout=60) as response:
            assert third.wait(20)
            assert httpx.post(url + PATH, files=clip, timeout=10).json() == {"text": "d"}
            go_on.set()
            assert list(events(response))[-1]["type"] == "transcript.text.done"


def test_a_client_that_leaves_stops_the_work(settings: Settings):
    engine, go_on = Scribe(lambda number: number <= 2 or go_on.wait(20)), threading.Event()
    with serving(settings, engine) as url:
        files, data = flac(voice(500)), {"stream": "true"}
        with httpx.stream("POST", url + PATH, files=files, data=data, timeout=60) as response:
            assert next(events(response))["delta"] in ("a", "b")
        deadline = time.monotonic() + 20
        while (left := _in_flight(url)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert left == 0
        go_on.set()
        assert httpx.get(url + "/healthz").status_code == 200
    assert engine.heard <= 4  # what the network had begun, and no more


def _in_flight(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("stt_in_flight ")).split()[1])


def test_who_left_is_seen_even_if_there_is_nothing_to_wait_for():
    """As with the pieces of a silent file, which are answered at once."""

    class Gone:
        async def receive(self) -> dict[str, str]:
            return {"type": "http.disconnect"}

    async def nothing() -> str:
        return ""

    with pytest.raises(ClientGone):
        asyncio.run(_unless_gone(nothing(), Gone()))


def test_a_failure_midway_is_an_error_event_or_a_status(settings: Settings):
    def before(number: int) -> None:
        if number > 2:
            raise RuntimeError("secret")

    with serving(settings, Scribe(before)) as url:
        with httpx.stream("POST", url + PATH, files=flac(voice(70)), data={"stream": "true"}, timeout=60) as response:
            first, *_, last = events(response)
        plain = httpx.post(url + PATH, files=flac(voice(70)), timeout=60)
        assert 'stt_errors_total{code="InferenceFailed"} 2.0' in httpx.get(f"{url}/metrics").text
    assert first["type"] == "transcript.text.delta"
    assert last["type"] == "error"
    assert (last["error"]["code"], last["error"]["message"]) == ("inference_failed", "internal error")
    assert (plain.status_code, plain.json()["code"]) == (500, "InferenceFailed")


def test_the_deadline_is_that_of_a_piece_not_of_the_file(settings: Settings):
    """Each piece takes a twentieth of the deadline, the file longer than it."""
    settings = settings.model_copy(update={"timeout": 3.0})
    engine = Scribe(lambda number: time.sleep(0.15))
    with serving(settings, engine) as url:
        answer = httpx.post(url + PATH, files=flac(voice(300)), timeout=60)
    assert answer.status_code == 200
    assert engine.heard * 0.15 > 3.0


def test_files_that_were_accepted_wait_for_room_in_the_queue(settings: Settings):
    """However long: the deadline is for what has a place. Nobody who comes later is let in before."""
    settings = settings.model_copy(update={"timeout": 3.0, "max_queue_seconds": 12.0})
    with serving(settings, Scribe(lambda number: time.sleep(0.2))) as url, ThreadPoolExecutor(6) as clients:
        file = flac(voice(60))  # six pieces or so
        found = list(clients.map(lambda _: httpx.post(url + PATH, files=file, timeout=60), range(6)))
    codes = Counter((answer.status_code, answer.json().get("code", "")) for answer in found)
    assert codes.keys() <= {(200, ""), (503, "QueueFull")}
    assert codes[200, ""] >= 2


def test_nobody_is_let_in_before_what_waits_for_room(settings: Settings):
    go_on = threading.Event()
    engine = Scribe(lambda number: go_on.wait(20))
    service = Service(settings.model_copy(update={"max_queue_seconds": 5.0}), SpeechPredictor(engine))

    async def scenario() -> None:
        async with service.running():
            await service.check_room()
            heard = asyncio.create_task(service.hear(Waveform(voice(10))))
            while not engine.heard:
                await asyncio.sleep(0.01)
            queued = asyncio.create_task(service.hear(Waveform(voice(10))))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="found 10 s"):
                await service.check_room()
            waits = asyncio.create_task(service.hear(Waveform(voice(10))))
            await asyncio.sleep(0)
            queued.cancel()
            await asyncio.wait((queued,))
            with pytest.raises(QueueFull, match="accepted before"):
                await service.check_room()
            go_on.set()
            assert {(await heard).text, (await waits).text} == {"a", "b"}
            await service.check_room()

    asyncio.run(scenario())


def test_a_file_that_is_too_long(settings: Settings):
    settings = settings.model_copy(update={"max_long_seconds": 50.0})
    with serving(settings, Scribe()) as url:
        assert httpx.post(url + PATH, files=flac(voice(49)), timeout=60).status_code == 200
        refused = httpx.post(url + PATH, files=flac(voice(51)), timeout=60)
    assert (refused.status_code, refused.json()["code"]) == (413, "AudioTooLong")


def test_a_full_queue_is_waited_for_once_a_file_has_begun(settings: Settings):
    """The queue takes one piece beside the one that runs: the file is heard all the same."""
    settings = settings.model_copy(update={"max_queue_seconds": 1.0})
    engine = Scribe(lambda number: time.sleep(0.05))
    with serving(settings, engine) as url:
        answer = httpx.post(url + PATH, files=flac(voice(100)), timeout=60)
    assert answer.status_code == 200
    assert len(answer.json()["text"].split()) == engine.heard > 3


def test_noise_is_not_worth_the_network(settings: Settings):
    engine = Scribe()
    with serving(settings, engine) as url:
        answer = httpx.post(url + PATH, files=flac(noise(70, 0.05)), timeout=60)
        assert (answer.status_code, answer.json()["text"]) == (200, "")
        assert engine.heard == 0
        short = httpx.post(url + PATH, files=flac(np.zeros(100)), timeout=60)
    assert (short.status_code, short.json()["code"]) == (422, "AudioTooShort")
