"""Weigh language against sound: ``python -m training.tune_decoder MODEL DATA``.

What the network hears in the clips of split ``dev``, and in babble made of some of them, is computed once and saved; a
random search over the weights of the beam search then decodes it again and again. Run it after every training: the
surer the network, the less it needs to be told.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import numpy.typing as npt

from predictor import SpeechPredictor
from speech.alphabet import Alphabet
from speech.audio import from_pcm16
from speech.beam import OPTIONS, BeamDecoder
from speech.ctc import SECONDS_PER_STEP, LogProbs, decode_greedy
from speech.language_model import LanguageModel, read_language_model
from speech.model_card import LANGUAGE_MODEL, add_files, read_card
from speech.search import BeamOptions
from training.augment import background
from training.command import one_line
from training.dataset import load_clips, read_utterances

RANGES = {
    "lm_weight": (0.1, 1.3), "word_bonus": (-4.0, 3.0), "unknown_penalty": (-2.0, 4.0), "acoustic_scale": (0.4, 1.1),
    "prior_scale": (0.0, 0.5),
}  # fmt: skip
START = BeamOptions(lm_weight=0.85, word_bonus=-0.7, unknown_penalty=1.5, acoustic_scale=0.8, prior_scale=0.18)


BABBLE = "babble"  # the corpus of what is no speech
BABBLES = 12  # clips of it
INVENTED = 0.1  # points of error rate that a word a minute costs, invented in babble


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What the network heard in a clip, and what was said: nothing in babble."""

    log_probs: LogProbs
    text: str
    corpus: str

    @property
    def seconds(self) -> float:
        """Duration of the sound."""
        return len(self.log_probs.values) * SECONDS_PER_STEP


def listen(model: Path, data: Sequence[Path], cache: Path) -> list[Heard]:
    """Log-probabilities of every clip of split ``dev``, by the service's own predictor, and of babble of four voices
    made of some of them, backwards.

    Raises:
        SpeechError: the model cannot be used; FileNotFoundError: there is no such data.
    """
    predictor = SpeechPredictor.load(model, decoder="greedy")
    utterances = [u for source in data for u in read_utterances(source) if u.split == "dev"]
    if not utterances:
        raise ValueError("expected recordings with a split dev, found none")

    def hear(samples: npt.NDArray[np.float32], text: str, corpus: str) -> Heard:
        return Heard(LogProbs(predictor.make_prediction(predictor.encode_single_sample(samples))[0]), text, corpus)

    clips, rng = load_clips(utterances, cache), np.random.default_rng(0)
    if not clips:
        raise ValueError("expected recordings with a split dev that can be read, found none")
    sounds = [from_pcm16(np.asarray(clip.samples)).samples for clip in clips]
    said = [hear(sound, clip.text, clip.utterance.corpus) for sound, clip in zip(sounds, clips, strict=True)]
    return said + [hear(background(BABBLE, sound, rng), "", BABBLE) for sound in sounds[:: -(-len(sounds) // BABBLES)]]


def save(heard: Sequence[Heard], file: Path) -> None:
    """Write log-probabilities, texts and corpora as a NumPy archive."""
    with file.open("wb") as stream:  # NumPy would add a suffix to a name
        np.savez(
            stream,
            values=np.concatenate([h.log_probs.values for h in heard]),
            lengths=np.array([len(h.log_probs.values) for h in heard]),
            texts=np.array([h.text for h in heard]),
            corpora=np.array([h.corpus for h in heard]),
        )


def load(file: Path) -> list[Heard]:
    """What `save` wrote."""
    with np.load(file, allow_pickle=False) as saved:
        if not {"values", "lengths", "texts", "corpora"} <= set(saved):
            raise ValueError(f"expected what --log-probs wrote in {file}, found something else")
        clips = np.split(saved["values"], np.cumsum(saved["lengths"])[:-1])
        texts, corpora = saved["texts"].tolist(), saved["corpora"].tolist()
    return [Heard(LogProbs(values), text, corpus) for values, text, corpus in zip(clips, texts, corpora, strict=True)]


@dataclass(frozen=True, slots=True)
class Score:
    """(WER, CER) in percent and seconds of sound by corpus, words invented in a minute of babble, and milliseconds of
    processor time per second of sound."""

    rates: dict[str, tuple[float, float]]
    seconds: dict[str, float]
    invented: float
    milliseconds: float

    @property
    def loss(self) -> float:
        """What the search makes small: WER plus CER, each corpus by the square root of its seconds, and a tenth of the
        words a minute invented in babble."""
        weights = [self.seconds[name] ** 0.5 for name in self.rates]
        errors = np.average([wer + cer for wer, cer in self.rates.values()], weights=weights)
        return float(errors) + INVENTED * self.invented

    def __str__(self) -> str:
        rates = ", ".join(f"{name} WER {wer:.1f} CER {cer:.1f}" for name, (wer, cer) in self.rates.items())
        return f"{rates}, {self.invented:.1f} words/min in babble, {self.milliseconds:.2f} ms/s"


def score(heard: Sequence[Heard], alphabet: Alphabet, decoder: BeamDecoder | None) -> Score:
    """Decode all clips, greedily without a decoder."""
    started = time.process_time()
    texts = [(decoder.decode(h.log_probs) if decoder else decode_greedy(h.log_probs, alphabet)).text for h in heard]
    spent = time.process_time() - started
    rates, seconds = {}, {}
    for corpus in sorted({h.corpus for h in heard} - {BABBLE}):
        said, found = zip(*((h.text, t) for h, t in zip(heard, texts, strict=True) if h.corpus == corpus), strict=True)
        rates[corpus] = (100 * jiwer.wer(list(said), list(found)), 100 * jiwer.cer(list(said), list(found)))
        seconds[corpus] = sum(h.seconds for h in heard if h.corpus == corpus)
    invented = sum(len(t.split()) for h, t in zip(heard, texts, strict=True) if h.corpus == BABBLE)
    babble = sum(h.seconds for h in heard if h.corpus == BABBLE)
    milliseconds = 1000 * spent / (sum(seconds.values()) + babble)
    return Score(rates, seconds, 60 * invented / babble if babble else 0.0, milliseconds)


def priors(heard: Sequence[Heard]) -> tuple[float, ...]:
    """How probable each label is on the whole: the mean of what the network said of speech."""
    said = [h.log_probs.values for h in heard if h.corpus != BABBLE]
    mean = np.exp(np.concatenate(said)).mean(axis=0, dtype=np.float64)
    return tuple(mean.round(6).tolist())


def search(
    heard: Sequence[Heard], alphabet: Alphabet, model: LanguageModel, options: BeamOptions, trials: int, seed: int
) -> tuple[BeamOptions, Score]:
    """The best weights: a third of the trials anywhere in RANGES, the rest near the best so far, ever nearer."""
    rng = np.random.default_rng(seed)
    best, best_score = options, score(heard, alphabet, BeamDecoder(alphabet, model, options))
    for trial in range(trials):
        near = max(0.0, 1.5 * trial / trials - 0.5)
        weights = {}
        for name, (low, high) in RANGES.items():
            width = (high - low) * (1 - near) / 4
            anywhere, nearby = rng.uniform(low, high), getattr(best, name) + rng.normal(0, width)
            weights[name] = round(float(np.clip(nearby if near else anywhere, low, high)), 3)
        tried = replace(options, **weights)  # type: ignore[arg-type]
        found = score(heard, alphabet, BeamDecoder(alphabet, model, tried))
        if found.loss < best_score.loss:
            best, best_score = tried, found
            print(f"{trial + 1}/{trials} {weights}: {found}", flush=True)
    return best, best_score


def least_confidence(heard: Sequence[Heard], decoder: BeamDecoder) -> float:
    """Two thirds of the confidence that all but 1 % of the clips of speech have: speech in noise is less sure, and what
    is written where nobody speaks is less sure still."""
    sure = [decoder.decode(h.log_probs).confidence for h in heard if h.corpus != BABBLE]
    return round(float(np.percentile(sure, 1)) * 2 / 3, 3)


def _report(heard: Sequence[Heard], greedy: Score, beam: Score, trials: int) -> dict[str, Any]:
    """What goes into the file beside the options."""
    names = {"greedy": greedy, "beam": beam}
    rates = {name: {c: [round(r, 2) for r in pair] for c, pair in s.rates.items()} for name, s in names.items()}
    invented = {name: round(s.invented, 2) for name, s in names.items()}
    clips = sum(h.corpus != BABBLE for h in heard)
    return {"clips": clips, "trials": trials, "wer_cer_percent": rates, "words_per_minute_of_babble": invented}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.tune_decoder", description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder of the model, such as Models/NAME")
    parser.add_argument("data", type=Path, nargs="*", help="manifest CSV or folder with clips of split dev")
    parser.add_argument("--lm", type=Path, help=f"language model (default: {LANGUAGE_MODEL} in the model's folder)")
    parser.add_argument(
        "--log-probs", type=Path, help="NPZ to read, or to write if there is none, instead of listening"
    )
    parser.add_argument("--out", type=Path, help=f"JSON to write (default: {OPTIONS} in the model's folder)")
    parser.add_argument("--cache", type=Path, default=Path("Data/cache"), help="decoded audio is kept here")
    parser.add_argument("--trials", type=int, default=40, help="decodings of the whole set")
    parser.add_argument("--width", type=int, default=BeamOptions().width, help="prefixes that are kept")
    parser.add_argument("--seed", type=int, default=1, help="of the random search")
    given = parser.parse_args(arguments)
    if given.lm and not given.out:
        parser.error("--lm: expected --out, for weights that go with another language model than the model's own")
    out = given.out or given.model / OPTIONS
    with one_line(parser):
        alphabet = read_card(given.model).alphabet
        model = read_language_model(given.lm or given.model / LANGUAGE_MODEL)
        for file in filter(None, (out, given.log_probs)):  # later all would have been in vain
            file.parent.mkdir(parents=True, exist_ok=True)
        start = replace(START, width=given.width)
        if given.log_probs and given.log_probs.exists():
            heard = load(given.log_probs)
        else:
            heard = listen(given.model, given.data, given.cache)
            if given.log_probs:
                save(heard, given.log_probs)
    greedy = score(heard, alphabet, None)
    print(f"{len(heard)} clips, {sum(h.seconds for h in heard):.0f} s; greedy: {greedy}", flush=True)
    options, found = search(heard, alphabet, model, replace(start, priors=priors(heard)), given.trials, given.seed)
    least = least_confidence(heard, BeamDecoder(alphabet, model, options))
    options = replace(options, least_confidence=least)
    found = score(heard, alphabet, BeamDecoder(alphabet, model, options))
    print(f"beam: {found}\n{options}")
    written = {**asdict(options), "measured": _report(heard, greedy, found, given.trials)}
    out.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    if not given.out:
        add_files(given.model, OPTIONS, LANGUAGE_MODEL)


if __name__ == "__main__":
    main()
