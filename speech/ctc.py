"""From log-probabilities to text: greedy CTC decoding.

A CTC network writes a character in a few steps at some place inside its sound, the rest is blank: a word's first
character tends to come late and its last one early. The times tell where the network wrote, to 14.5 ms; the sound
itself can begin some ten milliseconds before and last as long after.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from speech.alphabet import Alphabet
from speech.features import SECONDS_PER_FRAME

SECONDS_PER_STEP = 2 * SECONDS_PER_FRAME  # 14.5 ms: conv_1 halves the frame rate


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

    A word starts with the first step of its first character and ends after the last step of its last one, at the
    latest after ``duration`` seconds: words come in order and do not overlap. A confidence is the geometric mean of
    the probabilities of the steps that wrote the word's, or the text's, characters; 0 for no text.
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
    return Transcript(" ".join(word.text for word in words), confidence, tuple(words))


def _word(text: str, steps: list[int], peaks: npt.NDArray[np.float32], duration: float) -> list[Word]:
    """The word that was written at these steps, if any was."""
    if not text:
        return []
    start, end = (min(step * SECONDS_PER_STEP, duration) for step in (steps[0], steps[-1] + 1))
    return [Word(text, start, end, float(np.exp(peaks[steps].mean())))]
