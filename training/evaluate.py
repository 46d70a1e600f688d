"""Word and character error rates of a model: ``python -m training.evaluate MODEL DATA``.

Every recording goes through the service's own `SpeechPredictor`, decoded and resampled to what a client would upload.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import numpy as np
from tqdm import tqdm

from predictor import SpeechPredictor
from speech.alphabet import normalise_text
from speech.audio import from_pcm16
from speech.errors import SpeechError
from training.dataset import Clip, load_clips, read_utterances

RESAMPLES = 1000  # of the bootstrap
BATCH = 8  # clips


@dataclass(frozen=True, slots=True)
class Result:
    """One utterance, what was said and what was heard, both normalised."""

    id: str
    corpus: str
    speaker: str
    seconds: float
    reference: str
    hypothesis: str


@dataclass(frozen=True, slots=True)
class Rates:
    """Error rates of a group of utterances in percent; intervals hold 95 % of the bootstrap's resamples."""

    clips: int
    seconds: float
    wer: float
    wer_interval: tuple[float, float]
    cer: float
    cer_interval: tuple[float, float]


def transcribe_clips(predictor: SpeechPredictor, clips: Sequence[Clip]) -> Iterator[Result]:
    """What the predictor hears in each clip, shortest first."""
    ordered = sorted(clips, key=lambda clip: clip.seconds)
    for start in tqdm(range(0, len(ordered), BATCH), desc="transcribing", unit="batch"):
        group = ordered[start : start + BATCH]
        transcripts = predictor.transcribe_batch([from_pcm16(np.asarray(clip.samples)) for clip in group])
        for clip, transcript in zip(group, transcripts, strict=True):
            u = clip.utterance
            yield Result(u.id, u.corpus, u.speaker, clip.seconds, clip.text, normalise_text(transcript.text))


def rates(results: Sequence[Result]) -> Rates:
    """Error rates over all words and characters of the results.

    Intervals: bootstrap over utterances (Bisani and Ney, Bootstrap estimates for confidence intervals in ASR
    performance evaluation, ICASSP 2004), seeded.
    """
    words = np.array([_errors(jiwer.process_words(r.reference, r.hypothesis)) for r in results])
    characters = np.array([_errors(jiwer.process_characters(r.reference, r.hypothesis)) for r in results])
    drawn = np.random.default_rng(0).integers(0, len(results), (RESAMPLES, len(results)))
    seconds = sum(r.seconds for r in results)
    return Rates(len(results), round(seconds, 1), *_rate(words, drawn), *_rate(characters, drawn))


def _errors(output: jiwer.WordOutput | jiwer.CharacterOutput) -> tuple[int, int]:
    """(errors, length of the reference)."""
    return (
        output.substitutions + output.deletions + output.insertions,
        output.substitutions + output.deletions + output.hits,
    )


def _rate(counts: np.ndarray, drawn: np.ndarray) -> tuple[float, tuple[float, float]]:
    errors, lengths = counts[:, 0], counts[:, 1]
    resampled = 100 * errors[drawn].sum(1) / lengths[drawn].sum(1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return round(100 * errors.sum() / lengths.sum(), 2), (round(float(low), 2), round(float(high), 2))


def by_corpus(results: Sequence[Result]) -> dict[str, Rates]:
    """Rates of each corpus, and of all."""
    names = sorted({r.corpus for r in results})
    groups = {name: rates([r for r in results if r.corpus == name]) for name in names}
    return {**groups, "all": rates(results)} if len(names) > 1 else groups


def table(groups: Mapping[str, Rates]) -> str:
    """The rates as a Markdown table."""
    rows = [
        f"| {name} | {r.clips} | {r.seconds:.0f} s | {r.wer:.1f} ({r.wer_interval[0]:.1f}–{r.wer_interval[1]:.1f}) "
        f"| {r.cer:.1f} ({r.cer_interval[0]:.1f}–{r.cer_interval[1]:.1f}) |"
        for name, r in groups.items()
    ]
    return "\n".join(["| corpus | clips | sound | WER % (95 %) | CER % (95 %) |", "|---|---|---|---|---|", *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model, such as Models/NAME")
    parser.add_argument("data", type=Path, nargs="+", help="manifest CSV, LJSpeech or LibriSpeech folder")
    parser.add_argument("--split", default="dev", help="rows of a manifest to use (default: dev; '' for all)")
    parser.add_argument("--cache", type=Path, default=Path("Data/cache"), help="decoded audio is kept here")
    parser.add_argument("--engine", default="auto", help="as STT_ENGINE")
    parser.add_argument("--decoder", default="auto", choices=["auto", "greedy", "beam"], help="as STT_DECODER")
    parser.add_argument("--show", type=int, default=5, help="print so many utterances beside their references")
    parser.add_argument("--json", type=Path, help="write rates and utterances to this file")
    given = parser.parse_args(arguments)
    try:
        predictor = SpeechPredictor.load(given.model, given.engine, decoder=given.decoder)
        utterances = [u for data in given.data for u in read_utterances(data)]
        chosen = [u for u in utterances if not given.split or u.split in (given.split, "")]
        if not chosen:
            parser.exit(1, f"{parser.prog}: expected utterances of split {given.split!r}, found none\n")
        results = list(transcribe_clips(predictor, load_clips(chosen, given.cache)))
    except (SpeechError, FileNotFoundError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    groups = by_corpus(results)
    print(table(groups))
    for r in results[:: max(1, len(results) // max(1, given.show))][: given.show]:
        print(f"\n{r.id}\n  said:  {r.reference}\n  heard: {r.hypothesis}")
    if given.json:
        written = {
            "rates": {name: asdict(group) for name, group in groups.items()},
            "utterances": [asdict(r) for r in results],
        }
        given.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
