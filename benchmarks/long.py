"""What cutting costs: ``python -m benchmarks.long RECORDINGS``, word error rates of clips alone and joined.

The clips of the dev split are joined again and again, with the pauses that they have, and heard as one long file and as
live sound, in the pieces and utterances that the service cuts them into.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import jiwer
import numpy as np
import numpy.typing as npt

from benchmarks.common import parser, report, where
from predictor import SpeechPredictor
from speech.audio import SAMPLE_RATE, from_pcm16
from speech.streaming import Endpointer, Piece, is_steady, pieces
from training.dataset import Clip
from training.train import load_splits

BLOCK = SAMPLE_RATE // 5  # samples of live sound at a time


def joined(clips: Iterable[Clip], minutes: float) -> list[Clip]:
    """The clips again and again, as many as fill so many minutes."""
    chosen: list[Clip] = []
    seconds = 0.0
    for clip in itertools.cycle(clips):
        if seconds >= 60 * minutes:
            return chosen
        chosen.append(clip)
        seconds += clip.seconds
    return chosen


def blocks(samples: npt.NDArray[np.float32], length: int) -> Iterator[npt.NDArray[np.float32]]:
    """The samples in parts."""
    return (samples[start : start + length] for start in range(0, len(samples), length))


def utterances(parts: Iterable[npt.NDArray[np.float32]]) -> Iterator[Piece]:
    """What live sound is cut into."""
    endpointer = Endpointer()
    for part in parts:
        yield from endpointer.push(part)
    if last := endpointer.end():
        yield last


def main() -> None:
    """The command line."""
    arguments = parser("long", __doc__)
    arguments.add_argument("data", type=Path, help="recordings with texts: a manifest or a folder")
    arguments.add_argument("--cache", type=Path, default=Path("Data/cache"))
    arguments.add_argument("--minutes", type=float, default=30.0)
    given = arguments.parse_args()
    train, dev = load_splits([given.data], given.cache)
    clips = joined(dev or train, given.minutes)
    sounds = [from_pcm16(np.asarray(clip.samples)) for clip in clips]
    whole = np.concatenate([sound.samples for sound in sounds])
    ways: dict[str, list[Piece]] = {
        "each clip alone": [Piece(sound, 0.0) for sound in sounds],
        "one file": list(pieces(blocks(whole, 60 * SAMPLE_RATE))),
        "live": list(utterances(blocks(whole, BLOCK))),
    }
    predictor, reference, rows = SpeechPredictor.load(given.model), " ".join(clip.text for clip in clips), []
    for way, parts in ways.items():
        heard = [predictor.transcribe(part.waveform).text for part in parts if not is_steady(part.waveform)]
        seconds = [part.waveform.duration for part in parts]
        rows.append({
            "way": way, "pieces": len(parts), "median s": float(np.median(seconds)), "longest s": max(seconds),
            "WER %": 100 * jiwer.wer(reference, " ".join(heard)),
        })  # fmt: skip
    report({"where": where(), "seconds": len(whole) / SAMPLE_RATE}, rows, given.json)


if __name__ == "__main__":
    main()
