"""Sound without an end: long files cut into pieces, live sound cut into utterances, and what needs no transcription.

The network hears both ways in time, so it needs a whole utterance: while one is running it is heard again and again as
far as it goes (a partial text), and once more when it has ended (a final one, which never changes).
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from speech.audio import SAMPLE_RATE, Waveform
from speech.ctc import Transcript
from speech.errors import SpeechError
from speech.features import FRAME_LENGTH

FRAME = 441  # samples, 20 ms: levels are measured over these
STEP = 5 * FRAME  # samples, 0.1 s: what is decided on at once
LOWEST = -100.0  # dB of full scale, the level of digital silence
PIECE = (8.0, 16.0)  # seconds, shortest and longest piece of a file: as long as the clips that were learnt
UTTERANCE = (10.0, 20.0)  # seconds, shortest and longest part of an utterance without a pause
PAUSE = 0.7  # seconds of quiet that end an utterance
LEAD = 0.3  # seconds heard before an utterance begins
QUIET = -60.0  # dB of full scale: nothing below is loud
HEADROOM = 9.0  # dB above the background that are loud, at least
SHARE = 0.3  # of the way from the background to the loudest: what is above is loud
MEMORY = 10.0  # seconds over which background and loudest are known
GLANCE = 100  # levels, two seconds, in which a word of 0.1 s can be told from noise
DYNAMICS = 8.0  # dB between loud and quiet moments; speech has more, steady noise less
PARTIAL = 0.5  # seconds of new sound between two partial texts, at least

Samples = npt.NDArray[np.float32]
Transcribe = Callable[[Waveform], Awaitable[Transcript]]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A part of longer sound, and where in it it starts, in seconds."""

    waveform: Waveform
    start: float

    def place(self, transcript: Transcript) -> Transcript:
        """The transcript of this piece with times of the whole sound."""
        words = (replace(w, start=w.start + self.start, end=w.end + self.start) for w in transcript.words)
        return replace(transcript, words=tuple(words))

    @property
    def end(self) -> float:
        """Where it ends, in seconds of the whole sound."""
        return self.start + self.waveform.duration


def levels(samples: Samples) -> npt.NDArray[np.float32]:
    """Level of each 20 ms in dB of full scale, float32 (n // 441,)."""
    power = np.square(samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)).mean(axis=1)
    return 10 * np.log10(power + 10 ** (LOWEST / 10))


def is_steady(waveform: Waveform) -> bool:
    """Whether the sound is silence or steady noise, without the rise and fall of speech: there is nothing to hear.

    A lone word makes the two seconds around it louder than the rest. In less than that nothing can be told: False.
    """
    found = levels(waveform.samples)
    if len(found) < GLANCE:
        return False
    glances = np.lib.stride_tricks.sliding_window_view(found, GLANCE)[::-5]  # the last one ends with the sound
    return bool(np.percentile(glances, 95, axis=1).max() - np.percentile(found, 10) < DYNAMICS)


def quietest(samples: Samples, after: float) -> int:
    """The sample in the middle of the quietest 0.3 s that begin ``after`` so many seconds or later."""
    skipped = round(after * SAMPLE_RATE)
    smooth = np.convolve(levels(samples[skipped:]), np.ones(15), "valid")
    return skipped + int(smooth.argmin()) * FRAME + 15 * FRAME // 2


def pieces(blocks: Iterable[Samples]) -> Iterator[Piece]:
    """Sound of any length, block by block, as pieces of 8 to 16 s that are cut at the quietest moment there.

    What lasts less than 16 s stays whole. A last piece too short to hear is left out.
    """
    shortest, longest = (round(seconds * SAMPLE_RATE) for seconds in PIECE)
    held: list[Samples] = []
    start = length = 0
    for block in blocks:
        held.append(block)
        length += len(block)
        while length >= longest:
            joined = np.concatenate(held)
            cut = quietest(joined[:longest], shortest / SAMPLE_RATE)
            yield Piece(Waveform(joined[:cut]), start / SAMPLE_RATE)
            held, start, length = [joined[cut:]], start + cut, length - cut
    if start == 0 or length >= FRAME_LENGTH:
        yield Piece(Waveform(np.concatenate(held)), start / SAMPLE_RATE)


class Endpointer:
    """Finds utterances in sound as it comes, whatever the size of the blocks. Holds 20 s and a block at most.

    An utterance begins when a step of 0.1 s is loud compared with the last 10 s, and ends with a pause of 0.7 s. One
    that lasts 20 s is cut at the quietest moment of its second half.
    """

    def __init__(self) -> None:
        self._rest: Samples = np.empty(0, np.float32)  # less than a step
        self._steps: list[Samples] = []  # of the utterance, or the lead of the next
        self._start = 0  # of the first of them, in samples
        self._speaking = False
        self._quiet = 0  # steps since the last loud one
        # The background is thought to be quiet until it is known better.
        self._levels: deque[float] = deque([QUIET] * 10, maxlen=round(MEMORY * SAMPLE_RATE / FRAME))

    def push(self, samples: Samples) -> list[Piece]:
        """The utterances that end with these samples."""
        found = []
        joined = np.concatenate([self._rest, samples])
        whole = len(joined) // STEP * STEP
        self._rest = joined[whole:]
        for step in joined[:whole].reshape(-1, STEP):
            self._steps.append(step)
            loud = self._is_loud(step)
            self._speaking |= loud
            self._quiet = 0 if loud else self._quiet + 1
            if not self._speaking:
                self._drop(len(self._steps) - round(LEAD * SAMPLE_RATE / STEP))
            elif self._quiet * STEP >= PAUSE * SAMPLE_RATE:
                found.append(self._take(len(self._steps)))
                self._speaking = False
            elif len(self._steps) * STEP >= UTTERANCE[1] * SAMPLE_RATE:
                found.append(self._take(quietest(np.concatenate(self._steps), UTTERANCE[0]) // STEP))
        return found

    @property
    def seconds(self) -> float:
        """Seconds of sound that were looked at."""
        return (self._start + len(self._steps) * STEP) / SAMPLE_RATE

    @property
    def running(self) -> Piece | None:
        """The utterance so far, or None between two of them."""
        return Piece(Waveform(np.concatenate(self._steps)), self._start / SAMPLE_RATE) if self._speaking else None

    def end(self) -> Piece | None:
        """The last utterance, if the sound ends within one."""
        if self._speaking:
            self._steps.append(self._rest)
        return self.running

    def _is_loud(self, step: Samples) -> bool:
        now = levels(step)
        self._levels.extend(now.tolist())
        background, loudest = np.percentile(self._levels, (10, 95))
        threshold = max(QUIET, background + max(HEADROOM, SHARE * (loudest - background)))
        return bool((now >= threshold).sum() >= 2)

    def _take(self, count: int) -> Piece:
        piece = Piece(Waveform(np.concatenate(self._steps[:count])), self._start / SAMPLE_RATE)
        self._drop(count)
        return piece

    def _drop(self, count: int) -> None:
        if count > 0:
            del self._steps[:count]
            self._start += count * STEP


@dataclass(frozen=True, slots=True)
class Utterance:
    """A final text: its transcript has the times of the stream, as have ``start`` and ``end`` in seconds."""

    transcript: Transcript
    start: float
    end: float


class LiveTranscriber:
    """Texts of one live stream: partial ones as they can be had, final ones in order.

    ``transcribe`` is awaited for each utterance that ended, ``preview`` for one running utterance at a time, and
    ``show`` with each partial text that is new. An error of the tree that ``preview`` raises costs that partial text
    and no more.
    """

    def __init__(self, transcribe: Transcribe, preview: Transcribe, show: Callable[[str], Awaitable[None]]) -> None:
        self._transcribe, self._preview, self._show = transcribe, preview, show
        self._endpointer = Endpointer()
        self._partial: asyncio.Task[None] | None = None
        self._heard = 0.0  # seconds of the stream that the latest partial text covers
        self.partial = ""  # text of the running utterance so far

    async def accept(self, samples: Samples) -> AsyncGenerator[Utterance, None]:
        """The utterances that end with these samples, float32 (n,) at 22050 Hz, each as soon as it is heard.

        Raises what ``transcribe`` raises.
        """
        if ended := self._endpointer.push(samples):
            async for utterance in self._finish(ended):
                yield utterance
            return
        self._check_partial()
        much = self._endpointer.seconds - self._heard >= PARTIAL
        if much and not self._partial and (running := self._endpointer.running):
            self._heard = running.end
            self._partial = asyncio.create_task(self._hear_partial(running))

    async def end(self) -> AsyncGenerator[Utterance, None]:
        """The last utterance, if there is one."""
        if last := self._endpointer.end():
            async for utterance in self._finish([last]):
                yield utterance

    async def close(self) -> None:
        """Give up the partial text that is being made."""
        if self._partial:
            self._partial.cancel()
            await asyncio.gather(self._partial, return_exceptions=True)
            self._partial = None

    def _check_partial(self) -> None:
        """Raise what a partial text that is done has raised."""
        if self._partial and self._partial.done():
            done, self._partial = self._partial, None
            done.result()

    async def _finish(self, ended: list[Piece]) -> AsyncGenerator[Utterance, None]:
        self._check_partial()
        await self.close()
        self.partial = ""
        for piece in ended:
            transcript = piece.place(await self._transcribe(piece.waveform))
            words = transcript.words
            start, end = (words[0].start, words[-1].end) if words else (piece.start, piece.end)
            yield Utterance(transcript, start, end)

    async def _hear_partial(self, running: Piece) -> None:
        with suppress(SpeechError):
            text = (await self._preview(running.waveform)).text
            if text != self.partial:
                self.partial = text
                await self._show(text)
