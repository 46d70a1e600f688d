"""The tables of letters say what the language model and the hot words say, one letter at a time."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.alphabet import Alphabet
from speech.hot_words import HotWords
from speech.language_model import FIRST_WORD, UNKNOWN, LanguageModel, read_language_model
from speech.spelling import START, hot_letters, letters_of, plain_letters
from training.language_model import train, write

ALPHABET = Alphabet()
WEIGHT = 0.7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A language model of a few words, some of which begin alike."""
    file = tmp_path_factory.mktemp("model") / "lm.npz"
    write(train(["the cat sat on the mat", "a cat's cats sat then", "that mad rat"] * 2, 3, [0, 0, 0], 1), file)
    return read_language_model(file)


def begins(model: LanguageModel, text: str) -> float:
    """Log-probability that a word begins so: of all known words that do, or else of the letters."""
    if not text:
        return 0.0
    known = [FIRST_WORD + i for i, word in enumerate(model.words) if word.startswith(text)]
    if known:
        return math.log(sum(math.exp(model.token((), token)) for token in known))
    return model.token((), UNKNOWN) + model.spell(text)


@given(st.text("acehmnrst'd", min_size=1, max_size=9))
def test_letters_are_weighed_as_beginnings_of_words(model: LanguageModel, text: str) -> None:
    tables, state, weight = letters_of(model, ALPHABET, WEIGHT), START, 1.0
    for label, (before, after) in zip(
        ALPHABET.encode(text), pairwise(text[:i] for i in range(len(text) + 1)), strict=True
    ):
        weight = float(tables.weight[state, label])
        state = int(tables.next[state, label])
        assert math.log(weight) == pytest.approx(WEIGHT * (begins(model, after) - begins(model, before)), abs=1e-4)
    token, rest = int(tables.token[state]), float(tables.rest[state])
    assert token == (FIRST_WORD + model.words.index(text) if text in model.words else UNKNOWN)
    score, _ = model.word(model.start, text)
    assert model.token(model.start, token) + rest == pytest.approx(score - begins(model, text), abs=1e-4)


def test_spaces_begin_anew_and_marks_change_nothing(model: LanguageModel) -> None:
    space, mark, *_ = ALPHABET.encode(" ?")
    for tables in (letters_of(model, ALPHABET, WEIGHT), plain_letters(ALPHABET)):
        assert (tables.next[:, space] == START).all()
        assert (tables.next[:, mark] == np.arange(len(tables.next))).all()
        assert (tables.weight[:, [space, mark]] == 1).all()


@given(
    st.text("ice cream?", max_size=14),
    st.dictionaries(st.sampled_from(["ice", "ice cream", "rim", "i", "cream", "a ice"]), st.floats(-9, 9)),
)
def test_hot_letters_are_those_of_hot_words(text: str, weights: dict[str, float]) -> None:
    hot, tables = HotWords(weights, ALPHABET.characters), hot_letters(weights, ALPHABET)
    heard, word, state = "", "", 0
    for character, label in zip(text, ALPHABET.encode(text), strict=True):
        gained = 0.0
        if character == " " and word:
            heard, gained = hot.after(heard, " ", begins=False)
            word = ""
        elif character not in " ?":
            heard, gained = hot.after(heard, character, begins=not word)
            word += character
        assert math.log(tables.weight[state, label]) == pytest.approx(gained, abs=1e-4)
        state = int(tables.next[state, label])
        assert tables.unfinished[state] == pytest.approx(hot.unfinished(heard), abs=1e-4)


def test_the_same_hot_words_have_their_tables_made_once() -> None:
    """A file of hours is many pieces."""
    assert hot_letters({"ice": 4.0}, ALPHABET) is hot_letters({"ice": 4.0}, ALPHABET)
    assert hot_letters({"ice": 4.0}, ALPHABET) is not hot_letters({"ice": 5.0}, ALPHABET)
