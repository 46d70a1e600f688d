"""How far word times are off: ``python -m benchmarks.word_times``, on synthesised words joined with known gaps.

Needs flite (Debian: ``apt-get install flite``). Where a word's sound begins and ends is told by its energy, 40 dB below
its loudest 10 ms. A word that is heard counts for the spoken one that it overlaps most, however it is spelt.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.common import parser, report, where
from predictor import SpeechPredictor
from speech.audio import SAMPLE_RATE, Waveform
from speech.formats import decode_audio

VOICES = ("rms", "slt", "kal16")
WORDS = [
    *("morning", "prison", "water", "people", "government", "children", "history", "thousand", "window", "garden"),
    *("paper", "number", "river", "mountain", "summer", "after", "evening", "country", "letter", "before"),
]
FLOOR = 10 ** (-60 / 20)  # of the noise under everything: digital silence is nowhere in real sound


def speak(word: str, voice: str) -> npt.NDArray[np.float32]:
    """The sound of a word, without what is quiet before and behind."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["flite", "-voice", voice, "-t", word, "-o", file.name], check=True)
        samples = decode_audio(Path(file.name).read_bytes(), 60.0).samples
    block = SAMPLE_RATE // 100
    energy = np.square(samples[: len(samples) // block * block].reshape(-1, block)).mean(1)
    loud = np.flatnonzero(energy > energy.max() / 1e4)
    return samples[loud[0] * block : (loud[-1] + 1) * block]


def main() -> None:
    """The command line."""
    arguments = parser("word_times", __doc__)
    arguments.add_argument("--clips", type=int, default=20, help="of eight words, for each voice")
    given = arguments.parse_args()
    if not shutil.which("flite"):
        raise SystemExit("expected flite to be installed: apt-get install flite")
    predictor, rng = SpeechPredictor.load(given.model), np.random.default_rng(0)
    rows = []
    for voice in VOICES:
        spoken = {word: speak(word, voice) for word in WORDS}
        starts, ends, n_words = [], [], 0
        for _ in tqdm(range(given.clips), desc=voice, unit="clip"):
            parts, times, at = [], [], 0
            for word in rng.choice(WORDS, 8, replace=False):
                gap = np.zeros(round(rng.uniform(0.2, 0.6) * SAMPLE_RATE), np.float32)
                at += len(gap)
                times.append((at / SAMPLE_RATE, (at + len(spoken[word])) / SAMPLE_RATE))
                at += len(spoken[word])
                parts += [gap, spoken[word]]
            sound = np.concatenate([*parts, np.zeros(SAMPLE_RATE // 4, np.float32)])
            sound += rng.normal(0, FLOOR, len(sound)).astype(np.float32)
            heard = predictor.transcribe(Waveform(sound)).words
            n_words += len(times)
            for start, end in times:
                overlaps = [min(end, word.end) - max(start, word.start) for word in heard]
                if overlaps and max(overlaps) > 0:
                    word = heard[int(np.argmax(overlaps))]
                    starts.append(word.start - start)
                    ends.append(word.end - end)
        rows.append(
            {
                "voice": voice,
                "words": n_words,
                "found": len(starts),
                "start: median |error| ms": 1000 * float(np.median(np.abs(starts))),
                "start: median error ms": 1000 * float(np.median(starts)),
                "end: median |error| ms": 1000 * float(np.median(np.abs(ends))),
                "end: median error ms": 1000 * float(np.median(ends)),
            }
        )
    report({"where": where()}, rows, given.json)


if __name__ == "__main__":
    main()
