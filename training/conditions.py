"""What a recording is like, and what it would be like under worse conditions: all made here, the same on each run."""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import soxr

from speech.audio import SAMPLE_RATE
from training import augment

FRAME = SAMPLE_RATE // 50  # samples, 20 ms
BABBLE_VOICES = 6
DIRECT_TO_REVERBERANT = 3.0  # dB
LOUDEST = 0.99  # what the noise would drive beyond it is made softer as a whole

Condition = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # float32 (n,) in [-1, 1), another (m,) out


def signal_to_noise(samples: np.ndarray) -> float:
    """Estimated signal-to-noise ratio in dB, of float32 (n,) samples.

    The tenth percentile of the powers of 20 ms frames is taken for the noise, as if a tenth of the clip were pauses;
    what the mean power exceeds it by, for the speech. Steady sound gives 0 or less, at most 100 comes out.
    """
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    if not len(frames):
        return 0.0
    powers = np.mean(frames**2, axis=1)
    noise = max(float(np.percentile(powers, 10)), 1e-10)
    return float(np.clip(10 * np.log10(max(powers.mean() - noise, 1e-10) / noise), -10, 100))


def noise(kind: str, snr: float) -> Condition:
    """White or pink noise."""
    return lambda samples, rng: augment.mix(samples, augment.background(kind, samples, rng), snr)


def babble(voices: Sequence[np.ndarray], snr: float) -> Condition:
    """Several of the voices (int16 (n,) each) at once, each as loud as the others, repeated where they end."""

    def degrade(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        chosen = [np.asarray(voices[i], np.float64) for i in rng.integers(0, len(voices), BABBLE_VOICES)]
        starts = [rng.integers(0, len(voice)) for voice in chosen]
        talk = [
            np.resize(np.roll(v, -s) / max(v.std(), 1.0), len(samples)) for v, s in zip(chosen, starts, strict=True)
        ]
        return augment.mix(samples, np.sum(talk, axis=0, dtype=np.float32), snr)

    return degrade


def room(seconds: float) -> Condition:
    """A room whose sound falls by 60 dB in so many seconds, all in all 3 dB softer than the direct sound."""
    return lambda samples, rng: augment.reverberate(samples, seconds, DIRECT_TO_REVERBERANT, rng)


def speed(factor: float) -> Condition:
    """So many times as fast, pitch with it."""
    return lambda samples, rng: soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE)


def conditions(voices: Sequence[np.ndarray]) -> dict[str, Condition]:
    """The rows of the robustness table; the babble is made of the voices given."""
    return {
        **{f"{kind} noise, {snr} dB": noise(kind, snr) for kind in ("white", "pink") for snr in (20, 10, 5)},
        **{f"babble, {snr} dB": babble(voices, snr) for snr in (20, 10, 5)},
        "telephone, 300–3400 Hz": lambda samples, _: augment.telephone(samples),
        **{f"room, reverberation {seconds} s": room(seconds) for seconds in (0.3, 0.8)},
        **{f"speed {100 * factor - 100:+.0f} %": speed(factor) for factor in (0.9, 1.1)},
    }


def apply(condition: Condition, samples: np.ndarray, name: str) -> np.ndarray:
    """The clip under the condition as 16-bit samples, int16 in and out; the same for the same name, always."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    degraded = condition(samples.astype(np.float32) / 32768, rng)
    degraded = degraded / max(1.0, float(np.abs(degraded).max()) / LOUDEST)
    return np.clip(np.rint(degraded * 32768), -32768, 32767).astype(np.int16)
