"""Learn which words follow which: ``python -m training.language_model TEXT… --out Models/NAME/lm.npz``."""

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from speech.alphabet import CHARACTERS, normalise_text
from speech.language_model import (
    BEGIN,
    END,
    FIRST_WORD,
    FORMAT,
    MARKS,
    RESOLUTION,
    SPELLING_ORDER,
    UNKNOWN,
    LanguageModel,
    read_language_model,
)
from training.command import one_line
from training.dataset import read_lines, read_utterances
from training.synthesize import speakable

LETTERS = CHARACTERS.translate(MARKS).replace(" ", "")
SHARED = 8  # words in a row that a text to be left out has in common with a spoken one
NEVER = 65535 / RESOLUTION  # the highest cost that the file can hold, 256 nats

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def read_texts(source: Path, dev: bool = False) -> list[str]:
    """Normalised texts of whatever `training.dataset.read_lines` reads, without the marks ``?`` and ``!``: they are no
    words."""
    return [text for text in map(cleaned, read_lines(source, dev)) if text]


def cleaned(text: str) -> str:
    """The words of a text, without ``?`` and ``!``."""
    return " ".join(normalise_text(text).translate(MARKS).split())


def without(lines: Iterable[str], spoken: Iterable[str]) -> list[str]:
    """The lines that are none of the texts, which are cleaned, and have no eight words in a row in common with any;
    numbers may be in words there, as `training.synthesize` writes them."""
    runs = {run for text in spoken for run in _runs(text)}
    return [line for line in lines if all(runs.isdisjoint(_runs(cleaned(text))) for text in (line, speakable(line)))]


def _runs(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[i : i + SHARED]) for i in range(max(1, len(words) - SHARED + 1))}


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """The n-grams of one order that are kept: keys int64 ascending, their probabilities, and what each context leaves.

    A key is the n tokens folded to base ``n_tokens``; ``left`` is the probability that a context (n - 1 tokens, its
    key in ``contexts``, ascending) hands to the order below.
    """

    keys: Integers
    probabilities: Floats
    contexts: Integers
    left: Floats


def look_up(keys: Integers, values: Floats, wanted: Integers, missing: float) -> Floats:
    """Values of the wanted keys (``keys`` ascending), ``missing`` where there is none."""
    if not len(keys):
        return np.full(len(wanted), missing)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], missing)


def probability(orders: Sequence[Order], keys: Integers, n_tokens: int) -> Floats:
    """Interpolated probabilities of n-grams of the highest of the orders."""
    highest, lower = orders[-1], orders[:-1]
    found = look_up(highest.keys, highest.probabilities, keys, np.nan)
    if not lower:
        return np.nan_to_num(found, nan=0.0)
    left = look_up(highest.contexts, highest.left, keys // n_tokens, 1.0)
    return np.where(np.isnan(found), left * probability(lower, keys % n_tokens ** len(lower), n_tokens), found)


def count(sentences: Sequence[Sequence[int]], order: int, n_tokens: int) -> list[tuple[Integers, Integers]]:
    """Keys and counts of the n-grams of orders 1 … ``order``; sentences begin with BEGIN.

    Below the highest order an n-gram counts once for each token seen before it (Kneser-Ney's continuation count),
    but those at the beginning of a sentence, before which nothing stands, count as often as they occur.
    """
    flat = np.array([token for sentence in sentences for token in sentence], np.int64)
    before = np.concatenate([np.arange(len(sentence)) for sentence in sentences])
    counted: list[tuple[Integers, Integers]] = []
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for n in range(order, 0, -1):
        folded = np.zeros(len(flat), np.int64)
        for back in range(n - 1, -1, -1):
            folded = folded * n_tokens + np.roll(flat, back)
        folded = folded[before >= n - 1]
        if n < order:
            continued = np.unique(keys % n_tokens**n, return_counts=True)
            first = folded[folded // n_tokens ** (n - 1) == BEGIN] if n > 1 else folded[:0]
            begun = np.unique(first, return_counts=True)
            keys, counts = (np.concatenate(pair) for pair in zip(continued, begun, strict=True))
            ascending = np.argsort(keys)
            keys, counts = keys[ascending], counts[ascending]
        else:
            keys, counts = np.unique(folded, return_counts=True)
        counted.insert(0, (keys, counts))
    return counted


def discounts(counts: Integers) -> Floats:
    """What is taken from n-grams that were counted 0, 1, 2, and 3 or more times.

    Chen & Goodman, An empirical study of smoothing techniques, 1998, equation 26; 0.5, 1, 1.5 (KenLM's fallback)
    where the text is too small to tell.
    """
    n = [int((counts == i).sum()) for i in range(5)]
    if not all(n[1:]):
        return np.array([0.0, 0.5, 1.0, 1.5])
    y = n[1] / (n[1] + 2 * n[2])
    return np.array([0.0] + [min(max(i - (i + 1) * y * n[i + 1] / n[i], 0.0), i) for i in (1, 2, 3)])


def estimate(
    sentences: Sequence[Sequence[int]], order: int, n_tokens: int, prune: Sequence[int], unknown: Sequence[int]
) -> list[Order]:
    """Interpolated modified Kneser-Ney n-grams; n-grams counted at most ``prune[n - 1]`` times are left out.

    What discounting and pruning take from a context goes to the order below, and from order 1 to the tokens
    ``unknown`` in equal shares, so that the probabilities after any context sum to 1.
    """
    orders: list[Order] = []
    for n, (keys, counts) in enumerate(count(sentences, order, n_tokens), start=1):
        if n == 1:
            keys, counts = keys[keys != BEGIN], counts[keys != BEGIN]
        kept = (counts > prune[n - 1]) | (n == 1)
        weights = np.where(kept, counts - discounts(counts)[np.minimum(counts, 3)], 0.0)
        contexts, group = np.unique(keys // n_tokens, return_inverse=True)
        total = np.bincount(group, counts)
        left = 1 - np.bincount(group, weights) / total
        own = weights / total[group]
        if n == 1:
            probabilities: Floats = np.bincount(keys, own, minlength=n_tokens).astype(np.float64)
            probabilities[unknown] += left[0] / len(unknown)
            orders.append(Order(np.arange(n_tokens), probabilities, contexts[:0], left[:0]))
            continue
        share = left[group] * probability(orders, keys % n_tokens ** (n - 1), n_tokens)
        used = np.bincount(group, kept) > 0
        orders.append(Order(keys[kept], (own + share)[kept], contexts[used], left[used]))
    return orders


def costs(probabilities: Floats) -> npt.NDArray[np.uint16]:
    """Negative natural logarithms in the steps of the file."""
    logs = -np.log(np.maximum(probabilities, math.exp(-NEVER)))
    return np.rint(np.clip(logs, 0, NEVER) * RESOLUTION).astype(np.uint16)


def spelling(words: Iterable[str]) -> npt.NDArray[np.uint16]:
    """Costs of a letter after three others in the words of a vocabulary, each word counted once."""
    number = {letter: i for i, letter in enumerate(LETTERS, start=1)}
    base = len(LETTERS) + 2  # the beginning is 0, the end comes last
    sentences = [[BEGIN, *(number[letter] for letter in word), base - 1] for word in words]
    orders = estimate(sentences, SPELLING_ORDER, base, [0] * SPELLING_ORDER, unknown=range(1, base))
    places = np.arange(base**SPELLING_ORDER)
    table = probability(orders, places, base)
    for n in range(SPELLING_ORDER - 1, 1, -1):  # nothing but 0 stands before the n tokens: the first of them begins
        table[: base ** (n - 1)] = probability(orders[:n], places[: base ** (n - 1)], base)
    return costs(table)


def train(texts: Sequence[str], order: int, prune: Sequence[int], min_count: int) -> dict[str, npt.NDArray]:
    """The arrays of a language model's file; words seen fewer than ``min_count`` times count as unknown.

    Raises:
        ValueError: no words are left, or the order is too high for so many.
    """
    seen = Counter(word for text in texts for word in text.split())
    words = sorted(word for word, times in seen.items() if times >= min_count)
    if not words:
        raise ValueError(f"expected words that come {min_count} times or more in the texts, found none")
    if order < 1 or (FIRST_WORD + len(words)) ** order >= 2**63:  # an n-gram is one int64
        raise ValueError(f"expected an order of 1 or more that suits {len(words)} words, found {order}")
    token = {word: number for number, word in enumerate(words, start=FIRST_WORD)}
    n_tokens = FIRST_WORD + len(words)
    sentences = [[BEGIN, *(token.get(word, UNKNOWN) for word in text.split()), END] for text in texts]
    orders = estimate(sentences, order, n_tokens, prune, [UNKNOWN])
    arrays: dict[str, npt.NDArray] = {
        "format": np.array(FORMAT),
        "order": np.array(order),
        "words": np.frombuffer("\n".join(words).encode(), np.uint8),
        "letters": np.frombuffer(LETTERS.encode(), np.uint8),
        "unigrams": costs(orders[0].probabilities),
        "spelling": spelling(seen),
    }
    for n, kept in enumerate(orders[1:], start=2):
        arrays[f"contexts_{n}"] = np.diff(kept.contexts, prepend=0).astype(np.uint64)
        arrays[f"sizes_{n}"] = np.unique(kept.keys // n_tokens, return_counts=True)[1].astype(np.uint32)
        arrays[f"tokens_{n}"] = (kept.keys % n_tokens).astype(np.uint32)
        arrays[f"costs_{n}"] = costs(kept.probabilities)
        arrays[f"backoffs_{n}"] = costs(kept.left)
    return arrays


def write(arrays: dict[str, npt.NDArray], file: Path) -> None:
    """Write the arrays of a language model, compressed; the folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def perplexity(model: LanguageModel, texts: Sequence[str]) -> dict[str, float]:
    """How well the model foresees held-out texts.

    ``perplexity`` per known word and end of text, ``unknown_percent`` of the words, and ``bits_per_character`` of
    everything, spelling of unknown words, spaces and ends included.
    """
    known, whole, n_known, n_unknown, n_characters = 0.0, 0.0, 0, 0, 0
    for text in texts:
        state = model.start
        for word in text.split():
            score, state = model.word(state, word)
            whole += score
            n_unknown += state[-1] == UNKNOWN
            known += score * (state[-1] != UNKNOWN)
            n_known += state[-1] != UNKNOWN
        end = model.end(state)
        known, whole, n_known, n_characters = known + end, whole + end, n_known + 1, n_characters + len(text) + 1
    return {
        "perplexity": math.exp(-known / n_known),
        "unknown_percent": 100 * n_unknown / (n_known - len(texts) + n_unknown),
        "bits_per_character": -whole / math.log(2) / n_characters,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.language_model", description=__doc__)
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT",
                        help="plain text, lines of id|text, a CSV with a column text, or recordings")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="the file to write, such as Models/NAME/lm.npz")
    parser.add_argument("--dev", type=Path, help="held-out text, or recordings with a split dev; neither is learnt")
    parser.add_argument("--without", type=Path, nargs="+", default=[], metavar="DATA",
                        help="recordings whose texts are left out, for training.train --mmi-lm")  # fmt: skip
    parser.add_argument("--order", type=int, default=3, help="words in the longest n-gram")
    parser.add_argument("--prune", type=int, nargs="+", default=[0, 0, 1], metavar="COUNT",
                        help="by order: n-grams counted at most so often are left out")  # fmt: skip
    parser.add_argument("--min-count", type=int, default=1, help="rarer words count as unknown")
    given = parser.parse_args(arguments)
    with one_line(parser):
        held_out = read_texts(given.dev, dev=True) if given.dev else []
        if given.dev and not held_out:
            raise ValueError(f"expected held-out texts in {given.dev}, found none")
        spoken = [cleaned(utterance.text) for data in given.without for utterance in read_utterances(data)]
        lines = [line for file in given.texts for line in read_lines(file) if cleaned(line)]
        spoken += held_out
        texts = [cleaned(line) for line in (without(lines, spoken) if spoken else lines)]
        if lines and not texts:
            named = " or ".join(["--dev"] * bool(held_out) + ["--without"] * bool(given.without))
            raise ValueError(f"expected texts that are not in {named}, found all {len(lines)} of them there")
        prune = [given.prune[min(n, len(given.prune) - 1)] for n in range(given.order)]
        arrays = train(texts, given.order, prune, given.min_count)
        write(arrays, given.out)
    model = read_language_model(given.out)
    grams = ", ".join(f"{len(table.tokens)} {n}-grams" for n, table in enumerate(model.tables, start=2))
    if spoken:
        print(f"{len(lines) - len(texts)} of {len(lines)} texts left out, of which what is held out has some or all")
    print(f"{len(texts)} texts, {len(model.words)} words, {grams}, {given.out.stat().st_size / 1e6:.2f} MB")
    if given.dev:
        measured = perplexity(model, held_out)
        print(", ".join(f"{name} {value:.2f}" for name, value in measured.items()))


if __name__ == "__main__":
    main()
