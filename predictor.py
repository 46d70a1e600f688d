"""From sound to text: the whole pipeline on one screen. ``python predictor.py FILE…`` prints the texts."""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from config import read_settings
from speech.alphabet import Alphabet
from speech.audio import Waveform, decode_wav
from speech.beam import NONE_HOT, OPTIONS, BeamDecoder, Weights, read_options
from speech.ctc import LogProbs, Transcript, decode_greedy
from speech.engine import Engine, available_cores, give_back_memory, load_engine
from speech.errors import InferenceFailed, SpeechError
from speech.features import SECONDS_PER_FRAME, covered_seconds, spectrogram
from speech.hot_words import read_hot_words
from speech.language_model import read_language_model
from speech.model_card import LANGUAGE_MODEL, ModelCard, check_file, read_card
from speech.pauses import fitted, levels

MOST_AT_ONCE = 4  # searches, each with 37 MB of tables as soon as it is needed

log = logging.getLogger("predictor")

Decode = Callable[[LogProbs, float, Weights], Transcript]  # (log-probabilities, seconds of sound, hot words) → text
Audio = str | Path | bytes | Waveform | npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds that a batch spent in each stage, shared by its utterances."""

    features: float
    network: float
    decoding: float


def load_beam(card: ModelCard, folder: Path, at_once: int = 1) -> Decode:
    """Beam search with the language model and the weights of a model's folder, for so many threads ``at_once``.

    Raises:
        ModelNotFound, ModelMismatch: either file is missing, or is not the one that the card knows.
    """
    options = read_options(check_file(card, folder, OPTIONS))
    language_model = read_language_model(check_file(card, folder, LANGUAGE_MODEL))
    decoder = BeamDecoder(card.alphabet, language_model, options, at_once)
    return lambda log_probs, duration, hot_words: decoder.decode(log_probs, hot_words, duration)


class SpeechPredictor:
    """A model that is ready to hear. Calls may come from several threads at once."""

    def __init__(
        self,
        engine: Engine,
        alphabet: Alphabet | None = None,
        name: str = "model",
        decode: Decode | None = None,
        at_once: int = 1,
    ) -> None:
        """``at_once``: so many utterances of a batch have their features made, and their texts found, side by side."""
        self.engine, self.alphabet, self.name = engine, alphabet or Alphabet(), name
        self._helpers = ThreadPoolExecutor(at_once, "predictor")
        self.takes_hot_words = decode is not None
        self._decode = decode or (lambda log_probs, duration, _: decode_greedy(log_probs, self.alphabet, duration))

    @classmethod
    def load(
        cls, folder: str | Path, engine: str = "auto", threads: int = 0, decoder: str = "auto", callers: int = 1
    ) -> "SpeechPredictor":
        """The model of a folder such as ``Models/NAME``; ``decoder`` is greedy, beam with its language model, or auto:
        beam if the model has one. Threads and callers are those of `speech.engine.load_engine`.

        Raises:
            ModelNotFound: the folder or one of its files is missing.
            ModelMismatch: card, weights and code disagree.
        """
        started, folder = time.perf_counter(), Path(folder)
        card = read_card(folder)
        if decoder == "auto":
            decoder = "beam" if {LANGUAGE_MODEL, OPTIONS} <= card.sha256.keys() else "greedy"
        at_once = min(threads or available_cores(), MOST_AT_ONCE)
        with ThreadPoolExecutor(1) as beside:
            loading = beside.submit(load_beam, card, folder, at_once) if decoder == "beam" else None
            chosen, run = load_engine(card, folder, engine, threads, callers)
            decode = loading.result() if loading else None
        give_back_memory()
        seconds = time.perf_counter() - started
        log.info("model %s loaded, engine %s, decoder %s, %.2f s", card.name, chosen, decoder, seconds)
        return cls(run, card.alphabet, card.name, decode, at_once)

    def encode_single_sample(self, audio: Audio) -> npt.NDArray[np.float32]:
        """Spectrogram float32 (n_frames, 193) of a WAV file (path or bytes), a waveform, or samples in [-1, 1).

        Raises:
            AudioError: the sound cannot be used; OSError: the path cannot be read.
        """
        return spectrogram(_waveform(audio)).frames

    def make_prediction(self, spectrogram: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Log-probabilities float32 (batch, ⌈n_frames / 2⌉, n_outputs) of one spectrogram (n_frames, 193) or of
        several of the same length (batch, n_frames, 193).

        Raises:
            InferenceFailed: the network raised an error.
        """
        batch = spectrogram if spectrogram.ndim == 3 else spectrogram[None]
        return self._run(np.ascontiguousarray(batch, np.float32), np.full(len(batch), batch.shape[1], np.int32))

    def decode_batch_predictions(self, predictions: npt.NDArray[np.float32]) -> list[str]:
        """Greedily decoded texts of (log-)probabilities (batch, n_steps, n_outputs)."""
        return [decode_greedy(LogProbs(values), self.alphabet).text for values in predictions]

    def read_hot_words(self, texts: Iterable[str]) -> Weights:
        """Hot words as `speech.hot_words` reads them, for `transcribe`.

        Raises:
            ValueError: they cannot be read, or there are some and this model decodes greedily.
        """
        found = read_hot_words(texts, self.alphabet.characters)
        if found and not self.takes_hot_words:
            raise ValueError("expected a model that decodes with language for hot words, found one that does not")
        return found

    def transcribe(self, audio: Audio, hot_words: Weights = NONE_HOT) -> Transcript:
        """Text of one recording: a batch of one. Raises as `encode_single_sample` and `make_prediction` do."""
        return self.transcribe_timed([audio], [hot_words])[0][0]

    def transcribe_batch(self, recordings: Sequence[Audio]) -> list[Transcript]:
        """Texts of several recordings, each as if it were alone."""
        return self.transcribe_timed(recordings)[0]

    def transcribe_timed(
        self, recordings: Sequence[Audio], hot_words: Sequence[Weights] = ()
    ) -> tuple[list[Transcript], Stages]:
        """`transcribe_batch`, each recording with hot words of its own, if there are any; and where the time went."""
        started = time.perf_counter()
        waveforms = [_waveform(audio) for audio in recordings]
        together = map if len(recordings) == 1 else self._helpers.map
        spectrograms = list(together(lambda waveform: spectrogram(waveform).frames, waveforms))
        n_frames = np.array([len(frames) for frames in spectrograms], np.int32)
        longest = int(n_frames.max()) + int(n_frames.max()) % 2
        frames = np.zeros((len(spectrograms), longest, spectrograms[0].shape[1]), np.float32)
        for row, values in zip(frames, spectrograms, strict=True):
            row[: len(values)] = values
        encoded = time.perf_counter()
        log_probs = self._run(frames, n_frames)
        ran = time.perf_counter()

        def decode(values: npt.NDArray[np.float32], n: int, waveform: Waveform, hot: Weights) -> Transcript:
            transcript = self._decode(LogProbs(values[: (n + 1) // 2]), covered_seconds(n), hot)
            return replace(transcript, words=fitted(transcript.words, levels(waveform), covered_seconds(n)))

        hot_words = hot_words or [NONE_HOT] * len(recordings)
        transcripts = list(together(decode, log_probs, n_frames.tolist(), waveforms, hot_words))
        return transcripts, Stages(encoded - started, ran - encoded, time.perf_counter() - ran)

    def warm_up(self) -> None:
        """Run a second of silence, so that the first request does not pay for what is set up on first use."""
        self.make_prediction(np.zeros((round(1 / SECONDS_PER_FRAME), 193), np.float32))

    def _run(self, frames: npt.NDArray[np.float32], n_frames: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        try:
            return self.engine(frames, n_frames)
        except Exception as error:
            raise InferenceFailed(f"the network failed on frames {frames.shape}: {error}") from error


def _waveform(audio: Audio) -> Waveform:
    if isinstance(audio, str | Path):
        audio = Path(audio).read_bytes()
    if isinstance(audio, bytes):
        audio = decode_wav(audio)
    return Waveform(audio.astype(np.float32)) if isinstance(audio, np.ndarray) else audio


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the text of each file; 1 if any of them could not be transcribed."""
    parser = argparse.ArgumentParser(prog="python predictor.py", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="22050 Hz mono 16-bit PCM WAV")
    given = parser.parse_args(arguments)
    settings = read_settings()
    try:
        predictor = SpeechPredictor.load(settings.model_folder, settings.engine, settings.threads, settings.decoder)
    except SpeechError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    failed = 0
    for file in given.files:
        try:
            text = predictor.transcribe(decode_wav(Path(file).read_bytes(), settings.max_seconds)).text
            print(f"{file}: {text}" if len(given.files) > 1 else text)
        except (SpeechError, OSError) as error:
            failed = 1
            print(f"{file}: {type(error).__name__}: {error}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
