"""Greedy decoding, against hand-made answers and TensorFlow."""

import numpy as np
import pytest

from speech.alphabet import Alphabet
from speech.ctc import LogProbs, decode_greedy

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
