"""What may happen to a clip before the network hears it again."""

from dataclasses import dataclass

import numpy as np
import soxr

from speech.audio import SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How much of each: probabilities are per clip, 0 switches the kind off."""

    speed_probability: float = 0.5
    speed_range: float = 0.1  # 0.9 … 1.1 times as fast, pitch with it
    noise_probability: float = 0.3
    noise_db: tuple[float, float] = (-85.0, -45.0)  # white noise, relative to full scale
    time_masks: int = 2
    time_mask_frames: int = 30  # at most, 7.26 ms each
    frequency_masks: int = 2
    frequency_mask_bins: int = 20  # at most, of 193

    def sound(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Speed and noise on float32 (n,) samples in [-1, 1)."""
        if rng.random() < self.speed_probability:
            speed = 1 + rng.uniform(-self.speed_range, self.speed_range)
            samples = soxr.resample(samples, SAMPLE_RATE * speed, SAMPLE_RATE, quality="LQ")
        if rng.random() < self.noise_probability:
            level = 10 ** (rng.uniform(*self.noise_db) / 20)
            samples = samples + level * rng.standard_normal(len(samples), dtype=np.float32)
        return samples.astype(np.float32, copy=False)

    def spectrum(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """SpecAugment masks on float32 (n_frames, 193), set to the mean, 0 (https://arxiv.org/abs/1904.08779)."""
        frames = frames.copy()
        n_frames, n_bins = frames.shape
        for _ in range(self.time_masks):
            width = int(rng.integers(0, min(self.time_mask_frames, n_frames // 10) + 1))
            start = int(rng.integers(0, n_frames - width + 1))
            frames[start : start + width] = 0
        for _ in range(self.frequency_masks):
            width = int(rng.integers(0, self.frequency_mask_bins + 1))
            start = int(rng.integers(0, n_bins - width + 1))
            frames[:, start : start + width] = 0
        return frames
