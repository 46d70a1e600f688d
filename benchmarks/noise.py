"""How many words are invented where nobody speaks: ``python -m benchmarks.noise``, in words per minute.

Each noise is heard as a file, without and with the gate `speech.streaming.is_steady`, and as live sound.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
from scipy import signal

from benchmarks.common import parser, report, where
from benchmarks.long import utterances
from predictor import SpeechPredictor
from speech.audio import SAMPLE_RATE
from speech.streaming import Piece, is_steady, pieces

Samples = npt.NDArray[np.float32]
Make = Callable[[float, np.random.Generator], Samples]
LEVEL = 0.05  # RMS, -26 dB of full scale
CHUNK = 20  # seconds made at once


def silence(seconds: float, rng: np.random.Generator) -> Samples:
    """Digital silence."""
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def white(seconds: float, rng: np.random.Generator) -> Samples:
    """The same power at all frequencies."""
    return rng.normal(0, LEVEL, round(seconds * SAMPLE_RATE)).astype(np.float32)


def pink(seconds: float, rng: np.random.Generator) -> Samples:
    """3 dB less for each octave above 20 Hz."""
    spectrum = np.fft.rfft(rng.normal(size=round(seconds * SAMPLE_RATE)))
    frequencies = np.fft.rfftfreq(round(seconds * SAMPLE_RATE), 1 / SAMPLE_RATE)
    return _scaled(np.fft.irfft(spectrum / np.sqrt(np.maximum(frequencies, 20))))


def babble(seconds: float, rng: np.random.Generator, voices: int = 8) -> Samples:
    """Voices that utter random vowels and pauses: pulses of a wandering pitch through three random resonances each."""
    return _scaled(np.sum([_voice(round(seconds * SAMPLE_RATE), rng) for _ in range(voices)], axis=0))


def _voice(n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    steps = np.cumsum(rng.normal(0, 0.01, n // 220 + 1))
    pitch = np.clip(np.repeat(rng.uniform(90, 220) * np.exp(steps), 220)[:n], 80, 300)
    source = np.diff(np.floor(np.cumsum(pitch) / SAMPLE_RATE), prepend=0) + rng.normal(0, 0.02, n)
    said, at = np.zeros(n), 0
    while at < n:
        vowel = source[at : at + round(rng.uniform(0.08, 0.3) * SAMPLE_RATE)]
        if rng.random() < 0.75:
            for low, high, width in ((300, 800, 80), (900, 2300, 100), (2300, 3200, 150)):
                radius = np.exp(-np.pi * width / SAMPLE_RATE)
                angle = 2 * np.pi * rng.uniform(low, high) / SAMPLE_RATE
                vowel = signal.lfilter([1], [1, -2 * radius * np.cos(angle), radius**2], vowel)
            said[at : at + len(vowel)] = vowel * np.hanning(len(vowel)) / (vowel.std() + 1e-9)
        at += len(vowel)
    return said


def _scaled(sound: npt.NDArray[np.float64]) -> Samples:
    return (LEVEL * sound / sound.std()).astype(np.float32)


NOISES: dict[str, Make] = {
    "silence": silence,
    "white noise": white,
    "pink noise": pink,
    "babble of 8 voices": babble,
    "babble of 4 voices": lambda seconds, rng: babble(seconds, rng, 4),
}


def words(predictor: SpeechPredictor, parts: Iterable[Piece], gated: bool = True) -> int:
    """How many words are heard in the parts; a gate keeps steady ones from the network."""
    heard = (part.waveform for part in parts if not (gated and is_steady(part.waveform)))
    return sum(len(predictor.transcribe(waveform).words) for waveform in heard)


def main() -> None:
    """The command line."""
    arguments = parser("noise", __doc__)
    arguments.add_argument("--minutes", type=float, default=10.0, help="of each noise")
    given = arguments.parse_args()
    predictor, rows = SpeechPredictor.load(given.model), []
    for name, make in NOISES.items():

        def blocks(make: Make = make) -> Iterator[Samples]:
            rng = np.random.default_rng(0)
            return (make(CHUNK, rng) for _ in range(round(60 * given.minutes / CHUNK)))

        counts = {
            "file, no gate": words(predictor, pieces(blocks()), gated=False),
            "file": words(predictor, pieces(blocks())),
            "live": words(predictor, utterances(blocks())),
        }
        rows.append({"noise": name, **{way: count / given.minutes for way, count in counts.items()}})
    report({"where": where(), "minutes": given.minutes}, rows, given.json)


if __name__ == "__main__":
    main()
