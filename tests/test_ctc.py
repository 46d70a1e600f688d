"""Greedy decoding, against hand-made answers and TensorFlow."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.alphabet import Alphabet
from speech.ctc import LAG, LEAD, LogProbs, Word, decode_greedy, widened

ALPHABET = Alphabet()
BLANK = ALPHABET.blank


def path(*labels: int, probability: float = 1.0) -> LogProbs:
    values = np.full((len(labels), ALPHABET.size), -30.0, np.float32)
    values[np.arange(len(labels)), labels] = np.log(probability)
    return LogProbs(values)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([], ""),
        ([BLANK, BLANK], ""),
        ([1, 1, BLANK, 1, 2], "aab"),
        ([1, 1, 1], "a"),
        ([1, 0, 1], "aa"),  # label 0 is nothing, but it parts repeats as a blank does
        ([0, BLANK, 0], ""),
        ([30, 1, 30, 30, 2, 30], "a b"),  # no space at either end
        ([1, 30, BLANK, 30, 2], "a b"),
    ],
)
def test_hand_made(labels: list[int], text: str):
    assert decode_greedy(path(*labels), ALPHABET).text == text


def test_equals_tensorflow():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    values = rng.normal(0, 3, (50, 40, ALPHABET.size)).astype(np.float32)
    values[:, :, 0] = -50  # TensorFlow knows no label that writes nothing but is no blank
    values[:, :, 30] = -50  # and does not trim spaces
    values[:, :, BLANK] += 3
    (sparse,), _ = tf.nn.ctc_greedy_decoder(values.transpose(1, 0, 2), np.full(50, 40), blank_index=BLANK)
    dense = tf.sparse.to_dense(sparse, default_value=BLANK).numpy()
    assert [decode_greedy(LogProbs(v), ALPHABET).text for v in values] == [ALPHABET.decode(row) for row in dense]


def test_confidence_is_the_mean_of_what_was_written():
    assert decode_greedy(path(1, BLANK, 2, probability=0.5), ALPHABET).confidence == pytest.approx(0.5)
    assert decode_greedy(path(BLANK), ALPHABET).confidence == 0


def test_words_are_widened_into_the_room_that_there_is():
    said = [Word("a", 0.02, 0.1, 1.0), Word("b", 0.13, 0.2, 1.0), Word("c", 0.9, 1.0, 1.0)]
    first, second, third = widened(said, 1.02)
    assert first.start == 0.0
    assert first.end == pytest.approx(second.start)
    assert 0.1 < first.end < 0.13
    assert second.end == pytest.approx(0.2 + LAG)
    assert third.start == pytest.approx(0.9 - LEAD)
    assert third.end == 1.02
    assert [word.text for word in (first, second, third)] == ["a", "b", "c"]
    assert widened([]) == ()


@given(st.lists(st.floats(0, 100), max_size=20).map(sorted))
def test_widened_words_stay_in_order_and_hold_what_they_held(times: list[float]):
    said = [Word("a", start, end, 1.0) for start, end in zip(times[::2], times[1::2], strict=False)]
    wide = widened(said, 100)
    edges = [time for word in wide for time in (word.start, word.end)]
    assert edges == sorted(edges)
    assert all(w.start <= n.start + 1e-9 and n.end <= w.end + 1e-9 for n, w in zip(said, wide, strict=True))
