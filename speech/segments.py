"""Segments: words that are said in one breath, cut at pauses and kept short."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from speech.ctc import Word

MAX_GAP = 0.8  # seconds of silence that end a segment
MAX_SECONDS = 6.0  # of a segment


@dataclass(frozen=True, slots=True)
class Segment:
    """Words said in one breath: their text, from the first one's start to the last one's end, in seconds."""

    text: str
    start: float
    end: float
    confidence: float
    words: tuple[Word, ...]


def segments(words: Sequence[Word], max_gap: float = MAX_GAP, max_seconds: float = MAX_SECONDS) -> tuple[Segment, ...]:
    """The words cut where more than ``max_gap`` seconds are silent; what then lasts longer than ``max_seconds`` is
    cut at the longest pause of its second half. Only a single word can be a longer segment."""
    pauses = [i for i, (a, b) in enumerate(pairwise(words), start=1) if b.start - a.end > max_gap]
    found = []
    for begin, end in pairwise([0, *pauses, len(words)]):
        found += cut(words[begin:end], lambda run: run[-1].end - run[0].start <= max_seconds)
    return tuple(join(run) for run in found)


def cut(words: Sequence[Word], fits: Callable[[Sequence[Word]], bool]) -> list[Sequence[Word]]:
    """Runs of words that fit; one that is followed by another ends at the longest pause of its second half. A single
    word always counts as fitting. ``fits`` must hold for the beginnings of what it holds for."""
    runs, begin = [], 0
    while begin < len(words):
        end = begin + 1
        while end < len(words) and fits(words[begin : end + 1]):
            end += 1
        if end < len(words):
            end = max(range((begin + end) // 2 + 1, end + 1), key=lambda i: (_pause_before(words, i), i))
        runs.append(words[begin:end])
        begin = end
    return runs


def _pause_before(words: Sequence[Word], i: int) -> float:
    return round(words[i].start - words[i - 1].end, 3)


def join(words: Sequence[Word]) -> Segment:
    """One segment of one or more words; its confidence is the geometric mean over their characters."""
    logs = sum(len(word.text) * math.log(max(word.confidence, 1e-30)) for word in words)
    confidence = math.exp(logs / sum(len(word.text) for word in words))
    return Segment(" ".join(word.text for word in words), words[0].start, words[-1].end, confidence, tuple(words))
