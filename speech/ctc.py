"""From log-probabilities to text: greedy CTC decoding."""

from dataclasses import dataclass

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
class Transcript:
    """The answer: the text, and how sure the model is of it (0 … 1)."""

    text: str
    confidence: float


def decode_greedy(log_probs: LogProbs, alphabet: Alphabet) -> Transcript:
    """Best path decoding: the best label of each step, repeats collapsed, blank and label 0 dropped.

    The confidence is the geometric mean of the probabilities of the steps that wrote a character, 0 for no text.
    Source: Graves et al., Connectionist Temporal Classification, ICML 2006, section 3.2.
    """
    values = log_probs.values
    best = values.argmax(axis=1)
    # Label 0 and the blank both write nothing, but neither ends a repeat of the other.
    starts = np.diff(best, prepend=-1) != 0
    written = (best != alphabet.blank) & (best != 0)
    peaks = values.max(axis=1)[written]
    return Transcript(
        text=" ".join(alphabet.decode(best[starts & written].tolist()).split()),
        confidence=float(np.exp(peaks.mean())) if len(peaks) else 0.0,
    )
