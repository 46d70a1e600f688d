"""The queue: fair, bounded, fault-isolated, and nothing accepted is lost."""

import asyncio
import threading
import time
from typing import Any

import pytest

from speech.batching import LONG_SECONDS, MAX_BATCH, MAX_BATCH_SECONDS, SIMILAR, Batcher
from speech.errors import InferenceFailed, NotReady, QueueFull


class Recorder:
    """A ``run`` that doubles numbers, remembers its batches, and can be held up."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.started = threading.Event()

    def __call__(self, items: list[float]) -> list[float]:
        self.batches.append(items)
        self.started.set()
        self.go_on.wait(10)
        if any(item < 0 for item in items):
            raise ValueError("negative")
        if 666 in items:
            raise SystemExit("a dying thread")
        return [2 * item for item in items]


async def held(recorder: Recorder, batcher: Batcher, seconds: float = 1.0, part: bool = False) -> asyncio.Task:
    """Keep the lane busy with one item until ``go_on`` is set."""
    recorder.go_on.clear()
    recorder.started.clear()
    task = asyncio.create_task(batcher.submit(0.5, seconds, part))
    await asyncio.to_thread(recorder.started.wait, 10)
    return task


async def submitted(batcher: Batcher, *items: tuple[float, float]) -> list[asyncio.Task]:
    tasks = [asyncio.create_task(batcher.submit(*item)) for item in items]
    await asyncio.sleep(0)
    return tasks


def run(scenario, max_queue_seconds: float = 1000) -> Recorder:
    """Run an async scenario(recorder, batcher) and close the batcher afterwards."""
    recorder = Recorder()
    batcher: Batcher[float, float] = Batcher(recorder, max_queue_seconds)
    try:
        asyncio.run(asyncio.wait_for(scenario(recorder, batcher), 20))
    finally:
        recorder.go_on.set()
        batcher.close()
    return recorder


def test_a_lone_item_runs_alone_and_at_once():
    async def scenario(recorder, batcher):
        assert await batcher.submit(3, 1.0) == 6

    assert run(scenario).batches == [[3]]


def test_what_arrives_meanwhile_is_the_next_batch():
    async def scenario(recorder, batcher):
        busy = await held(recorder, batcher)
        tasks = await submitted(batcher, *((i, 2.0) for i in range(5)))
        recorder.go_on.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8]
        await busy

    assert run(scenario).batches == [[0.5], [0, 1, 2, 3, 4]]


def test_batches_are_of_similar_length_and_bounded():
    lengths = [1.0, 9.0, 1.2, 8.0, 19.0, 2.0, *[10.0] * 30]

    async def scenario(recorder, batcher):
        busy = await held(recorder, batcher)
        tasks = await submitted(batcher, *((i, s) for i, s in enumerate(lengths)))
        recorder.go_on.set()
        assert await asyncio.gather(*tasks) == [2 * i for i in range(len(lengths))]
        await busy

    waiting = set(range(len(lengths)))
    for batch in run(scenario).batches[1:]:
        seconds = [lengths[int(i)] for i in batch]
        assert len(batch) <= MAX_BATCH
        assert len(batch) * max(seconds) <= max(MAX_BATCH_SECONDS, seconds[0])
        assert max(seconds) <= SIMILAR * max(1.0, min(seconds))
        assert batch[0] == min(waiting)  # nobody is passed over for ever
        waiting -= {int(i) for i in batch}


def test_a_batch_is_filled_with_the_most_similar():
    lengths = [10.0, 8.5, 12.0, 9.0, 10.0, 10.0, 9.9]

    async def scenario(recorder, batcher):
        busy = await held(recorder, batcher)
        tasks = await submitted(batcher, *enumerate(lengths))
        recorder.go_on.set()
        await asyncio.gather(busy, *tasks)

    assert [[lengths[int(i)] for i in batch] for batch in run(scenario).batches[1:]] == [
        [10.0, 10.0, 10.0, 9.9],
        [8.5, 9.0],
        [12.0],
    ]


@pytest.mark.parametrize("long", [{"seconds": LONG_SECONDS + 1}, {"part": True}], ids=["long clip", "part of a file"])
def test_a_short_clip_does_not_wait_for_a_long_one(long: dict[str, Any]):
    async def scenario(recorder, batcher):
        busy = await held(recorder, batcher, **long)
        recorder.started.clear()
        (short,) = await submitted(batcher, (1, 1.0))
        assert await asyncio.to_thread(recorder.started.wait, 5)  # it began while the long one was being run
        assert not busy.done()
        recorder.go_on.set()
        assert await short == 2

    run(scenario)


def test_one_bad_item_does_not_hurt_its_neighbours():
    async def scenario(recorder, batcher):
        busy = await held(recorder, batcher)
        tasks = await submitted(batcher, (1, 1.0), (-1, 1.0), (2, 1.0))
        recorder.go_on.set()
        good, bad, fine = await asyncio.gather(*tasks, return_exceptions=True)
        assert (good, fine) == (2, 4)
        assert isinstance(bad, ValueError)
        await busy

    run(scenario)


def test_a_cancelled_item_is_never_run():
    async def scenario(recorder, batcher):
        busy = await held(recorder, batcher)
        tasks = await submitted(batcher, (1, 1.0), (2, 1.0))
        tasks[0].cancel()
        await asyncio.sleep(0.01)
        assert batcher.queued_seconds == 1.0
        recorder.go_on.set()
        assert await tasks[1] == 4
        await busy

    assert run(scenario).batches == [[0.5], [2]]


def test_a_full_queue_refuses_and_says_when_to_come_back():
    async def scenario(recorder, batcher):
        busy = await held(recorder, batcher)
        tasks = await submitted(batcher, (1, 6.0), (2, 50.0))  # long or short, the last one finds room
        with pytest.raises(QueueFull, match="less than 10 s of audio in the queue, found 56 s") as raised:
            await batcher.submit(3, 0.5)
        assert raised.value.retry_after >= 1
        with pytest.raises(QueueFull):
            batcher.check_room()
        recorder.go_on.set()
        assert await asyncio.gather(*tasks) == [2, 4]
        await busy

    run(scenario, max_queue_seconds=10)


def test_a_worker_that_dies_is_restarted():
    async def scenario(recorder, batcher):
        with pytest.raises(InferenceFailed, match="died"):
            await batcher.submit(666, 1.0)
        assert await batcher.submit(1, 1.0) == 2
        assert batcher.restarts == 1

    run(scenario)


def test_everyone_is_answered_when_a_worker_dies_or_gives_too_little():
    async def dying(recorder, batcher):
        busy = await held(recorder, batcher)
        tasks = await submitted(batcher, (1, 1.0), (-1, 1.0), (666, 1.0), (2, 1.0))
        recorder.go_on.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert (found[0], *map(type, found[1:])) == (2, ValueError, InferenceFailed, InferenceFailed)
        assert await batcher.submit(3, 1.0) == 6
        await busy

    async def too_little(recorder, batcher):
        batcher._run = lambda items: []
        with pytest.raises(InferenceFailed):
            await batcher.submit(1, 1.0)

    run(dying)
    run(too_little)


def test_closing_answers_what_was_accepted_and_takes_no_more():
    async def scenario(recorder, batcher):
        busy = await held(recorder, batcher)
        tasks = await submitted(batcher, *((i, 1.0) for i in range(20)))
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.05)
        with pytest.raises(NotReady):
            await batcher.submit(1, 1.0)
        recorder.go_on.set()
        assert await asyncio.gather(*tasks) == [2 * i for i in range(20)]
        await busy
        await closing

    run(scenario)


def test_who_is_sent_away_gets_a_turn_after_those_before():
    async def scenario(recorder, batcher):
        busy = await held(recorder, batcher)
        tasks = await submitted(batcher, (1, 100.0))  # 5 s, until the speed has been measured, and half a second each
        turns = [batcher.next_turn() for _ in range(99)]
        assert turns[:4] == pytest.approx([5, 5.5, 6, 6.5], abs=0.4)
        assert turns[-1] == pytest.approx(20, abs=0.4)  # four times the queue
        recorder.go_on.set()
        await asyncio.gather(*tasks, busy)

    run(scenario)


def test_the_wait_is_told_from_the_measured_speed():
    async def scenario(recorder, batcher):
        slowest = 0.0
        for _ in range(60):  # about 10 s of audio per second
            recorder.go_on.clear()
            began = time.perf_counter()
            task = asyncio.create_task(batcher.submit(1, 0.5))
            await asyncio.sleep(0.05)
            recorder.go_on.set()
            await task
            slowest = max(slowest, time.perf_counter() - began)
        busy = await held(recorder, batcher)
        tasks = await submitted(batcher, (1, 100.0))
        with pytest.raises(QueueFull) as raised:
            batcher.check_room()
        assert 5 < raised.value.retry_after < 100 / (0.5 / slowest)
        recorder.go_on.set()
        await asyncio.gather(*tasks, busy)

    run(scenario, max_queue_seconds=100)
