"""Spectrograms: what the network hears."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speech.audio import SAMPLE_RATE, Waveform
from speech.errors import AudioTooShort

FRAME_LENGTH = 256  # samples, 11.6 ms
FRAME_STEP = 160  # samples, 7.26 ms
FFT_LENGTH = 384  # samples
N_BINS = FFT_LENGTH // 2 + 1  # 193
SECONDS_PER_FRAME = FRAME_STEP / SAMPLE_RATE  # 7.26 ms
EPSILON = 1e-10  # added to the standard deviation, so that digital silence gives zeros
BLOCK = 192  # frames transformed at once: their arrays stay in the cache, and too small to be mapped anew each time

# The periodic Hann window of tf.signal.stft; numpy.hanning is symmetric and shifts the features.
WINDOW = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME_LENGTH) / FRAME_LENGTH)).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Spectrogram:
    """Normalised square-root magnitudes: ``frames`` is float32 (n_frames, 193)."""

    frames: npt.NDArray[np.float32]

    @property
    def n_frames(self) -> int:
        """Number of frames, one every 160 samples (7.26 ms)."""
        return len(self.frames)


def count_frames(n_samples: int) -> int:
    """Frames that fit into so many samples, without padding; 0 if not even one does."""
    return max(0, 1 + (n_samples - FRAME_LENGTH) // FRAME_STEP)


def covered_seconds(n_frames: int) -> float:
    """Seconds of sound that so many frames hear: what a waveform has beyond them is less than one step."""
    return ((n_frames - 1) * FRAME_STEP + FRAME_LENGTH) / SAMPLE_RATE


def check_length(waveform: Waveform) -> None:
    """Raise AudioTooShort if the waveform has fewer than 256 samples: not even one frame."""
    if not count_frames(len(waveform.samples)):
        raise AudioTooShort(f"expected at least {FRAME_LENGTH} samples, found {len(waveform.samples)}")


def spectrogram(waveform: Waveform) -> Spectrogram:
    """Short-time Fourier transform of a waveform, as the keras.io CTC example makes it.

    Periodic Hann window, magnitude, square root, then each frame is normalised to zero mean and unit standard
    deviation over its 193 bins. Source: https://keras.io/examples/audio/ctc_asr/ and tf.signal.stft.

    Raises:
        AudioTooShort: the waveform has fewer than 256 samples.
    """
    check_length(waveform)
    n_frames = count_frames(len(waveform.samples))
    windows = np.lib.stride_tricks.sliding_window_view(waveform.samples, FRAME_LENGTH)[::FRAME_STEP]
    frames = np.empty((n_frames, N_BINS), np.float32)
    for start in range(0, n_frames, BLOCK):
        block = frames[start : start + BLOCK]
        np.abs(np.fft.rfft(windows[start : start + BLOCK] * WINDOW, FFT_LENGTH), out=block)
        np.sqrt(block, out=block)
        block -= block.mean(axis=1, keepdims=True)
        block /= np.sqrt(np.einsum("ij,ij->i", block, block) / N_BINS)[:, None] + EPSILON
    return Spectrogram(frames)
