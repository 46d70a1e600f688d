"""The same clips through this service's predictor, the keras.io example's path and pocketsphinx: error rates and speed.

Each runs on one core. pocketsphinx (``pip install pocketsphinx``) brings its US English model and language model.
"""

import os
from statistics import median
from typing import Any

os.environ.update(OMP_NUM_THREADS="1")  # before anything reads it
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import sys
from pathlib import Path

import jiwer
import numpy as np
import soxr
from tqdm import tqdm

from benchmarks.common import Transcribe, load_stock, parser, report, seconds_of, where
from predictor import SpeechPredictor
from speech.audio import SAMPLE_RATE, Waveform, from_pcm16
from training.train import load_splits

SPHINX_RATE = 16000


def load_pocketsphinx() -> Transcribe:
    """pocketsphinx with its own models, as https://pypi.org/project/pocketsphinx/ says."""
    try:
        import pocketsphinx
    except ImportError:
        sys.exit("expected pocketsphinx to be installed: pip install pocketsphinx")
    decoder = pocketsphinx.Decoder(samprate=SPHINX_RATE, loglevel="FATAL")

    def transcribe(waveform: Waveform) -> str:
        samples = soxr.resample(waveform.samples, SAMPLE_RATE, SPHINX_RATE)
        decoder.start_utt()
        decoder.process_raw((np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr.lower() if found else ""

    return transcribe


def main() -> None:
    """The command line."""
    arguments = parser("peers", __doc__)
    arguments.add_argument(
        "data", type=Path, help="recordings with texts: a manifest or a folder; its dev split is used"
    )
    arguments.add_argument("--cache", type=Path, default=Path("Data/cache"))
    arguments.add_argument("--clips", type=int, default=60, help="at most so many of each corpus")
    given = arguments.parse_args()
    train, dev = load_splits([given.data], given.cache)
    by_corpus: dict[str, list[Any]] = {}
    for clip in dev or train:
        by_corpus.setdefault(clip.utterance.corpus, []).append(clip)
    chosen = [clip for clips in by_corpus.values() for clip in clips[: given.clips]]
    predictor = SpeechPredictor.load(given.model, threads=1)
    systems: dict[str, Transcribe] = {
        f"{predictor.name}, this service": lambda waveform: predictor.transcribe(waveform).text,
        "the same network, stock Keras": load_stock(given.model),
        "pocketsphinx": load_pocketsphinx(),
    }
    texts: dict[str, list[str]] = {name: [] for name in systems}
    factors: dict[str, list[float]] = {name: [] for name in systems}
    for clip in tqdm(chosen, unit="clip"):
        waveform = from_pcm16(np.asarray(clip.samples))
        for name, transcribe in systems.items():
            spent = seconds_of(lambda: texts[name].append(transcribe(waveform)))  # noqa: B023
            factors[name].append(spent / waveform.duration)
    rows = []
    for name in systems:
        row: dict[str, Any] = {"system": name, "real-time factor, one core": median(factors[name])}
        for corpus in by_corpus:
            at = [number for number, clip in enumerate(chosen) if clip.utterance.corpus == corpus]
            row[f"{corpus} WER %"] = 100 * jiwer.wer([chosen[n].text for n in at], [texts[name][n] for n in at])
        rows.append(row)
    ours, _, sphinx = (row["real-time factor, one core"] for row in rows)
    report({"where": {**where(), "threads": 1}}, rows, given.json)
    print(f"{sphinx / ours:.1f} × pocketsphinx")


if __name__ == "__main__":
    main()
