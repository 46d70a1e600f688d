"""Word times from the sound: where a pause is heard between two words, one ends and the other begins at its edges.

The network's steps tell roughly when a word was said (`speech.ctc.widened`), how loud it was there tells exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from speech.audio import SAMPLE_RATE, Waveform
from speech.ctc import LAG, LEAD, SECONDS_PER_STEP, Word

STEP = round(SECONDS_PER_STEP * SAMPLE_RATE)  # samples
FAINTEST = 1e-10  # mean square: -100 dB
QUIET = 35.0  # dB that a pause is below loud speech, unless the background is louder than that
ABOVE_FLOOR = 6.0  # dB that a pause may be above the quietest steps
LEAST_RANGE = 15.0  # dB between loud speech and a pause; with less, the sound tells nothing
SHORTEST = 3  # steps of a pause, 44 ms: the closure of a p, t or k is not one
TOUCHING = 1e-6  # seconds between words that are less far apart than they are widened, by rounding
REACH = 28  # steps that an edge is looked for in, 0.4 s

Levels = npt.NDArray[np.float32]


def levels(waveform: Waveform) -> Levels:
    """How loud each step of the network is, in dB relative to full scale: float32 (n_steps,)."""
    samples = waveform.samples[: len(waveform.samples) // STEP * STEP].reshape(-1, STEP)
    power = np.einsum("ij,ij->i", samples, samples) / STEP
    return (10 * np.log10(np.maximum(power, FAINTEST))).astype(np.float32)


def fitted(words: Sequence[Word], loudness: Levels, duration: float = math.inf) -> tuple[Word, ...]:
    """The words of `speech.ctc.widened`, beginning and ending where the sound does if there is a pause around them."""
    silent = _silent(words, loudness)
    if not silent.any():
        return tuple(words)
    # A pause begins behind the last character of a word and ends before the first of the next one.
    before = [0.0, *(word.end - LAG for word in words)]
    behind = [*(word.start + LEAD for word in words), duration]
    starts, ends = [word.start for word in words], [word.end for word in words]
    for place, (begin, end) in enumerate(zip(before, behind, strict=True)):
        if 0 < place < len(words) and starts[place] - ends[place - 1] < TOUCHING:
            continue  # the network heard no pause: the words share what is between them
        if (place == 0 and starts[0] == 0) or (place == len(words) and ends[-1] == duration):
            continue  # how far the word was widened is not known
        first = max(0, math.ceil(begin / SECONDS_PER_STEP))
        last = min(len(silent), math.floor(min(end, len(silent) * SECONDS_PER_STEP) / SECONDS_PER_STEP))
        found = first + np.flatnonzero(silent[first : max(first, last - SHORTEST + 1)])
        if place > 0 and len(found) and found[0] <= first + REACH:
            ends[place - 1] = found[0] * SECONDS_PER_STEP
        if place < len(words) and len(found) and found[-1] + SHORTEST >= last - REACH:
            starts[place] = (found[-1] + SHORTEST) * SECONDS_PER_STEP
    return tuple(replace(word, start=start, end=end) for word, start, end in zip(words, starts, ends, strict=True))


def _silent(words: Sequence[Word], loudness: Levels) -> npt.NDArray[np.bool_]:
    """Whether a pause may be at each step and the next ones; nowhere if the sound does not tell."""
    nowhere = np.zeros(len(loudness), bool)
    said = nowhere.copy()
    for word in words:
        said[int(word.start / SECONDS_PER_STEP) : int(word.end / SECONDS_PER_STEP) + 1] = True
    if not said.any():
        return nowhere
    loud, floor = np.percentile(loudness[said], 90), np.percentile(loudness, 5)
    limit = max(loud - QUIET, floor + ABOVE_FLOOR)
    if limit > loud - LEAST_RANGE:
        return nowhere
    return np.convolve(loudness < limit, np.ones(SHORTEST), "full")[SHORTEST - 1 :] == SHORTEST
