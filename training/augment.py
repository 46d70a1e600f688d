"""What may happen to a clip before the network hears it again."""

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from scipy import fft, signal

from speech.audio import SAMPLE_RATE
from speech.features import EPSILON, N_BINS
from training.dataset import Clip

T = TypeVar("T")
Sound = npt.NDArray[np.float32]

WSOLA_FRAME = 662  # samples, 30 ms; two of them overlap
WSOLA_SEARCH = 176  # samples to either side, 8 ms: more than half a period of a low voice
WSOLA_WINDOW = signal.windows.hann(WSOLA_FRAME, sym=False).astype(np.float32)
QUIET = 0.01  # of a clip's peak, -40 dB: what trimming may take away
TELEPHONE_RATE = 8000  # Hz
TELEPHONE_BAND = signal.butter(4, (300, 3400), "bandpass", fs=TELEPHONE_RATE, output="sos")
MASKS = {
    "time_masks": 100,
    "time_mask_frames": 10_000,
    "frequency_masks": 100,
    "frequency_mask_bins": N_BINS,
}  # at most
TRACT_HERTZ = 4800  # above the formants that a longer or shorter vocal tract moves
MU = 255  # of G.711's µ-law
BACKGROUNDS = ("white", "pink", "babble")
CODECS = {"mp3": ("MP3", "MPEG_LAYER_III", 22050), "opus": ("OGG", "OPUS", 24000)}  # format, subtype, rate in Hz


def _switch(default: T, help: str, choices: Sequence[str] = ()) -> T:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How much of each: probabilities are per clip, 0 switches the kind off, and what is off draws nothing by lot."""

    join_probability: float = _switch(0.0, "another clip follows, with its text, up to the longest clip allowed")
    nothing_probability: float = _switch(0.0, "instead of the clip a background alone is heard, and no text expected")
    trim_probability: float = _switch(0.0, "some of the quiet at the ends is cut off")
    speed_probability: float = _switch(0.5, "faster or slower, pitch with it")
    speed_range: float = _switch(0.1, "0.1: 0.9 … 1.1 times as fast")
    pitch_probability: float = _switch(0.0, "higher or lower, as long as before")
    pitch_semitones: float = _switch(3.0, "at most, up or down")
    reverb_probability: float = _switch(0.0, "a simulated room")
    reverb_seconds: tuple[float, float] = _switch((0.1, 0.7), "until the room is 60 dB quieter")
    reverb_db: tuple[float, float] = _switch((0.0, 15.0), "the direct sound over the room's")
    background_probability: float = _switch(0.0, "something else is heard")
    background_kinds: tuple[str, ...] = _switch(BACKGROUNDS, "one of these", BACKGROUNDS)
    background_db: tuple[float, float] = _switch((5.0, 30.0), "the speech over the background")
    tilt_probability: float = _switch(0.0, "another microphone: treble raised or lowered")
    tilt: tuple[float, float] = _switch(
        (-0.4, 0.9), "so much of the sample before is taken away; 0.9: the bass is 25 dB softer against 11 kHz"
    )
    noise_probability: float = _switch(0.3, "a floor of white noise")
    noise_db: tuple[float, float] = _switch((-85.0, -45.0), "of the floor, relative to full scale")
    gain_probability: float = _switch(0.0, "louder or quieter; what passes full scale is clipped")
    gain_db: tuple[float, float] = _switch((-20.0, 10.0), "louder")
    telephone_probability: float = _switch(0.0, "300 … 3400 Hz, 8 kHz, µ-law")
    codec_probability: float = _switch(0.0, "coded and decoded")
    codec_kinds: tuple[str, ...] = _switch(tuple(CODECS), "by one of these", tuple(CODECS))
    codec_compression: tuple[float, float] = _switch((0.3, 0.95), "0: best quality, nearly 1: smallest")
    vocal_tract_probability: float = _switch(0.0, "another speaker: formants and pitch move, the pace stays")
    vocal_tract_range: float = _switch(0.15, "0.15: frequencies times 0.85 … 1.15")
    time_masks: int = _switch(2, "SpecAugment")
    time_mask_frames: int = _switch(30, "at most, 7.26 ms each")
    frequency_masks: int = _switch(2, "SpecAugment")
    frequency_mask_bins: int = _switch(20, "at most, of 193")

    def __post_init__(self) -> None:
        """Raise ValueError for what no clip could be given."""
        for switch in fields(self):
            value = getattr(self, switch.name)
            if switch.name.endswith("probability") and not 0 <= value <= 1:
                raise ValueError(f"{switch.name}: expected 0 to 1, found {value}")
            if isinstance(value, tuple) and isinstance(value[0], float) and value[0] > value[1]:
                raise ValueError(f"{switch.name}: expected the lower one first, found {value}")
        for name, most in MASKS.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name}: expected 0 to {most}, found {getattr(self, name)}")
        if not 0 <= self.pitch_semitones <= 24:
            raise ValueError(f"pitch_semitones: expected 0 to 24, found {self.pitch_semitones}")
        for name in ("speed_range", "vocal_tract_range"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 or more and less than 1, found {getattr(self, name)}")
        if not 0 <= self.codec_compression[0] <= self.codec_compression[1] < 1:
            raise ValueError(f"codec_compression: expected 0 or more and less than 1, found {self.codec_compression}")

    @classmethod
    def of(cls, given: argparse.Namespace) -> "Augmentation":
        """The switches of a command line with `add_arguments`. Raises ValueError."""
        values: dict[str, Any] = {}
        for switch in fields(cls):
            value = getattr(given, switch.name)
            values[switch.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    def join(self, clips: Sequence[Clip], max_seconds: float, rng: np.random.Generator) -> list[Clip]:
        """The clips, some of them followed by another one chosen by lot if both are no longer than ``max_seconds``.

        Nothing is copied before a joined clip is heard. Cutting in two would need the times of the words.
        """
        joined = list(clips)
        for i, first in enumerate(clips):
            if _lot(self.join_probability, rng):
                second = clips[int(rng.integers(len(clips)))]
                if first.seconds + second.seconds <= max_seconds:
                    samples = cast(np.ndarray, _Joined(first.samples, second.samples))
                    joined[i] = Clip(first.utterance, samples, f"{first.text} {second.text}")
        return joined

    def silence(self, clips: Sequence[Clip], rng: np.random.Generator) -> list[Clip]:
        """The clips, some of them without their text: of these `sound` leaves no ``speech``."""
        return [Clip(c.utterance, c.samples, "") if _lot(self.nothing_probability, rng) else c for c in clips]

    def sound(self, samples: Sound, rng: np.random.Generator, speech: bool = True) -> Sound:
        """Everything that happens to float32 (n,) samples in [-1, 1): first the voice, the room, then the line."""
        if not speech:
            samples = self._background(samples, rng) * np.float32(_rms(samples))
        if _lot(self.trim_probability, rng):
            samples = trim(samples, *rng.random(2))
        if _lot(self.speed_probability, rng):
            speed = 1 + rng.uniform(-self.speed_range, self.speed_range)
            samples = soxr.resample(samples, SAMPLE_RATE * speed, SAMPLE_RATE, quality="LQ")
        if _lot(self.pitch_probability, rng):
            samples = shift_pitch(samples, rng.uniform(-self.pitch_semitones, self.pitch_semitones))
        if _lot(self.reverb_probability, rng):
            samples = reverberate(samples, rng.uniform(*self.reverb_seconds), rng.uniform(*self.reverb_db), rng)
        if _lot(self.background_probability, rng):
            samples = mix(samples, self._background(samples, rng), rng.uniform(*self.background_db))
        if _lot(self.tilt_probability, rng):
            samples = emphasise(samples, rng.uniform(*self.tilt))
        if _lot(self.noise_probability, rng):
            level = 10 ** (rng.uniform(*self.noise_db) / 20)
            samples = samples + level * rng.standard_normal(len(samples), dtype=np.float32)
        if _lot(self.gain_probability, rng):
            samples = np.clip(samples * 10 ** (rng.uniform(*self.gain_db) / 20), -1, 1)
        if _lot(self.telephone_probability, rng):
            samples = telephone(samples)
        if _lot(self.codec_probability, rng):
            kind = self.codec_kinds[rng.integers(len(self.codec_kinds))]
            samples = code(samples, kind, rng.uniform(*self.codec_compression))
        return samples.astype(np.float32, copy=False)

    def _background(self, samples: Sound, rng: np.random.Generator) -> Sound:
        return background(self.background_kinds[rng.integers(len(self.background_kinds))], samples, rng)

    def vocal_tract(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Another one for float32 (n_frames, 193), or the same."""
        if _lot(self.vocal_tract_probability, rng):
            return warp_frequencies(frames, 1 + rng.uniform(-self.vocal_tract_range, self.vocal_tract_range))
        return frames

    def masked(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """SpecAugment masks over float32 (n_frames, 193), set to the mean, 0 (https://arxiv.org/abs/1904.08779)."""
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a command line a switch for every field of `Augmentation`, such as ``--pitch-probability 0.3``."""
    group = parser.add_argument_group("augmentation", Augmentation.__doc__)
    for switch in fields(Augmentation):
        default: Any = switch.default
        options: dict[str, Any] = {"type": type(default)}
        if isinstance(default, tuple):
            options = {"type": type(default[0]), "nargs": "+" if switch.metadata["choices"] else 2}
        if switch.metadata["choices"]:
            options["choices"] = switch.metadata["choices"]
        text = f"{switch.metadata['help']} (default: {default})"
        group.add_argument("--" + switch.name.replace("_", "-"), default=default, help=text, **options)


class _Joined:
    """Samples of several clips, concatenated when NumPy asks for them."""

    def __init__(self, *parts: np.ndarray) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate([np.asarray(part) for part in self.parts], dtype=dtype)


def _lot(probability: float, rng: np.random.Generator) -> bool:
    return probability > 0 and rng.random() < probability


def _rms(samples: Sound) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


def _fit(samples: Sound, length: int) -> Sound:
    """Cut, or padded with zeros, to a length."""
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def trim(samples: Sound, start: float, end: float) -> Sound:
    """Without so much, 0 … 1, of the quiet before the first and behind the last sound."""
    loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max())
    if not len(loud):
        return samples
    return samples[int(start * loud[0]) : len(samples) - int(end * (len(samples) - 1 - loud[-1]))]


def shift_pitch(samples: Sound, semitones: float) -> Sound:
    """Higher by so many semitones, formants with them, and as long as before: resampled, then stretched back."""
    faster = soxr.resample(samples, SAMPLE_RATE * 2 ** (semitones / 12), SAMPLE_RATE, quality="LQ")
    return stretch(faster, len(samples))


def stretch(samples: Sound, length: int) -> Sound:
    """As many samples as asked for at the same pitch: frames are taken from where they go on best, and overlapped.

    WSOLA: Verhelst and Roelands, An overlap-add technique based on waveform similarity, ICASSP 1993.
    """
    hop = WSOLA_FRAME // 2
    n_frames = length // hop + 2
    padded = np.pad(samples, (hop + WSOLA_SEARCH, 2 * WSOLA_FRAME + 2 * WSOLA_SEARCH))
    out = np.zeros((n_frames + 1) * hop, np.float32)
    start = WSOLA_SEARCH
    for i in range(n_frames):
        if i:
            nominal = int(i * hop * len(samples) / length)  # the first sample that may be chosen
            nominal = min(nominal, len(padded) - 2 * WSOLA_SEARCH - WSOLA_FRAME)
            follows = padded[start + hop : start + 2 * hop]
            where = padded[nominal : nominal + 2 * WSOLA_SEARCH + hop]
            start = nominal + int(np.correlate(where, follows).argmax())
        out[i * hop : i * hop + WSOLA_FRAME] += WSOLA_WINDOW * padded[start : start + WSOLA_FRAME]
    return out[hop : hop + length]


def reverberate(samples: Sound, seconds: float, direct_db: float, rng: np.random.Generator) -> Sound:
    """In a room: the direct sound, and behind it noise that decays by 60 dB in ``seconds``; as loud as before."""
    time = np.arange(max(2, int(seconds * SAMPLE_RATE)), dtype=np.float32) / SAMPLE_RATE
    room = rng.standard_normal(len(time), dtype=np.float32) * np.exp(-np.log(1000) / seconds * time, dtype=np.float32)
    room[0] = 0
    room *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(np.square(room)))
    room[0] = 1
    heard = signal.oaconvolve(samples, room)[: len(samples)]
    return heard * np.float32(_rms(samples) / max(_rms(heard), 1e-9))


def mix(samples: Sound, noise: Sound, snr: float) -> Sound:
    """The clip with noise of the same length, so loud that the powers of the two are ``snr`` dB apart."""
    return samples + noise * np.float32(_rms(samples) / max(_rms(noise), 1e-9) * 10 ** (-snr / 20))


def background(kind: str, samples: Sound, rng: np.random.Generator) -> Sound:
    """Noise as long as the samples, of standard deviation 1: white, pink (1 / f), or babble.

    Babble is the clip itself backwards, as four voices of other heights that begin anywhere.
    """
    n = len(samples)
    if kind == "babble":
        noise = np.zeros(n, np.float32)
        for pace, offset in zip(rng.uniform(0.8, 1.25, 4), rng.integers(0, n, 4), strict=True):
            voice = soxr.resample(samples[::-1], SAMPLE_RATE * pace, SAMPLE_RATE, quality="QQ")
            noise += np.roll(np.resize(voice, n), offset)
    else:
        noise = rng.standard_normal(n, dtype=np.float32)
    if kind == "pink":
        size = fft.next_fast_len(n, real=True)
        spectrum = fft.rfft(noise, size)
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum), dtype=np.float32), 20 * size / SAMPLE_RATE))
        noise = fft.irfft(spectrum, size)[:n]
    return noise / np.float32(max(_rms(noise), 1e-9))


def warp_frequencies(frames: np.ndarray, factor: float) -> np.ndarray:
    """Normalised frames float32 (n_frames, 193) with all frequencies times ``factor``, up to `TRACT_HERTZ`; from there
    on they are squeezed or spread so that the highest stays. Normalised again.

    Vocal tract length perturbation: Jaitly and Hinton, ICML 2013 workshop on deep learning for audio.
    """
    highest = SAMPLE_RATE / 2
    knee = TRACT_HERTZ * min(factor, 1)
    hertz = np.linspace(0, highest, N_BINS)
    source = np.interp(hertz, [0, knee, highest], [0, knee / factor, highest]) / highest * (N_BINS - 1)
    below = np.minimum(source.astype(int), N_BINS - 2)
    share = (source - below).astype(np.float32)
    warped = frames[:, below] * (1 - share) + frames[:, below + 1] * share
    mean, deviation = warped.mean(axis=1, keepdims=True), warped.std(axis=1, keepdims=True)
    return (warped - mean) / (deviation + EPSILON)


def emphasise(samples: Sound, amount: float) -> Sound:
    """First-order pre-emphasis (below 0: de-emphasis): y[n] = x[n] - amount · x[n - 1]."""
    changed = samples.astype(np.float32)
    changed[1:] -= np.float32(amount) * samples[:-1]
    return changed


def telephone(samples: Sound) -> Sound:
    """300 … 3400 Hz at 8 kHz, in the 8 bits of µ-law (ITU-T G.711, without its straight segments)."""
    narrow = soxr.resample(samples, SAMPLE_RATE, TELEPHONE_RATE, quality="MQ")
    narrow = np.clip(signal.sosfilt(TELEPHONE_BAND, narrow), -1, 1)
    code = np.rint(127 * np.sign(narrow) * np.log1p(MU * np.abs(narrow)) / np.log1p(MU)) / 127
    line = np.sign(code) * np.expm1(np.abs(code) * np.log1p(MU)) / MU
    return _fit(soxr.resample(line.astype(np.float32), TELEPHONE_RATE, SAMPLE_RATE, quality="MQ"), len(samples))


def code(samples: Sound, kind: str, compression: float) -> Sound:
    """Through a codec and back, of ``CODECS``; ``compression`` is libsndfile's, 0 (best) to less than 1 (smallest)."""
    container, subtype, rate = CODECS[kind]
    file = io.BytesIO()
    sound = soxr.resample(np.clip(samples, -1, 1), SAMPLE_RATE, rate, quality="MQ")
    soundfile.write(file, sound, rate, format=container, subtype=subtype, compression_level=compression)
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="float32")
    return _fit(soxr.resample(decoded, rate, SAMPLE_RATE, quality="MQ"), len(samples))
