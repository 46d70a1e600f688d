"""Each augmentation by a property that its name promises."""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from speech.audio import SAMPLE_RATE, Waveform
from speech.features import N_BINS, spectrogram
from tests.conftest import RATE, make_sound
from training.augment import (
    BACKGROUNDS,
    CODECS,
    Augmentation,
    add_arguments,
    background,
    code,
    emphasise,
    reverberate,
    shift_pitch,
    stretch,
    telephone,
    trim,
    warp_frequencies,
)
from training.dataset import Clip, Utterance

HERTZ_PER_BIN = SAMPLE_RATE / 2 / (N_BINS - 1)
OFF = Augmentation(speed_probability=0, noise_probability=0, time_masks=0, frequency_masks=0)
ON = [
    replace(OFF, trim_probability=1),
    replace(OFF, speed_probability=1),
    replace(OFF, pitch_probability=1),
    replace(OFF, reverb_probability=1),
    *(replace(OFF, background_probability=1, background_kinds=(kind,)) for kind in BACKGROUNDS),
    replace(OFF, tilt_probability=1),
    replace(OFF, noise_probability=1),
    replace(OFF, gain_probability=1),
    replace(OFF, telephone_probability=1),
    *(replace(OFF, codec_probability=1, codec_kinds=(kind,)) for kind in CODECS),
]


def test_a_tilt_raises_or_lowers_treble_and_keeps_the_rest():
    low, high = tone(100), tone(8000)
    for amount, bass, treble in ((0.9, 0.1, 1.8), (-0.4, 1.4, 0.75)):
        assert (
            rms(emphasise(low, amount)) / rms(low)
            == pytest.approx(abs(1 - amount), rel=0.1)
            == pytest.approx(bass, rel=0.1)
        )
        assert rms(emphasise(high, amount)) / rms(high) == pytest.approx(treble, rel=0.1)
    assert np.array_equal(emphasise(high, 0), high)


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    """The sample that the project made: float32 (n,)."""
    samples, rate = soundfile.read(Path(__file__).parents[1] / "samples" / "hello.wav", dtype="float32")
    assert rate == RATE
    return samples


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(RATE * seconds)) / RATE)).astype(np.float32)


def share_above(samples: np.ndarray, hertz: float) -> float:
    """Part of the energy above a frequency."""
    power = np.square(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))))
    return float(power[int(hertz * len(samples) / RATE) :].sum() / power.sum())


def test_the_defaults_do_what_they_did_before_there_were_more_kinds(spoken: np.ndarray):
    rng, then = np.random.default_rng(5), np.random.default_rng(5)
    for _ in range(8):
        expected = spoken
        if then.random() < 0.5:
            expected = soxr.resample(expected, RATE * (1 + then.uniform(-0.1, 0.1)), RATE, quality="LQ")
        if then.random() < 0.3:
            level = 10 ** (then.uniform(-85, -45) / 20)
            expected = expected + level * then.standard_normal(len(expected), dtype=np.float32)
        assert np.array_equal(Augmentation().sound(spoken, rng), expected.astype(np.float32))


@pytest.mark.parametrize("kind", ON, ids=repr)
def test_every_kind_depends_on_its_seed_and_changes_the_sound(kind: Augmentation, spoken: np.ndarray):
    before = spoken.copy()
    one, again, other = (kind.sound(spoken, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.dtype == np.float32
    assert np.array_equal(one, again)
    assert not np.array_equal(one, spoken)
    assert np.array_equal(one, other) == (kind.telephone_probability > 0), "all but the telephone have more than one"
    assert np.isfinite(one).all()
    assert np.array_equal(spoken, before), "what is cached stays as it is"


@pytest.mark.parametrize("kind", ON, ids=repr)
@pytest.mark.parametrize(
    "sound", [np.zeros(3000, np.float32), np.zeros(300, np.float32), tone(200, 0.02), tone(90) / 0.3]
)
def test_silence_short_and_loud_clips_survive_every_kind(kind: Augmentation, sound: np.ndarray):
    heard = kind.sound(sound, np.random.default_rng(0))
    assert np.isfinite(heard).all()
    assert 0.9 * len(sound) - 1 <= len(heard) <= len(sound) / 0.9 + 1


def test_everything_at_once(spoken: np.ndarray):
    probabilities = {switch.name: 1.0 for switch in fields(Augmentation) if switch.name.endswith("probability")}
    heard = Augmentation(**probabilities).sound(spoken, np.random.default_rng(0))
    assert 0.8 * len(spoken) < len(heard) < 1.15 * len(spoken)
    assert np.isfinite(heard).all()


@pytest.mark.parametrize("semitones", [-4.0, -1.0, 2.5, 4.0])
def test_pitch_moves_and_length_and_level_stay(semitones: float):
    sound = tone(300)
    heard = shift_pitch(sound, semitones)
    assert len(heard) == len(sound)
    assert rms(heard) == pytest.approx(rms(sound), rel=0.03)
    peak = np.abs(np.fft.rfft(heard * np.hanning(len(heard)))).argmax() * RATE / len(heard)
    assert peak == pytest.approx(300 * 2 ** (semitones / 12), abs=2)


@pytest.mark.parametrize("factor", [0.85, 1.0, 1.15])
def test_a_vocal_tract_moves_what_is_below_its_knee_and_keeps_the_pace_and_the_ends(factor: float):
    sound = sum(np.sin(2 * np.pi * hertz * np.arange(8000) / SAMPLE_RATE) for hertz in (800, 2500))
    frames = spectrogram(Waveform((0.1 * sound).astype(np.float32))).frames
    warped = warp_frequencies(frames, factor)
    assert warped.shape == frames.shape
    assert warped.dtype == np.float32
    assert np.allclose(warped.mean(axis=1), 0, atol=1e-5)
    assert np.allclose(warped.std(axis=1), 1, atol=1e-4)
    for hertz in (800, 2500):
        near = slice(int(0.7 * hertz / HERTZ_PER_BIN), int(1.3 * hertz / HERTZ_PER_BIN))
        peak = (near.start + warped.mean(axis=0)[near].argmax()) * HERTZ_PER_BIN
        assert peak == pytest.approx(hertz * factor, abs=1.1 * HERTZ_PER_BIN)
    noise = np.random.default_rng(0).standard_normal((50, N_BINS), np.float32)
    ends = [warp_frequencies(noise, factor)[:, end] for end in (0, -1)]
    assert [np.corrcoef(end, noise[:, at])[0, 1] for end, at in zip(ends, (0, -1), strict=True)] > [0.98, 0.98]
    if factor == 1:
        assert np.allclose(warped, frames, atol=1e-5)


def test_a_vocal_tract_is_drawn_by_lot(spoken: np.ndarray):
    frames = spectrogram(Waveform(spoken)).frames
    every = replace(OFF, vocal_tract_probability=1)
    one, again, other = (every.vocal_tract(frames, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.allclose(one, other)
    assert np.array_equal(OFF.vocal_tract(frames, np.random.default_rng(0)), frames)


def test_stretching_moves_what_happens_and_keeps_its_pitch():
    sound = np.concatenate([tone(400, 0.5), 0 * tone(400, 0.5), tone(400, 0.5)])
    heard = stretch(sound, 2 * len(sound))
    assert len(heard) == 2 * len(sound)
    loud = np.array([np.abs(part).max() > 0.1 for part in np.array_split(heard, 60)])  # of 50 ms each
    expected = np.repeat([True, False, True], 20)
    assert (loud != expected).sum() <= 2
    peak = np.abs(np.fft.rfft(heard[:RATE])).argmax()
    assert peak == pytest.approx(400, abs=2)


@pytest.mark.parametrize("seconds", [0.2, 0.6])
def test_a_room_decays_by_60_db_in_its_time(seconds: float):
    click = np.zeros(RATE, np.float32)
    click[0] = 1
    tail = np.square(reverberate(click, seconds, 0.0, np.random.default_rng(0)), dtype=np.float64)
    left = 10 * np.log10(np.cumsum(tail[1 : int(seconds * RATE)][::-1])[::-1])  # Schroeder's integral
    early, late = int(0.1 * seconds * RATE), int(0.5 * seconds * RATE)
    assert left[early] - left[late] == pytest.approx(60 * 0.4, abs=2)
    assert 10 * np.log10(tail[0] / tail[1:].sum()) == pytest.approx(0, abs=0.1), "direct over reverberant sound"


def test_a_room_is_as_loud_and_as_long(spoken: np.ndarray):
    heard = reverberate(spoken, 0.5, 3.0, np.random.default_rng(0))
    assert len(heard) == len(spoken)
    assert rms(heard) == pytest.approx(rms(spoken), rel=1e-3)


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_backgrounds_lie_as_far_below_the_speech_as_asked_for(kind: str, spoken: np.ndarray):
    asked = replace(OFF, background_probability=1, background_kinds=(kind,), background_db=(12.0, 12.0))
    noise = asked.sound(spoken, np.random.default_rng(3)) - spoken
    assert 20 * np.log10(rms(spoken) / rms(noise)) == pytest.approx(12, abs=0.1)


def test_backgrounds_have_their_colours(spoken: np.ndarray):
    rng = np.random.default_rng(0)
    white, pink, babble = (background(kind, spoken, rng) for kind in BACKGROUNDS)

    def octave(noise: np.ndarray, hertz: float) -> float:
        return share_above(noise, hertz) - share_above(noise, 2 * hertz)

    assert octave(white, 2000) / octave(white, 500) == pytest.approx(4, rel=0.15)
    assert octave(pink, 2000) / octave(pink, 500) == pytest.approx(1, rel=0.25)
    assert share_above(babble, 4000) < 0.5 * share_above(white, 4000), "babble has the spectrum of speech"
    assert abs(np.corrcoef(babble, spoken)[0, 1]) < 0.1


def test_a_telephone_has_its_band(spoken: np.ndarray):
    white = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    line = telephone(white)
    assert len(line) == len(white)
    assert share_above(line, 4100) < 1e-4
    assert 1 - share_above(line, 150) < 0.01
    assert rms(telephone(tone(1000))) == pytest.approx(rms(tone(1000)), rel=0.05)
    assert share_above(spoken, 4100) > 1e-3, "the clip had something there"


@pytest.mark.parametrize("kind", CODECS)
def test_codecs_keep_time_and_lose_more_the_smaller_they_are(kind: str, spoken: np.ndarray):
    errors = []
    for compression in (0.1, 0.9):
        heard = code(spoken, kind, compression)
        assert len(heard) == len(spoken)
        shifted = [rms(spoken[5:-5] - heard[5 + k : len(heard) - 5 + k]) for k in range(-5, 6)]
        assert abs(np.argmin(shifted) - 5) <= 1, "no delay, but for Opus' sample"
        errors.append(min(shifted) / rms(spoken))
    assert 0.001 < errors[0] < errors[1] < 0.5


def test_gain_is_a_factor_and_clips_at_full_scale(spoken: np.ndarray):
    quieter = replace(OFF, gain_probability=1, gain_db=(-6.0, -6.0)).sound(spoken, np.random.default_rng(0))
    assert np.allclose(quieter, spoken * 10 ** (-6 / 20))
    louder = replace(OFF, gain_probability=1, gain_db=(40.0, 40.0)).sound(spoken, np.random.default_rng(0))
    assert np.abs(louder).max() == 1


def test_only_quiet_ends_are_trimmed(spoken: np.ndarray):
    quiet = np.zeros(5000, np.float32)
    sound = np.concatenate([quiet, tone(300), quiet[:3000]])
    assert np.abs(len(trim(sound, 1.0, 1.0)) - RATE) < 5
    assert len(trim(sound, 0.5, 0.0)) == pytest.approx(len(sound) - 2500, abs=5)
    assert np.array_equal(trim(sound, 0.0, 0.0), sound)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Thirty clips of 0.5 to 2 s, each with a text of its own."""
    utterances = [Utterance(str(i), Path(), f"text {i}", "made", "", "") for i in range(30)]
    return [Clip(u, make_sound(0.5 + 0.05 * i, i), u.text) for i, u in enumerate(utterances)]


def joined(clips: list[Clip], probability: float, seconds: float, seed: int = 0) -> Iterator[tuple[Clip, Clip]]:
    """Pairs of a clip before and after."""
    made = replace(OFF, join_probability=probability).join(clips, seconds, np.random.default_rng(seed))
    return zip(clips, made, strict=True)


def test_without_speech_a_background_is_left(spoken: np.ndarray):
    for kind in BACKGROUNDS:
        alone = replace(OFF, background_kinds=(kind,))
        heard = alone.sound(spoken, np.random.default_rng(0), speech=False)
        assert len(heard) == len(spoken)
        assert rms(heard) == pytest.approx(rms(spoken), rel=0.01)
        assert abs(np.corrcoef(heard, spoken)[0, 1]) < 0.1


def test_some_clips_lose_their_text_by_lot(clips: list[Clip]):
    rng = np.random.default_rng(0)
    assert replace(OFF, nothing_probability=0).silence(clips, rng) == clips
    many = replace(OFF, nothing_probability=0.3).silence(clips * 200, rng)
    assert sum(not clip.text for clip in many) / len(many) == pytest.approx(0.3, abs=0.08)
    assert all(clip.samples is before.samples for clip, before in zip(many, clips * 200, strict=True))


def test_joined_clips_are_both_clips_and_both_texts(clips: list[Clip]):
    by_text = {clip.text: clip for clip in clips}
    for first, both in joined(clips, 1.0, 100.0):
        second = by_text[both.text.removeprefix(f"{first.text} ")]
        assert np.array_equal(np.asarray(both.samples), np.concatenate([first.samples, second.samples]))
        assert both.seconds == pytest.approx(first.seconds + second.seconds)


def test_clips_are_joined_by_lot_and_within_bounds(clips: list[Clip]):
    assert all(after is before for before, after in joined(clips, 0.0, 100.0))
    bounded = [after for before, after in joined(clips, 1.0, 2.0) if after is not before]
    assert bounded
    assert all(clip.seconds <= 2.0 for clip in bounded)
    often = [sum(a is not b for b, a in joined(clips, 0.3, 100.0, seed)) for seed in range(40)]
    assert np.mean(often) == pytest.approx(0.3 * len(clips), rel=0.15)
    again = [after.text for _, after in joined(clips, 0.5, 100.0, 7)]
    assert again == [after.text for _, after in joined(clips, 0.5, 100.0, 7)]


def test_every_field_has_a_switch_on_the_command_line():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert Augmentation.of(parser.parse_args([])) == Augmentation()
    line = "--pitch-probability 0.3 --reverb-seconds 0.2 1 --codec-kinds mp3 --time-masks 0 --speed-range 0.15"
    expected = {**asdict(Augmentation()), "pitch_probability": 0.3, "reverb_seconds": (0.2, 1.0)}
    expected |= {"codec_kinds": ("mp3",), "time_masks": 0, "speed_range": 0.15}
    assert asdict(Augmentation.of(parser.parse_args(line.split()))) == expected
    assert "--telephone-probability" in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args(["--codec-kinds", "gsm"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"pitch_probability": 1.5},
        {"speed_range": 1.0},
        {"vocal_tract_range": 1.0},
        {"noise_db": (-10.0, -20.0)},
        {"codec_compression": (0.1, 1.0)},
    ],
)
def test_what_no_clip_could_be_given_is_refused(wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)
