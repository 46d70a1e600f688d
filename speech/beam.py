"""From log-probabilities to text, with language: CTC prefix beam search over words and hot words.

Sources: Graves & Jaitly, Towards end-to-end speech recognition with recurrent neural networks, ICML 2014 (the search);
Hannun et al., First-pass large vocabulary continuous speech recognition, arXiv:1408.2873 (the language model in it).
The steps are taken in `speech.search`, which looks up what language says of the next letter in the tables of
`speech.spelling`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType

import numpy as np

from speech.alphabet import Alphabet
from speech.ctc import SECONDS_PER_STEP, LogProbs, Transcript, Word, widened
from speech.errors import ModelMismatch, ModelNotFound
from speech.language_model import MARKS, LanguageModel
from speech.search import BeamOptions, Found, Search, Steps
from speech.spelling import HotLetters, hot_letters, letters_of, plain_letters

OPTIONS = "decoder.json"  # the name of a BeamOptions file in a model's folder
RAREST = 1e-3  # what rarer labels than that count as
NEVER = 1e-30  # probability of what the network rules out: no step may end all prefixes
Weights = Mapping[str, float]  # hot words or phrases, and the bonus of each in nats
Scored = list[tuple[Transcript, float]]  # each with the logarithm of its weighed probability, best first
NONE_HOT: Weights = MappingProxyType({})


def read_options(file: Path) -> BeamOptions:
    """Options of a ``decoder.json``, which may leave some out and say more under other names.

    Raises ModelNotFound if there is no such file, ModelMismatch if it cannot be read.
    """
    if not file.is_file():
        raise ModelNotFound(f"expected the decoder's weights in {file.name!r}, found no such file")
    try:
        found = {**json.loads(file.read_text(encoding="utf-8"))}
        found["priors"] = tuple(found.get("priors", ()))
        return BeamOptions(**{field.name: found[field.name] for field in fields(BeamOptions) if field.name in found})
    except (ValueError, TypeError) as error:
        raise ModelMismatch(f"expected {file.name} to be the weights of a decoder, found: {error}") from error


ROOT = 1  # of the tree of texts: its parent, 0, is never in the beam


class _Reader:
    """Reads the texts of one utterance's search; ``steps`` are those that were listened to."""

    def __init__(self, decoder: "BeamDecoder", found: Found, steps: list[int], hot: HotLetters | None) -> None:
        self.decoder, self.found, self.steps, self.hot = decoder, found, steps, hot

    def ended(self) -> dict[int, float]:
        """Node and logarithm of the probability of each text, its last word ended; likelier prefixes first."""
        texts: dict[int, float] = {}
        prefixes, parents, space = self.found.prefixes, self.found.nodes["parent"], self.decoder.space
        mass = prefixes["blank"] + prefixes["label"]
        score = np.log(mass) + self.found.scale + np.log(prefixes["end"])
        if self.hot:
            score += np.log(self.hot.weight[prefixes["hot"], space])
            score += self.hot.unfinished[self.hot.next[prefixes["hot"], space]]
        for place in np.argsort(-mass, kind="stable").tolist():
            node = int(prefixes["node"][place])
            text = int(parents[node]) if prefixes["last"][place] == space and node != ROOT else node
            texts[text] = float(np.logaddexp(texts.get(text, -math.inf), score[place]))
        return texts

    def read(self, node: int, duration: float) -> Transcript:
        """The text, with times and confidences as `speech.ctc.decode_greedy` gives them, but of each character's best
        step alone."""
        path, nodes, words, clock = self._path(node), self.found.nodes, [], 0.0
        characters = [self.decoder.alphabet.characters[label - 1] for label in nodes["label"][path].tolist()]
        heard = nodes["place"][path].tolist()
        for i in range(len(heard) - 1, 0, -1):  # one character after the other, wherever each was heard best
            heard[i - 1] = min(heard[i - 1], heard[i] - 1)
        places = [self.steps[place] for place in heard]
        for is_space, run in groupby(range(len(path)), lambda i: characters[i] == " "):
            letters = list(run)
            if not is_space:
                start = min(max(places[letters[0]] * SECONDS_PER_STEP, clock), duration)
                clock = min(max((places[letters[-1]] + 1) * SECONDS_PER_STEP, start), duration)
                text = "".join(characters[i] for i in letters)
                words.append(Word(text, start, clock, self._confidence([path[i] for i in letters])))
        text = " ".join(word.text for word in words)
        return Transcript(text, self._confidence(path), widened(words, duration))

    def _path(self, node: int) -> list[int]:
        """The nodes from the first character to this one."""
        path, parents = [], self.found.nodes["parent"]
        while node != ROOT:
            path.append(node)
            node = int(parents[node])
        return path[::-1]

    def _confidence(self, path: list[int]) -> float:
        return float(np.exp(np.log(self.found.nodes["peak"][path]).mean())) if path else 0.0


class BeamDecoder:
    """Finds the text that network and language together think most probable. Safe to share between threads, so many
    of which search ``at_once``. Raises ModelMismatch if the language model cannot spell the alphabet's words."""

    def __init__(
        self,
        alphabet: Alphabet,
        language_model: LanguageModel | None = None,
        options: BeamOptions | None = None,
        at_once: int = 1,
    ) -> None:
        self.alphabet, self.options = alphabet, options or BeamOptions()
        self.space = alphabet.characters.find(" ") + 1  # 0, which is never tried, if the alphabet has none
        letters = set(alphabet.characters.translate(MARKS)) - {" "}
        if language_model and not letters <= set(language_model.letters):
            raise ModelMismatch(f"expected a language model of words in {letters}, found {language_model.letters!r}")
        if len(self.options.priors) not in (0, alphabet.size):
            raise ModelMismatch(f"expected {alphabet.size} priors, found {len(self.options.priors)}")
        weight = self.options.lm_weight
        letters_known = letters_of(language_model, alphabet, weight) if language_model else plain_letters(alphabet)
        self._run = Search(letters_known, language_model, alphabet.size, self.space, self.options, at_once)

    def decode(self, log_probs: LogProbs, hot_words: Weights = NONE_HOT, duration: float = math.inf) -> Transcript:
        """The best text; no word ends after ``duration`` seconds. None if it is less sure than `BeamOptions` asks for,
        but where hot words are expected, which may be any sound. Raises ValueError for an absurd one."""
        reader = self._search(log_probs, hot_words)
        node, _ = max(reader.ended().items(), key=itemgetter(1))
        best = reader.read(node, duration)
        return best if hot_words or best.confidence >= self.options.least_confidence else Transcript("", 0.0)

    def hypotheses(self, log_probs: LogProbs, hot_words: Weights = NONE_HOT, duration: float = math.inf) -> Scored:
        """The texts in the beam at the end, best first. Arguments as those of `decode`."""
        reader = self._search(log_probs, hot_words)
        found: dict[str, tuple[Transcript, float]] = {}
        for node, score in reader.ended().items():
            new = reader.read(node, duration)
            old, before = found.get(new.text, (new, -math.inf))  # the old one is of a likelier prefix
            found[new.text] = old, float(np.logaddexp(before, score))
        return sorted(found.values(), key=itemgetter(1), reverse=True)

    def _search(self, log_probs: LogProbs, hot_words: Weights) -> _Reader:
        options = self.options
        hot = hot_letters(hot_words, self.alphabet) if hot_words else None
        rows = np.fmax(np.exp(np.fmin(log_probs.values.astype(np.float64), 0)), NEVER)
        rows[:, -1] += rows[:, 0]  # label 0 writes nothing: a second blank
        spoken = np.flatnonzero(rows[:, -1] <= options.blank_skip)
        left_out = float(np.log(np.delete(rows[:, -1], spoken)).sum())
        clear = rows[spoken]
        rows = clear**options.acoustic_scale
        if options.priors:
            priors = np.array(options.priors)
            priors[-1] += priors[0]
            rows *= np.maximum(priors, RAREST) ** -options.prior_scale
        rows /= rows[:, 1:].sum(axis=1, keepdims=True)
        tried = np.argsort(-rows[:, 1:-1], axis=1, kind="stable")[:, : options.labels] + 1
        counts = np.minimum((rows[:, 1:-1] > options.label_floor).sum(axis=1), options.labels)
        is_space = (tried == self.space) & (np.arange(tried.shape[1]) < counts[:, None])
        spaces = np.where(is_space.any(axis=1), is_space.argmax(axis=1), -1)
        gaps = np.diff(spoken, prepend=-1) > 1
        found = self._run(Steps(rows, clear, tried, counts, spaces, gaps), hot)
        return _Reader(self, replace(found, scale=found.scale + left_out), spoken.tolist(), hot)
