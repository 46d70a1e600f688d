"""The running service behind the routes: the model as it loads, the queue, the deadline, the way out."""

import asyncio
import logging
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from typing import BinaryIO, TypeVar

from starlette.requests import Request

from config import Settings
from metrics import Metrics
from predictor import SpeechPredictor, Stages
from speech.audio import Waveform, decode_wav
from speech.batching import Batcher
from speech.beam import NONE_HOT, Weights
from speech.containers import Bytes
from speech.ctc import Transcript
from speech.engine import give_back_memory, share_memory
from speech.errors import DeadlineExceeded, InferenceFailed, ModelError, NotReady, QueueFull, SpeechError
from speech.features import check_length
from speech.formats import decode_blocks
from speech.streaming import Piece, is_steady, pieces

PIECES = 4  # of one long file at once: those that wait for one are the next batch

log = logging.getLogger("predictor")

T = TypeVar("T")


class ClientGone(Exception):
    """The client hung up before its answer was ready."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A transcript, the seconds of sound, and the seconds from the complete upload to the text."""

    transcript: Transcript
    duration: float
    processing_time: float


class Service:
    """Loads the model beside the event loop, queues what comes in, and answers what it accepted before it ends."""

    def __init__(self, settings: Settings, predictor: SpeechPredictor | None = None) -> None:
        self.settings = settings
        self.draining = False
        self.in_flight = 0  # uploads and streams that were accepted and not yet answered
        self.streams = 0  # of them live ones
        self._predictor = predictor
        self._problem: SpeechError = NotReady("expected a loaded model, found one that is still loading")
        self._loading: Future[None] | None = None
        self._batcher: Batcher[tuple[Waveform, Weights], tuple[Transcript, Stages, int]] | None = None
        self._waiting_for_room = asyncio.Lock()
        self.metrics = Metrics()
        self.metrics.in_flight.set_function(lambda: self.in_flight)
        self.metrics.queue_seconds.set_function(lambda: self._batcher.queued_seconds if self._batcher else 0.0)
        self.metrics.worker_restarts.set_function(lambda: self.worker_restarts)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load in the background while inside; finish what was accepted on the way out."""
        loading = self.start()
        try:
            yield
        finally:
            self.draining = True
            await asyncio.wrap_future(loading)
            if self._batcher:
                await asyncio.to_thread(self._batcher.close)

    def start(self) -> "Future[None]":
        """Begin to load the model, once; done when it is loaded or cannot be."""
        if self._loading is None:
            share_memory()
            self._loading = Future()
            threading.Thread(target=self._load, args=(self._loading,), name="loader", daemon=True).start()
        return self._loading

    def _load(self, done: "Future[None]") -> None:
        settings = self.settings
        try:
            if self._predictor is None:
                self._predictor = SpeechPredictor.load(
                    settings.model_folder, settings.engine, settings.threads, settings.decoder
                )
            self._predictor.warm_up()
            give_back_memory()
            self._batcher = Batcher(self._run, settings.max_queue_seconds)
            if not self.draining:
                log.info("ready")
        except ModelError as error:
            self._problem = error
            log.error("no model in %s (STT_MODEL): %s", settings.model_folder, error)
        except Exception as error:
            self._problem = error if isinstance(error, SpeechError) else ModelError("the model could not be loaded")
            log.exception("no model in %s (STT_MODEL)", settings.model_folder)
        finally:
            done.set_result(None)

    def _run(self, clips: list[tuple[Waveform, Weights]]) -> list[tuple[Transcript, Stages, int]]:
        assert self._predictor is not None
        waveforms, hot_words = zip(*clips, strict=True)
        transcripts, stages = self._predictor.transcribe_timed(waveforms, hot_words)
        self.metrics.batch(len(clips), **asdict(stages))
        if len(clips) > 1 and self._batcher and not self._batcher.queued_seconds:
            give_back_memory()  # a burst is over
        return [(transcript, stages, len(clips)) for transcript in transcripts]

    @property
    def takes_hot_words(self) -> bool:
        """Whether the loaded model can prefer words."""
        return self._predictor is not None and self._predictor.takes_hot_words

    def read_hot_words(self, texts: Iterable[str]) -> Weights:
        """Hot words for `hear`, once the model is loaded. Raises ValueError if they, or any, cannot be taken."""
        assert self._predictor is not None
        return self._predictor.read_hot_words(texts)

    @property
    def worker_restarts(self) -> int:
        """Batch workers that died and were restarted."""
        return self._batcher.restarts if self._batcher else 0

    def check_ready(self) -> None:
        """Raise what stands between the service and an answer: no model yet or at all, or its end."""
        if self.draining:
            raise NotReady("expected a running service, found one that is stopping", retry_after=5)
        if self._batcher is None:
            raise self._problem.with_traceback(None)  # else each raise adds to what the one before holds on to

    async def check_room(self) -> None:
        """Raise as `check_ready`, or QueueFull: known before a byte of the upload is read.

        An upload that comes while the model is loading waits for it.
        """
        await asyncio.wait((asyncio.wrap_future(self.start()),), timeout=self.settings.timeout)
        self.check_ready()
        assert self._batcher is not None
        try:
            self._batcher.check_room()
            if self._waiting_for_room.locked():
                raise QueueFull("expected room in the queue, found files that were accepted before waiting for it")
            if (uploads := self.in_flight - self.streams) >= self.settings.max_uploads:
                raise QueueFull(f"expected at most {self.settings.max_uploads} uploads at once, found {uploads}")
        except QueueFull as full:
            full.retry_after = self._batcher.next_turn()
            raise

    async def transcribe(self, file: BinaryIO, request: Request) -> Answer:
        """The answer to one uploaded file, which has arrived as a whole and may lie on the disk.

        It is read and decoded in one of a few threads: that bounds how many uploads are in memory at once.

        Raises:
            SpeechError: any of the tree; ClientGone: the client hung up first.
        """
        started = time.perf_counter()
        waveform = await asyncio.to_thread(lambda: decode_wav(file.read(), self.settings.max_seconds))
        check_length(waveform)
        transcript = await _unless_gone(self._submit(waveform, started), request)
        return Answer(transcript, waveform.duration, time.perf_counter() - started)

    async def transcribe_pieces(
        self, file: BinaryIO, request: Request, hot_words: Weights = NONE_HOT
    ) -> AsyncGenerator[tuple[Piece, Transcript], None]:
        """The transcripts of a file of any length, piece after piece, with times of the whole file.

        It is decoded as it goes, off the event loop; few pieces are in memory at once. Closing the iterator stops the
        work.

        Raises:
            SpeechError: any of the tree, at whatever piece; ClientGone: the client hung up.
        """
        data = await asyncio.to_thread(_on_disk, file)
        rest = pieces(decode_blocks(data, self.settings.max_long_seconds))
        working: deque[tuple[Piece, asyncio.Task[Transcript]]] = deque()
        try:
            while (piece := await asyncio.to_thread(next, rest, None)) or working:
                if piece:
                    check_length(piece.waveform)
                    hearing = self.hear(piece.waveform, hot_words, patient=piece.start > 0)
                    working.append((piece, asyncio.create_task(hearing)))
                if len(working) >= PIECES or not piece:
                    first, task = working.popleft()
                    yield first, first.place(await _unless_gone(task, request))
        finally:
            tasks = [task for _, task in working]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count a live stream while inside. Raises as `check_ready`, or QueueFull if there are too many."""
        self.check_ready()
        if self.streams >= self.settings.max_streams:
            raise QueueFull(f"expected at most {self.settings.max_streams} live streams, found {self.streams}", 5)
        self.streams += 1
        self.in_flight += 1
        try:
            yield
        finally:
            self.streams -= 1
            self.in_flight -= 1

    async def hear(self, waveform: Waveform, hot_words: Weights = NONE_HOT, patient: bool = True) -> Transcript:
        """The text of a part of longer sound; none for steady noise. If ``patient``, a full queue is waited for,
        and the deadline begins with a place in it.

        Raises:
            QueueFull, NotReady, DeadlineExceeded, InferenceFailed.
        """
        if is_steady(waveform):
            return Transcript("", 0.0)
        return await self._submit(waveform, time.perf_counter(), hot_words, patient)

    async def preview(self, waveform: Waveform, hot_words: Weights = NONE_HOT) -> Transcript:
        """`hear` for sound that will be heard again: neither counted nor logged. Raises QueueFull if much waits, or as
        `Batcher.submit` does."""
        assert self._batcher is not None
        if self._batcher.queued_seconds > self.settings.max_queue_seconds / 4:
            raise QueueFull("expected a short queue for a partial text, found a long one")
        if is_steady(waveform):
            return Transcript("", 0.0)
        return (await self._batcher.submit((waveform, hot_words), waveform.duration))[0]

    async def _submit(
        self, waveform: Waveform, started: float, hot_words: Weights = NONE_HOT, patient: bool = False
    ) -> Transcript:
        assert self._batcher is not None
        if patient:
            await self._room()
        try:
            async with asyncio.timeout(self.settings.timeout):
                work = self._batcher.submit((waveform, hot_words), waveform.duration, part=patient)
                transcript, stages, batch_size = await work
        except TimeoutError:
            raise DeadlineExceeded(f"expected an answer within {self.settings.timeout:g} s, found none") from None
        except InferenceFailed:
            log.exception("the network failed")
            raise
        seconds = time.perf_counter() - started
        self.metrics.answer(waveform.duration, seconds)
        values = {
            "audio_seconds": waveform.duration,
            "seconds": seconds,
            "real_time_factor": seconds / waveform.duration,
            "batch": batch_size,
            **asdict(stages),
            "characters": len(transcript.text),
            **({"text": transcript.text} if self.settings.log_text else {}),
        }
        log.info(
            "%(audio_seconds).2f s of audio in %(seconds).3f s, real-time factor %(real_time_factor).4f; "
            "batch of %(batch)d: features %(features).3f s, network %(network).3f s, decoding %(decoding).3f s; "
            "%(characters)d characters" + (": %(text)r" if self.settings.log_text else ""),
            values,
        )
        return transcript

    async def _room(self) -> None:
        """Wait until the queue has room, first come first served."""
        assert self._batcher is not None
        async with self._waiting_for_room:
            while True:
                try:
                    return self._batcher.check_room()
                except QueueFull as full:
                    await asyncio.sleep(min(1.0, full.retry_after))


def _on_disk(file: BinaryIO) -> Bytes:
    """The bytes of an upload, mapped: many long files at once need not fit into memory."""
    if not file.seek(0, os.SEEK_END):
        return b""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # a spooled file is written to the disk for it


async def _unless_gone(work: Awaitable[T], request: Request) -> T:
    """The result of the work, or ClientGone as soon as the client hangs up; either way nothing keeps running."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        working.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody is left to be told
        leaving.add_done_callback(lambda done: done.cancelled() or done.exception())


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
