"""How likely a word is after two others, and how likely a new word is to be spelt so.

The file is what `training.language_model` writes: a NumPy archive of plain numbers, read without running any of it.
"""

import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from speech.errors import ModelMismatch, ModelNotFound

FORMAT = 1
BEGIN, END, UNKNOWN, FIRST_WORD = 0, 1, 2, 3  # token numbers; words follow in alphabetical order
RESOLUTION = 256  # steps per nat: log-probabilities are stored as uint16, rounded to 0.002 nats
MARKS = str.maketrans("", "", "?!")  # question and exclamation marks are no part of a word
SPELLING_ORDER = 4  # letters: each is judged by the three before it

State = tuple[int, ...]  # the last words that a probability may depend on, oldest first


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """n-grams of one order, grouped by their context (all tokens but the last).

    ``contexts`` uint64 (n_contexts,) ascending, tokens folded to base ``n_tokens``; the tokens that follow context i,
    ascending, are ``tokens[starts[i] : starts[i + 1]]`` uint32; ``costs`` (per n-gram) and ``backoffs`` (per context)
    are negative natural logarithms in steps of 1 / 256, uint16.
    """

    contexts: memoryview
    starts: memoryview
    tokens: memoryview
    costs: memoryview
    backoffs: memoryview


def _frozen(values: npt.NDArray[Any], dtype: type) -> memoryview:
    array: npt.NDArray[Any] = np.ascontiguousarray(values, dtype)
    return memoryview(array.data).toreadonly()


def make_table(arrays: dict[str, npt.NDArray[Any]]) -> Table:
    """A table of the arrays of a file: contexts as differences, the size of each context's group.

    Raises:
        ValueError: the arrays are not of the lengths that they should be.
    """
    starts = np.cumsum(np.concatenate([[0], arrays["sizes"]]), dtype=np.int64)
    lengths = {name: len(array) for name, array in arrays.items()}
    contexts, tokens = len(arrays["sizes"]), int(starts[-1])
    if lengths != {"contexts": contexts, "sizes": contexts, "backoffs": contexts, "tokens": tokens, "costs": tokens}:
        raise ValueError(f"{contexts} contexts with {tokens} tokens, but {lengths}")
    return Table(
        contexts=_frozen(np.cumsum(arrays["contexts"], dtype=np.uint64), np.uint64),
        starts=_frozen(starts, np.uint32),
        tokens=_frozen(arrays["tokens"], np.uint32),
        costs=_frozen(arrays["costs"], np.uint16),
        backoffs=_frozen(arrays["backoffs"], np.uint16),
    )


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A word n-gram model with back-off, open to unknown words by the letters they are made of.

    Frozen after load and safe to share between threads. All scores are natural logarithms of probabilities.

    Attributes:
        words: the vocabulary, ascending.
        letters: the characters of which words are spelt.
        unigrams: costs of single tokens, uint16 (n_tokens,).
        tables: order 2, order 3, ….
        spelling: cost of a letter after three others, uint16 ((len(letters) + 2) ** 4,), folded as contexts are;
            0 is what stands before a word (three times), len(letters) + 1 its end.
    """

    words: Sequence[str]
    letters: str
    unigrams: memoryview
    tables: Sequence[Table]
    spelling: memoryview
    _letter: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        letter = {character: number for number, character in enumerate(self.letters, start=1)}
        object.__setattr__(self, "_letter", letter)

    @property
    def start(self) -> State:
        """The state before the first word."""
        return (BEGIN,)

    def word(self, state: State, word: str) -> tuple[float, State]:
        """Log-probability of a whole word, and the state behind it: no more of the last words than can matter.

        The last token of the state is UNKNOWN for a new word.
        """
        place = bisect_left(self.words, word)
        known = place < len(self.words) and self.words[place] == word
        score, after = self.follow(state, FIRST_WORD + place if known else UNKNOWN)
        return (score if known else score + self.spell(word, whole=True)), after

    def follow(self, state: State, token: int) -> tuple[float, State]:
        """Log-probability of a token, and the state behind it: no more of the last words than can matter."""
        after = (*state, token)[-max(1, len(self.tables)) :]
        while len(after) > 1 and self._find(after) is None:
            after = after[1:]
        return self.token(state, token), after

    def end(self, state: State) -> float:
        """Log-probability that nothing follows."""
        return self.token(state, END)

    def token(self, state: State, token: int) -> float:
        """Log-probability of a token: the longest n-gram that the tables hold, after the backing off to it."""
        cost = 0
        for order in range(min(len(state), len(self.tables)), 0, -1):
            table, group = self.tables[order - 1], self._find(state[-order:])
            if group is not None:
                stop = table.starts[group + 1]
                place = bisect_left(table.tokens, token, table.starts[group], stop)
                if place < stop and table.tokens[place] == token:
                    return -(cost + table.costs[place]) / RESOLUTION
                cost += table.backoffs[group]
        return -(cost + self.unigrams[token]) / RESOLUTION

    def _find(self, state: State) -> int | None:
        """Where the tables hold what follows the state, None if they do not."""
        contexts, folded = self.tables[len(state) - 1].contexts, 0
        for number in state:
            folded = folded * len(self.unigrams) + number
        group = bisect_left(contexts, folded)
        return group if group < len(contexts) and contexts[group] == folded else None

    def spell(self, text: str, whole: bool = False) -> float:
        """Log-probability that an unknown word begins with these letters, or (``whole``) is made of just them.

        Raises:
            KeyError: a character is not in ``letters``.
        """
        base, letter = len(self.letters) + 2, self._letter
        numbers = [letter[character] for character in text]
        span = base ** (SPELLING_ORDER - 1)
        ended = [*numbers, base - 1] if whole else numbers
        places = accumulate(ended, lambda seen, number: seen % span * base + number, initial=0)
        next(places)
        return -sum(self.spelling[place] for place in places) / RESOLUTION


def read_language_model(file: Path) -> LanguageModel:
    """The language model of a file.

    Raises:
        ModelNotFound: there is no such file.
        ModelMismatch: it is damaged, or of another format than this code reads.
    """
    if not file.is_file():
        raise ModelNotFound(f"expected a language model in {file.name!r}, found no such file")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if (found := int(arrays["format"])) != FORMAT:
            raise ModelMismatch(f"language model: the code reads format {FORMAT}, the file has {found}")
        orders = range(2, int(arrays["order"]) + 1)
        names = ("contexts", "sizes", "tokens", "costs", "backoffs")
        model = LanguageModel(
            words=arrays["words"].tobytes().decode("utf-8").split("\n"),
            letters=arrays["letters"].tobytes().decode("utf-8"),
            unigrams=_frozen(arrays["unigrams"], np.uint16),
            tables=[make_table({name: arrays[f"{name}_{order}"] for name in names}) for order in orders],
            spelling=_frozen(arrays["spelling"], np.uint16),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelMismatch(f"expected {file.name} to be a language model, found: {error}") from error
    expected = FIRST_WORD + len(model.words), (len(model.letters) + 2) ** SPELLING_ORDER
    if (lengths := (len(model.unigrams), len(model.spelling))) != expected:
        raise ModelMismatch(f"language model: expected {expected} unigrams and spellings, found {lengths}")
    if strange := set("".join(model.words)) - set(model.letters):
        raise ModelMismatch(f"language model: expected words in {model.letters!r}, found {sorted(strange)} in some")
    return model
