"""Labels and the one spelling of a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.alphabet import CHARACTERS, Alphabet, normalise_text


def test_labels_are_those_of_the_keras_io_example():
    from keras.layers import StringLookup

    lookup = StringLookup(vocabulary=list("abcdefghijklmnopqrstuvwxyz'?! "), oov_token="")
    alphabet = Alphabet()
    assert lookup.get_vocabulary() == ["", *alphabet.characters]
    assert alphabet.encode("it's") == lookup(list("it's")).numpy().tolist()
    assert alphabet.size == lookup.vocabulary_size() + 1
    assert alphabet.blank == alphabet.size - 1


def test_label_0_and_blank_write_nothing():
    assert Alphabet().decode([0, 1, 31, 30, 2]) == "a b"


def test_a_label_out_of_range_is_an_error():
    with pytest.raises(IndexError):
        Alphabet().decode([32])


@pytest.mark.parametrize(
    ("published", "spelt"),
    [
        ("Author of the danger trail, Philip Steels, etc.", "author of the danger trail philip steels etc"),
        ("  well-known —  and\tso on ", "well known and so on"),
        ("It\N{RIGHT SINGLE QUOTATION MARK}s a café!", "it's a cafe!"),
        ("1 2 three", "three"),
        ("«Why?»", "why?"),
        ("¿?-?", "? ?"),
        ("wait…what, well...I think..so", "wait what well i think so"),
        ("and/or a:b c_d\N{ZERO WIDTH SPACE}e f\N{MINUS SIGN}g so\N{SOFT HYPHEN}ft", "and or a b c d e f g soft"),
        ("don`t don´t donʼt don‘t don′t ‘tis", "don't don't don't don't don't tis"),
        ("U.S. Straße, Łódź, encyclopædia", "us strasse lodz encyclopaedia"),
    ],
)
def test_one_spelling(published: str, spelt: str):
    assert normalise_text(published) == spelt


@given(st.text())
def test_a_normalised_text_can_be_encoded_and_stays_as_it_is(text: str):
    spelt = normalise_text(text)
    assert set(spelt) <= set(CHARACTERS)
    assert normalise_text(spelt) == spelt
    assert Alphabet().decode(Alphabet().encode(spelt)) == spelt
