"""Gathers the work of many callers into batches: bounded, fair to short clips, and fault-isolated.

There is no waiting time to tune: a lone request runs at once, and whatever arrives while the network is busy is the
next batch. Short and long clips have a lane and a thread each, so that a short clip never waits behind a long file.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from speech.errors import InferenceFailed, NotReady, QueueFull

LONG_SECONDS = 20.0  # a clip that lasts longer takes the second lane
MAX_BATCH = 16  # clips
MAX_BATCH_SECONDS = 40.0  # of a batch, padding included
SIMILAR = 1.25  # longest over shortest clip of a batch: padding costs as much as sound
MOST_WAITS = 4  # times as long as the queue needs: nobody is told to stay away for longer

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Waiting(Generic[T, R]):
    item: T
    seconds: float
    future: "Future[R]" = field(default_factory=Future)


class Batcher(Generic[T, R]):
    """Runs ``run`` on lists of similar items in threads of its own, and hands each caller its own result.

    ``run`` takes a list and gives as many results in the same order. If it raises for a batch, each item is run
    alone, so that only the one at fault fails.
    """

    def __init__(self, run: Callable[[list[T]], Sequence[R]], max_queue_seconds: float) -> None:
        self._run, self._max_queue_seconds = run, max_queue_seconds
        self._changed = threading.Condition()  # of a lock that its holder may take again
        self._lanes: tuple[deque[_Waiting[T, R]], deque[_Waiting[T, R]]] = (deque(), deque())
        self._closed = False
        self._speed = 20.0  # seconds of audio per second, a moving average once batches have run
        self._usual = 10.0  # seconds of an item, such an average too
        self._last_turn = 0.0  # when the one who was sent away last may come back
        self.restarts = 0  # of worker threads that died
        self._threads = [
            threading.Thread(target=self._keep_working, args=(lane,), name=f"batcher-{i}", daemon=True)
            for i, lane in enumerate(self._lanes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued_seconds(self) -> float:
        """Seconds of audio that wait to be run."""
        with self._changed:
            return sum(w.seconds for lane in self._lanes for w in lane if not w.future.cancelled())

    @property
    def seconds_to_wait(self) -> float:
        """Seconds until what waits now will have been run, from the measured speed; at least one."""
        with self._changed:
            return max(1.0, self.queued_seconds / self._speed)

    def next_turn(self) -> float:
        """Seconds after which one who is sent away now may find room: when what waits now will have been run, and what
        others bring who were sent away before. Else all would come back at once, most of them in vain."""
        with self._changed:
            now, wait = time.monotonic(), self.seconds_to_wait
            turn = max(now + wait, self._last_turn + self._usual / self._speed)
            self._last_turn = min(turn, now + MOST_WAITS * wait)
            return self._last_turn - now

    def check_room(self) -> None:
        """Raise QueueFull if the queue is full. It takes long items as readily as short ones, so the last one may
        exceed its limit."""
        with self._changed:
            queued = self.queued_seconds
            if queued >= self._max_queue_seconds:
                raise QueueFull(
                    f"expected less than {self._max_queue_seconds:g} s of audio in the queue, found {queued:.0f} s",
                    retry_after=self.seconds_to_wait,
                )

    async def submit(self, item: T, seconds: float, part: bool = False) -> R:
        """The result of one item, in its turn; a ``part`` of a long file takes the lane of long clips, however short it
        is. Cancelling the call takes the item out of the queue.

        Raises:
            QueueFull: there is no room; NotReady: the batcher was closed; InferenceFailed: the worker died; whatever
                ``run`` raises for this item.
        """
        waiting: _Waiting[T, R] = _Waiting(item, seconds)
        with self._changed:
            if self._closed:
                raise NotReady("expected a running service, found one that is stopping")
            self.check_room()
            self._lanes[part or seconds > LONG_SECONDS].append(waiting)
            self._changed.notify_all()
        return await asyncio.wrap_future(waiting.future)  # which is cancelled with the call

    def close(self) -> None:
        """Finish what was accepted, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _keep_working(self, lane: "deque[_Waiting[T, R]]") -> None:
        while True:
            try:
                self._work(lane)
                return
            except BaseException:
                self.restarts += 1
                log.exception("a batch worker died and was restarted")

    def _work(self, lane: "deque[_Waiting[T, R]]") -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: lane or self._closed)
                if not lane:
                    return
                batch = _take(lane)
            batch = [w for w in batch if w.future.set_running_or_notify_cancel()]
            try:
                if batch:
                    self._serve(batch)
            except BaseException as error:
                for waiting in batch:
                    if not waiting.future.done():
                        waiting.future.set_exception(InferenceFailed(f"the worker died: {error!r}"))
                raise

    def _serve(self, batch: "list[_Waiting[T, R]]") -> None:
        started = time.perf_counter()
        try:
            results = self._run([w.item for w in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:
                for waiting in batch:
                    self._serve([waiting])
            return
        seconds = sum(w.seconds for w in batch)
        speed = seconds / max(1e-6, time.perf_counter() - started)
        self._speed += 0.1 * (speed - self._speed)
        self._usual += 0.1 * (seconds / len(batch) - self._usual)
        for waiting, result in zip(batch, results, strict=True):
            waiting.future.set_result(result)


def _take(lane: "deque[_Waiting[T, R]]") -> "list[_Waiting[T, R]]":
    """Take the oldest item and those that are most like it in length, as many as fit into its batch."""
    batch = [lane.popleft()]
    shortest = longest = batch[0].seconds
    for waiting in sorted(lane, key=lambda waiting: abs(waiting.seconds - batch[0].seconds)):
        low, high = min(shortest, waiting.seconds), max(longest, waiting.seconds)
        fits = (len(batch) + 1) * high <= MAX_BATCH_SECONDS and high <= SIMILAR * max(low, 1.0)
        if fits and len(batch) < MAX_BATCH:
            lane.remove(waiting)
            batch.append(waiting)
            shortest, longest = low, high
    return batch
