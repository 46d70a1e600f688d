"""Error rates of what was heard: of all of it, and by corpus, speaker, length and signal-to-noise ratio."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import jiwer
import numpy as np

from speech.alphabet import normalise_text

RESAMPLES = 1000  # of the bootstrap
LENGTHS = (4, 8, 12)  # s, between two classes
RATIOS = (20, 30, 40)  # dB, between two classes


@dataclass(frozen=True, slots=True)
class Result:
    """One utterance: what was said, as published, and what was heard, as the service writes it."""

    id: str
    corpus: str
    speaker: str
    seconds: float
    snr: float  # dB, estimated
    reference: str
    hypothesis: str


@dataclass(frozen=True, slots=True)
class Rates:
    """Error rates of a group of utterances in percent of its words or characters.

    Both sides are spelled as `normalise_text` does, but for the raw rates, where only case and white space are made
    the same. Intervals hold 95 % of the bootstrap's resamples.
    """

    clips: int
    seconds: float
    wer: float
    wer_interval: tuple[float, float]
    cer: float
    cer_interval: tuple[float, float]
    substitutions: float  # these three are of words, and their sum is the WER
    deletions: float
    insertions: float
    raw_wer: float
    raw_cer: float


def unify(text: str) -> str:
    """Case and white space made the same, nothing else."""
    return " ".join(text.lower().split())


def count_words(reference: str, hypothesis: str) -> tuple[int, int, int, int]:
    """(substitutions, deletions, insertions, length of the reference) in words."""
    return _counts(jiwer.process_words(reference, hypothesis))


def count_characters(reference: str, hypothesis: str) -> tuple[int, int, int, int]:
    """(substitutions, deletions, insertions, length of the reference) in characters."""
    return _counts(jiwer.process_characters(reference, hypothesis))


def _counts(output: jiwer.WordOutput | jiwer.CharacterOutput) -> tuple[int, int, int, int]:
    length = output.substitutions + output.deletions + output.hits
    return output.substitutions, output.deletions, output.insertions, length


def rates(results: Sequence[Result]) -> Rates:
    """Error rates over all words and characters of the results.

    Intervals: bootstrap over utterances (Bisani and Ney, Bootstrap estimates for confidence intervals in ASR
    performance evaluation, ICASSP 2004), seeded.
    """
    words, characters, raw_words, raw_characters = (
        np.array([count(spell(r.reference), spell(r.hypothesis)) for r in results])
        for spell in (normalise_text, unify)
        for count in (count_words, count_characters)
    )
    drawn = np.random.default_rng(0).integers(0, len(results), (RESAMPLES, len(results)))
    kinds = 100 * words.sum(0)[:3] / words[:, 3].sum()
    return Rates(
        clips=len(results),
        seconds=round(sum(r.seconds for r in results), 1),
        wer=_rate(words),
        wer_interval=_interval(words, drawn),
        cer=_rate(characters),
        cer_interval=_interval(characters, drawn),
        substitutions=round(kinds[0], 2),
        deletions=round(kinds[1], 2),
        insertions=round(kinds[2], 2),
        raw_wer=_rate(raw_words),
        raw_cer=_rate(raw_characters),
    )


def _rate(counts: np.ndarray) -> float:
    return round(100 * counts[:, :3].sum() / counts[:, 3].sum(), 2)


def _interval(counts: np.ndarray, drawn: np.ndarray) -> tuple[float, float]:
    errors, lengths = counts[:, :3].sum(1), counts[:, 3]
    low, high = np.percentile(100 * errors[drawn].sum(1) / lengths[drawn].sum(1), [2.5, 97.5])
    return round(float(low), 2), round(float(high), 2)


def _by_name(results: Sequence[Result], name: Callable[[Result], str]) -> dict[str, Rates]:
    names = sorted({name(r) for r in results})
    return {n: rates([r for r in results if name(r) == n]) for n in names}


def _by_class(results: Sequence[Result], values: Sequence[float], edges: Sequence[int], unit: str) -> dict[str, Rates]:
    between = [f"{low}–{high} {unit}" for low, high in pairwise(edges)]
    labels = [f"under {edges[0]} {unit}", *between, f"from {edges[-1]} {unit}"]
    classes = np.digitize(values, edges)
    return {
        label: rates([r for r, c in zip(results, classes, strict=True) if c == number])
        for number, label in enumerate(labels)
        if number in classes
    }


def by_corpus(results: Sequence[Result]) -> dict[str, Rates]:
    """Rates of each corpus, and of all."""
    groups = _by_name(results, lambda r: r.corpus)
    return {**groups, "all": rates(results)} if len(groups) > 1 else groups


def by_everything(results: Sequence[Result]) -> dict[str, dict[str, Rates]]:
    """Rates by corpus, by speaker, by length and by estimated signal-to-noise ratio."""
    return {
        "corpus": by_corpus(results),
        "speaker": _by_name(results, lambda r: f"{r.corpus} {r.speaker}".strip()),
        "length": _by_class(results, [r.seconds for r in results], LENGTHS, "s"),
        "SNR": _by_class(results, [r.snr for r in results], RATIOS, "dB"),
    }
