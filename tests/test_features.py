"""Spectrograms, against TensorFlow's own."""

import numpy as np
import pytest

from speech.audio import Waveform, from_pcm16
from speech.errors import AudioTooShort
from speech.features import BLOCK, count_frames, spectrogram
from tests.conftest import make_sound


def keras_io_spectrogram(samples: np.ndarray) -> np.ndarray:
    """The features of the keras.io example, word for word."""
    import tensorflow as tf

    stft = tf.signal.stft(samples, frame_length=256, frame_step=160, fft_length=384)
    magnitude = tf.math.pow(tf.abs(stft), 0.5)
    means = tf.math.reduce_mean(magnitude, 1, keepdims=True)
    deviations = tf.math.reduce_std(magnitude, 1, keepdims=True)
    return ((magnitude - means) / (deviations + 1e-10)).numpy()


@pytest.mark.parametrize("seconds", [0.0117, 0.3, 8.0])
def test_equals_tensorflow(seconds: float):
    waveform = from_pcm16(make_sound(seconds))
    frames = spectrogram(waveform).frames
    assert frames.dtype == np.float32
    np.testing.assert_allclose(frames, keras_io_spectrogram(waveform.samples), atol=1e-3)


def test_silence_is_finite():
    frames = spectrogram(Waveform(np.zeros(5000, np.float32))).frames
    assert np.array_equal(frames, np.zeros_like(frames))


def test_a_block_more_changes_nothing():
    waveform = from_pcm16(make_sound((BLOCK + 10) * 160 / 22050))
    shifted = Waveform(waveform.samples[160 * 7 :])
    np.testing.assert_allclose(spectrogram(waveform).frames[7:], spectrogram(shifted).frames, atol=1e-5)


@pytest.mark.parametrize(("n_samples", "n_frames"), [(0, 0), (255, 0), (256, 1), (415, 1), (416, 2), (22050, 137)])
def test_number_of_frames(n_samples: int, n_frames: int):
    assert count_frames(n_samples) == n_frames
    if n_frames:
        assert spectrogram(Waveform(np.zeros(n_samples, np.float32))).frames.shape == (n_frames, 193)
    else:
        with pytest.raises(AudioTooShort, match=f"expected at least 256 samples, found {n_samples}"):
            spectrogram(Waveform(np.zeros(n_samples, np.float32)))
