"""Long sound in pieces and live sound in utterances: nothing lost, nothing twice, whatever the blocks."""

import asyncio
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech.audio import Waveform
from speech.ctc import Transcript, Word
from speech.errors import QueueFull
from speech.streaming import STEP, Endpointer, LiveTranscriber, Piece, Utterance, is_steady, pieces, quietest
from tests.conftest import RATE


def voice(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    """float32 (n,): a tone that rises and falls four times a second, as syllables do."""
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = 150 + 50 * np.sin(2 * np.pi * (0.3 + 0.1 * seed) * time)
    return (level * np.sin(2 * np.pi * pitch * time) * np.sin(4 * np.pi * time) ** 2).astype(np.float32)


def noise(seconds: float, level: float = 0.001) -> np.ndarray:
    return np.random.default_rng(1).normal(0, level, round(seconds * RATE)).astype(np.float32)


def joined(parts: list[Piece]) -> np.ndarray:
    return np.concatenate([part.waveform.samples for part in parts])


def blocks(samples: np.ndarray, size: int) -> list[np.ndarray]:
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def test_a_short_file_stays_whole():
    samples = voice(15.9)
    (piece,) = pieces(blocks(samples, 16384))
    assert piece.start == 0
    assert np.array_equal(piece.waveform.samples, samples)


@settings(max_examples=10)
@given(seconds=st.floats(17, 200), size=st.integers(1000, 3_000_000))
def test_pieces_are_the_sound_cut_between_their_bounds(seconds: float, size: int):
    samples = voice(seconds)
    found = list(pieces(blocks(samples, size)))
    assert np.array_equal(joined(found)[: len(samples)], samples[: len(joined(found))])
    assert len(samples) - len(joined(found)) < 256  # what is too short to hear is left out
    assert all(8 <= piece.waveform.duration <= 16 for piece in found[:-1])
    assert all(b.start == pytest.approx(a.end) for a, b in pairwise(found))


def test_pieces_are_cut_in_the_pauses():
    """Ten seconds of voice, a pause of half a second, and so on: each cut is in a pause."""
    samples = np.concatenate([np.concatenate([voice(10, seed=i), noise(0.5)]) for i in range(9)])
    found = list(pieces(blocks(samples, 16384)))
    assert len(found) > 2
    assert all(10.0 <= piece.start % 10.5 <= 10.5 for piece in found[1:])


def test_pieces_of_nothing_and_of_hardly_anything():
    assert [len(p.waveform.samples) for p in pieces([np.empty(0, np.float32)])] == [0]
    assert [len(p.waveform.samples) for p in pieces([np.zeros(100, np.float32)])] == [100]


def test_quietest_finds_a_hole():
    samples = voice(4, 0.5) + 0.3
    samples[2 * RATE : 2 * RATE + RATE // 2] = 0
    assert 2.0 < quietest(samples, 0) / RATE < 2.5
    assert quietest(samples, 3.0) / RATE > 3.0


@pytest.mark.parametrize(
    ("samples", "steady"),
    [
        (np.zeros(10 * RATE, np.float32), True),
        (noise(10, 0.05), True),
        (noise(10, 1e-5), True),
        (0.3 * np.sin(np.arange(10 * RATE) / 20).astype(np.float32), True),
        (voice(10), False),
        (voice(10, 0.001), False),
        (voice(5) + noise(5, 0.01), False),
        (np.concatenate([noise(25), voice(2)]), False),  # little speech in much noise
        (np.concatenate([noise(7, 0.001), voice(0.4), noise(8, 0.001)]), False),
        (np.concatenate([noise(15, 0.001), voice(0.3)]), False),
        (np.zeros(RATE, np.float32), False),  # too short to tell
    ],
    ids=[
        "silence",
        "noise",
        "faint noise",
        "tone",
        "voice",
        "faint voice",
        "noisy voice",
        "little voice",
        "lone word",
        "last word",
        "short",
    ],
)
def test_steady_sound_is_told_from_voice(samples: np.ndarray, steady: bool):
    assert is_steady(Waveform(samples)) is steady


def utterances(samples: np.ndarray, size: int) -> list[Piece]:
    endpointer = Endpointer()
    found = [piece for block in blocks(samples, size) for piece in endpointer.push(block)]
    last = endpointer.end()
    return [*found, last] if last else found


def test_utterances_end_in_the_pauses():
    samples = np.concatenate([noise(2), voice(3), noise(1.5), voice(2), noise(1.5), voice(4)])
    found = utterances(samples, 441)
    for piece, (start, stop) in zip(found, [(2, 5), (6.5, 8.5), (10, 14)], strict=True):
        assert start - 0.5 <= piece.start <= start
        assert stop - 0.1 <= piece.end <= stop + 0.9
        at = round(piece.start * RATE)
        assert np.array_equal(piece.waveform.samples, samples[at : at + len(piece.waveform.samples)])


@settings(max_examples=20)
@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=40))
def test_utterances_do_not_depend_on_the_blocks(sizes: list[int]):
    samples = np.concatenate([noise(1), voice(2), noise(1), voice(3), noise(1)])
    endpointer, found, at = Endpointer(), [], 0
    for size in [*sizes, len(samples)]:
        found += endpointer.push(samples[at : at + size])
        at += size
    found += [last] if (last := endpointer.end()) else []
    expected = utterances(samples, 1000)
    assert [(p.start, p.end) for p in found] == [(p.start, p.end) for p in expected]


def test_a_voice_without_pauses_is_cut_and_nothing_is_lost():
    samples = np.concatenate([voice(3), voice(60)])
    found = utterances(samples, 4410)
    assert all(10 <= piece.waveform.duration <= 20 for piece in found[:-1])
    assert np.array_equal(joined(found), samples[: len(joined(found))])
    assert len(samples) - len(joined(found)) < STEP


def test_silence_has_no_utterance_and_holds_little():
    endpointer = Endpointer()
    for _ in range(100):
        assert endpointer.push(noise(1)) == []
    assert endpointer.running is None
    assert sum(len(step) for step in endpointer._steps) <= 0.5 * RATE


def test_noise_that_begins_is_soon_background():
    endpointer = Endpointer()
    found = [piece for _ in range(60) for piece in endpointer.push(noise(1, 0.05))]
    assert sum(piece.waveform.duration for piece in found) < 15
    assert all(is_steady(piece.waveform) for piece in found)


class Heard:
    """A transcriber that says how many seconds it was given, and remembers who ran at the same time."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.running = self.most = 0
        self.problem: Exception | None = None

    async def transcribe(self, waveform: Waveform) -> Transcript:
        text = f"{waveform.duration:.1f}"
        return Transcript(text, 1.0, (Word(text, 0.5, waveform.duration - 0.5, 1.0),))

    async def preview(self, waveform: Waveform) -> Transcript:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.001)
            if self.problem:
                raise self.problem
            return Transcript(f"{waveform.duration:.1f}", 1.0)
        finally:
            self.running -= 1

    async def show(self, text: str) -> None:
        self.shown.append(text)

    def hear(self, samples: np.ndarray, pause: float = 0.002, size: int = 2 * STEP) -> list[Utterance]:
        async def run() -> list[Utterance]:
            live, found = LiveTranscriber(self.transcribe, self.preview, self.show), []
            for block in blocks(samples, size):
                found += [utterance async for utterance in live.accept(block)]
                await asyncio.sleep(pause)
            found += [utterance async for utterance in live.end()]
            assert live.partial == ""
            assert len(asyncio.all_tasks()) == 1  # nothing is left behind
            return found

        return asyncio.run(run())


def test_partial_and_final_texts():
    heard = Heard()
    first, second = heard.hear(np.concatenate([noise(1), voice(3), noise(1.5), voice(2)]))
    assert heard.most == 1
    assert len(heard.shown) > 4
    assert [w.start for w in first.transcript.words] == [first.start]
    assert 1.0 < first.start < first.end < 5.0 < second.start < second.end < 8.0


def test_partial_texts_are_left_out_when_they_take_too_long():
    """A preview that never ends in time costs partial texts, nothing else."""
    heard = Heard()
    assert len(heard.hear(np.concatenate([voice(3), noise(1.5), voice(2)]), pause=0)) == 2
    assert heard.most == 1


def test_an_error_of_a_partial_text_is_passed_over_a_bug_is_not():
    heard = Heard()
    heard.problem = QueueFull("full")
    assert len(heard.hear(np.concatenate([voice(3), noise(1.5)]))) == 1
    assert heard.shown == []
    heard.problem = RuntimeError("bug")
    for size in (2 * STEP, 30 * STEP):  # the utterance goes on, or the next block ends it
        with pytest.raises(RuntimeError, match="bug"):
            heard.hear(np.concatenate([voice(3), noise(3)]), size=size)
