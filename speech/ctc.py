"""From log-probabilities to text: greedy CTC decoding.

A CTC network writes a character in a few steps at some place inside its sound, the rest is blank: a word's first
character comes late and its last one early. `widened` makes up for what that is on average, `speech.pauses`
fits to the sound what it can; ``python -m benchmarks.word_times`` measures the rest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from speech.alphabet import Alphabet
from speech.features import SECONDS_PER_FRAME

SECONDS_PER_STEP = 2 * SECONDS_PER_FRAME  # 14.5 ms: conv_1 halves the frame rate
LEAD, LAG = 0.045, 0.1  # seconds that a word's sound begins before its first character and lasts after its last one


@dataclass(frozen=True, slots=True, eq=False)
class LogProbs:
    """What the network thinks of one utterance: ``values`` is float32 (n_steps, labels with the blank last)."""

    values: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Word:
    """A word without spaces, ``start`` and ``end`` in seconds, ``confidence`` 0 … 1."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """The answer: the text, how sure the model is of it (0 … 1), and its words with their times."""

    text: str
    confidence: float
    words: tuple[Word, ...] = ()


def decode_greedy(log_probs: LogProbs, alphabet: Alphabet, duration: float = math.inf) -> Transcript:
    """Best path decoding: the best label of each step, repeats collapsed, blank and label 0 dropped.

    Words come in order, do not overlap, and end after ``duration`` seconds at the latest. A confidence is the geometric
    mean of the probabilities of the steps that wrote the word's, or the text's, characters; 0 for no text.
    Source: Graves et al., Connectionist Temporal Classification, ICML 2006, section 3.2.
    """
    best, peaks = log_probs.values.argmax(axis=1), log_probs.values.max(axis=1)
    # Label 0 writes nothing, but it parts repeats as the blank does.
    changes = np.flatnonzero(np.diff(best, prepend=-1))
    words: list[Word] = []
    text, steps = "", list[int]()
    for start, stop in pairwise([*changes.tolist(), len(best)]):
        character = alphabet.decode([best[start]])
        if character.isspace():
            words += _word(text, steps, peaks, duration)
            text, steps = "", []
        elif character:
            text += character
            steps.extend(range(start, stop))
    words += _word(text, steps, peaks, duration)
    written = np.isin(best, (0, alphabet.blank), invert=True)
    confidence = float(np.exp(peaks[written].mean())) if words else 0.0
    return Transcript(" ".join(word.text for word in words), confidence, widened(words, duration))


def widened(words: Sequence[Word], duration: float = math.inf) -> tuple[Word, ...]:
    """The words, from a little before the steps that wrote them to a little after; two that are near share the room."""
    starts = [max(0.0, words[0].start - LEAD)] if words else []
    ends = []
    for word, following in pairwise(words):
        room = min(LAG + LEAD, following.start - word.end)
        ends.append(word.end + room * LAG / (LAG + LEAD))
        starts.append(max(ends[-1], following.start - room * LEAD / (LAG + LEAD)))
    ends += [max(word.end, min(word.end + LAG, duration)) for word in words[-1:]]
    return tuple(replace(word, start=start, end=end) for word, start, end in zip(words, starts, ends, strict=True))


def _word(text: str, steps: list[int], peaks: npt.NDArray[np.float32], duration: float) -> list[Word]:
    """The word that was written at these steps, if any was."""
    if not text:
        return []
    start, end = (min(step * SECONDS_PER_STEP, duration) for step in (steps[0], steps[-1] + 1))
    return [Word(text, start, end, float(np.exp(peaks[steps].mean())))]
