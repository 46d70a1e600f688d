"""Words and segments: hand-made paths, and what must hold for any network's output."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from speech.alphabet import Alphabet
from speech.ctc import LAG, LEAD, SECONDS_PER_STEP, LogProbs, Word, decode_greedy
from speech.segments import join, segments

ALPHABET = Alphabet()


def path(written: str, probability: float = 0.8) -> LogProbs:
    """Log-probabilities whose best path is the string: '_' the blank, '0' label 0, other characters themselves."""
    labels = [ALPHABET.blank if c == "_" else 0 if c == "0" else ALPHABET.encode(c)[0] for c in written]
    values = np.full((len(labels), ALPHABET.size), np.log((1 - probability) / (ALPHABET.size - 1)), np.float32)
    values[np.arange(len(labels)), labels] = np.log(probability)
    return LogProbs(values)


def said(text: str, *gaps: float, length: float = 0.3) -> list[Word]:
    """Words of equal length; the gap before each, 0.1 s where none is given."""
    words, now = [], 0.0
    for word, gap in zip(text.split(), [*gaps, *[0.1] * len(text)], strict=False):
        words.append(Word(word, now + gap, now + gap + length, 0.5))
        now += gap + length
    return words


def test_times_are_those_of_the_steps_that_wrote_and_a_little_around():
    found = decode_greedy(path(40 * "_" + "hh_i" + 40 * "_" + " " + 40 * "_" + "b_y__e_"), ALPHABET, duration=3.0).words
    steps = [((w.start + LEAD) / SECONDS_PER_STEP, (w.end - LAG) / SECONDS_PER_STEP) for w in found]
    assert [w.text for w in found] == ["hi", "bye"]
    assert np.array(steps) == pytest.approx(np.array([(40, 44), (125, 131)]))
    assert [w.confidence for w in found] == pytest.approx([0.8, 0.8])


def test_confidence_is_the_geometric_mean_of_the_steps_of_the_word():
    values = path("a b").values.copy()
    values[2, ALPHABET.encode("b")[0]] = np.log(0.5)
    found = decode_greedy(LogProbs(values), ALPHABET, duration=1.0).words
    assert [w.confidence for w in found] == pytest.approx([0.8, 0.5])
    assert join(found).confidence == pytest.approx(0.4**0.5)
    assert join([Word("abc", 0, 1, 0.5), Word("d", 1, 2, 1.0)]).confidence == pytest.approx(0.5**0.75)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("aa_a", ["aa"]),
        ("a0a", ["aa"]),  # label 0 ends a repeat as the blank does
        ("  a  _ b ", ["a", "b"]),
        ("a__b", ["ab"]),
        ("what?_!", ["what?!"]),
        ("___", []),
        (" _ ", []),
        ("", []),
    ],
)
def test_repeats_blanks_and_spaces(written: str, words: list[str]):
    assert [w.text for w in decode_greedy(path(written), ALPHABET, 1.0).words] == words


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(0, 60), st.just(6)), elements=st.floats(-9, 0, width=32)),
    st.floats(0, 1),
)
def test_any_output_gives_the_text_of_greedy_decoding_in_order(values: np.ndarray, duration: float):
    alphabet = Alphabet("ab' ")
    found = decode_greedy(LogProbs(values), alphabet, duration).words
    transcript = decode_greedy(LogProbs(values), alphabet)
    assert " ".join(w.text for w in found) == transcript.text
    times = [t for w in found for t in (w.start, w.end)]
    assert times == sorted(times)
    assert all(0 <= t <= duration for t in times)
    assert all(0 < w.confidence <= 1 for w in found)


def test_a_segment_ends_at_a_pause():
    found = segments(said("a b c d", 0.5, 0.1, 1.0))
    assert [s.text for s in found] == ["a b", "c d"]
    assert (found[0].start, found[1].start) == (0.5, pytest.approx(2.2))
    assert found[0].end == found[0].words[-1].end


def test_a_long_one_is_cut_at_the_longest_pause_of_its_second_half():
    found = segments(said("a b c d e f g h i j", 0, 0.7, 0.1, 0.1, 0.1, 0.4), max_seconds=3)
    assert [s.text for s in found] == ["a b c d e", "f g h i j"]


def test_equal_pauses_are_cut_as_late_as_possible():
    assert [len(s.words) for s in segments(said("a b c d e f g h", *[0.1] * 8), max_seconds=1.95)] == [5, 3]


def test_no_words_are_no_segments():
    assert segments(()) == ()


class Handed(list[Word]):
    """Words that count how many of themselves are handed out."""

    count = 0

    def __getitem__(self, place):
        found = super().__getitem__(place)
        Handed.count += len(found) if isinstance(place, slice) else 1
        return Handed(found) if isinstance(place, slice) else found


def test_a_long_breath_costs_no_more_for_each_word():
    """An hour without a pause took a minute, when each word looked at all before it again."""
    Handed.count = 0
    found = segments(Handed(said("w " * 5000)))
    assert sum(len(s.words) for s in found) == 5000
    assert Handed.count < 50 * 5000


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0.01, 9)), max_size=60), st.floats(0.1, 2), st.floats(0.5, 10))
def test_segments_hold_every_word_and_keep_their_limits(times, max_gap: float, max_seconds: float):
    words, now = [], 0.0
    for gap, length in times:
        words.append(Word("w", now + gap, now + gap + length, 0.5))
        now += gap + length
    found = segments(words, max_gap, max_seconds)
    assert [w for s in found for w in s.words] == words
    for segment in found:
        assert len(segment.words) == 1 or segment.end - segment.start <= max_seconds
        assert all(b.start - a.end <= max_gap for a, b in pairwise(segment.words))
