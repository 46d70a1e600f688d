"""Word times fitted to what is heard, on sound whose edges are known."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.audio import SAMPLE_RATE, Waveform
from speech.ctc import SECONDS_PER_STEP, Word, widened
from speech.pauses import fitted, levels

EDGES = [(0.5, 0.9), (1.2, 1.6), (1.65, 2.0), (2.6, 3.1)]  # seconds of sound; the third follows without a pause


def sound(background: float) -> Waveform:
    """A buzz at -20 dB between EDGES, and white noise of so many dB under everything."""
    rng = np.random.default_rng(0)
    samples = 10 ** (background / 20) * rng.normal(size=round(3.8 * SAMPLE_RATE))
    for start, end in EDGES:
        place = slice(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
        samples[place] += 0.1 * np.sign(np.sin(np.arange(place.stop - place.start) * 0.03))
    return Waveform(samples.astype(np.float32))


def heard() -> tuple[Word, ...]:
    """What the network writes of it: early or late, always inside."""
    return widened([Word("word", start + 0.1, end - 0.15, 0.9) for start, end in EDGES], 3.8)


@pytest.mark.parametrize("background", [-120.0, -70.0, -45.0])
def test_a_word_lasts_as_long_as_its_sound(background: float):
    wide = heard()
    found = fitted(wide, levels(sound(background)), 3.8)
    times = [time for word in (found[0], found[3]) for time in (word.start, word.end)]
    assert times == pytest.approx([0.5, 0.9, 2.6, 3.1], abs=SECONDS_PER_STEP)
    assert (found[1].start, found[2].end) == pytest.approx((1.2, 2.0), abs=SECONDS_PER_STEP)
    assert (found[1].end, found[2].start) == pytest.approx((wide[1].end, wide[2].start))
    assert [(word.text, word.confidence) for word in found] == [("word", 0.9)] * 4


@pytest.mark.parametrize("background", [-30.0, -20.0])
def test_where_the_background_is_loud_the_sound_does_not_tell(background: float):
    assert fitted(heard(), levels(sound(background)), 3.8) == heard()


def test_what_is_shorter_than_a_pause_is_none():
    loud = np.full(200, -20, np.float32)
    loud[90:92] = loud[:12] = -80
    said = widened([Word("a", 0.5, 1.0, 1.0), Word("b", 2.0, 2.5, 1.0)], 2.9)
    found = fitted(said, loud)
    assert (found[0].end, found[1].start) == (said[0].end, said[1].start)
    loud[92] = -80
    assert fitted(said, loud)[0].end == pytest.approx(90 * SECONDS_PER_STEP)


def test_levels_are_decibels():
    assert levels(Waveform(np.full(1000, 0.1, np.float32))) == pytest.approx(-20, abs=1e-4)
    assert levels(Waveform(np.zeros(700, np.float32))) == pytest.approx([-100.0] * 2)
    assert len(levels(Waveform(np.zeros(100, np.float32)))) == 0


@given(
    st.lists(st.floats(0, 3), max_size=12).map(sorted),
    st.lists(st.sampled_from([-90.0, -60.0, -25.0, -20.0]), max_size=220),
)
def test_fitted_words_stay_in_order_and_hold_what_was_written(times: list[float], loud: list[float]):
    written = [Word("a", start, end, 1.0) for start, end in zip(times[::2], times[1::2], strict=False)]
    found = fitted(widened(written, 3.0), np.array(loud, np.float32), 3.0)
    edges = [time for word in found for time in (word.start, word.end)]
    assert all(before <= after + 1e-9 for before, after in pairwise(edges))
    assert all(f.start <= w.start + 1e-9 and w.end <= f.end + 1e-9 for f, w in zip(found, written, strict=True))
    assert all(-1e-9 <= edge <= 3.0 + 1e-9 for edge in edges)
