"""From log-probabilities to text, with language: CTC prefix beam search over words and hot words.

Sources: Graves & Jaitly, Towards end-to-end speech recognition with recurrent neural networks, ICML 2014 (the search);
Hannun et al., First-pass large vocabulary continuous speech recognition, arXiv:1408.2873 (the language model in it).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from operator import attrgetter, index, itemgetter
from pathlib import Path
from types import MappingProxyType

import numpy as np

from speech.alphabet import Alphabet
from speech.ctc import SECONDS_PER_STEP, LogProbs, Transcript, Word, widened
from speech.errors import ModelMismatch, ModelNotFound
from speech.language_model import MARKS, UNKNOWN, HotWords, LanguageModel, State

OPTIONS = "decoder.json"  # the name of a BeamOptions file in a model's folder
NEVER = 1e-30  # probability of what the network rules out: no step may end all prefixes
Weights = Mapping[str, float]  # hot words or phrases, and the bonus of each in nats
Scored = list[tuple[Transcript, float]]  # each with the logarithm of its weighed probability, best first
NONE_HOT: Weights = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class BeamOptions:
    """Weights (in nats) and limits of the search.

    Raises ValueError if a limit leaves nothing to search or a number is not finite, TypeError if it is none.
    """

    width: int = 10  # prefixes that are kept
    lm_weight: float = 0.5  # of the language model's log-probabilities, beside the network's
    word_bonus: float = 1.0  # for each word: what a language model takes from long texts is given back
    unknown_penalty: float = 0.0  # for each word outside the vocabulary, on top of the cost of its letters
    labels: int = 8  # labels that are tried in one step
    label_floor: float = 1e-3  # probability below which a label is not tried
    beam_floor: float = 3e-3  # share of the best prefix's probability below which a prefix is dropped
    recombine: bool = True  # of prefixes that the future cannot tell apart keep the best; lists fewer alternatives
    blank_skip: float = 0.99  # a step whose blank is more probable than this says nothing

    def __post_init__(self) -> None:
        if min(index(self.width), index(self.labels)) < 1 or not all(map(math.isfinite, asdict(self).values())):
            raise ValueError(f"expected finite numbers, a width and labels of at least 1, found {self}")


def read_options(file: Path) -> BeamOptions:
    """Options of a ``decoder.json``, which may leave some out and say more under other names.

    Raises ModelNotFound if there is no such file, ModelMismatch if it cannot be read.
    """
    if not file.is_file():
        raise ModelNotFound(f"expected the decoder's weights in {file.name!r}, found no such file")
    try:
        found = {**json.loads(file.read_text(encoding="utf-8"))}
        return BeamOptions(**{field.name: found[field.name] for field in fields(BeamOptions) if field.name in found})
    except (ValueError, TypeError) as error:
        raise ModelMismatch(f"expected {file.name} to be the weights of a decoder, found: {error}") from error


class _Prefix:
    """A beginning of the text: a node of the tree of the texts tried, and what the search knows of it.

    ``blank`` and ``label`` are the probabilities of the paths that end in the blank and in the last character,
    ``mass`` is their sum; the best prefix of a step has mass 1.
    """

    __slots__ = ("ahead", "blank", "character", "children", "heard", "label", "mass", "next_blank", "next_label",
                 "number", "parent", "peak", "place", "state", "step", "weight", "word")  # fmt: skip

    def __init__(self, parent: "_Prefix | None", number: int, character: str, state: State) -> None:
        self.parent, self.number, self.character, self.state = parent, number, character, state
        self.children: dict[int, _Prefix] = {}
        self.blank = self.label = self.mass = self.next_blank = self.next_label = 0.0
        self.step = -1  # the step for which next_blank and next_label are summed up
        self.word, self.ahead, self.heard = "", 0.0, ""  # unfinished word, its log-probability so far, hot letters
        self.weight = 1.0  # what language and hot words make of the last character, a factor
        self.peak, self.place = 0.0, 0  # highest probability of the last character, and in which step

    def read(self, steps: list[int], duration: float) -> Transcript:
        """The text, with times and confidences as `speech.ctc.decode_greedy` gives them, but of each character's best
        step alone; ``steps`` are those that were listened to."""
        path, words, clock = [self], [], 0.0
        while path[-1].parent is not None:
            path.append(path[-1].parent)
        for is_space, run in groupby(path[-2::-1], lambda node: node.character == " "):
            letters = list(run)
            if not is_space:
                start = min(max(steps[letters[0].place] * SECONDS_PER_STEP, clock), duration)
                clock = min(max((steps[letters[-1].place] + 1) * SECONDS_PER_STEP, start), duration)
                words.append(Word("".join(node.character for node in letters), start, clock, _confidence(letters)))
        return Transcript(" ".join(word.text for word in words), _confidence(path[:-1]), widened(words, duration))

    def forget(self) -> None:
        """Leave the beam, and the tree where nothing in the beam hangs on it or may soon want it back."""
        self.blank = self.label = self.mass = 0.0
        self.children = {number: child for number, child in self.children.items() if child.mass or child.children}
        node = self
        while node.parent is not None and not (node.children or node.mass or node.parent.mass):
            node.parent.children.pop(node.number, None)
            node = node.parent


_Beam = list[_Prefix]


def _confidence(nodes: _Beam) -> float:
    return math.exp(sum(math.log(node.peak) for node in nodes) / len(nodes)) if nodes else 0.0


class BeamDecoder:
    """Finds the text that network and language together think most probable. Safe to share between threads.
    Raises ModelMismatch if the language model cannot spell the alphabet's words."""

    def __init__(
        self, alphabet: Alphabet, language_model: LanguageModel | None = None, options: BeamOptions | None = None
    ) -> None:
        self.alphabet, self.language_model, self.options = alphabet, language_model, options or BeamOptions()
        self._space = alphabet.characters.find(" ") + 1  # 0, which is never tried, if the alphabet has none
        letters = set(alphabet.characters.translate(MARKS)) - {" "}
        if language_model and not letters <= set(language_model.letters):
            raise ModelMismatch(f"expected a language model of words in {letters}, found {language_model.letters!r}")

    def decode(self, log_probs: LogProbs, hot_words: Weights = NONE_HOT, duration: float = math.inf) -> Transcript:
        """The best text; no word ends after ``duration`` seconds. Raises ValueError for an absurd hot word."""
        return self.hypotheses(log_probs, hot_words, duration)[0][0]

    def hypotheses(self, log_probs: LogProbs, hot_words: Weights = NONE_HOT, duration: float = math.inf) -> Scored:
        """The texts in the beam at the end, best first. Arguments as those of `decode`."""
        options, hot = self.options, HotWords(hot_words, self.alphabet.characters)
        rows = np.fmax(np.exp(np.fmin(log_probs.values.astype(np.float64), 0)), NEVER)
        rows[:, -1] += rows[:, 0]  # label 0 writes nothing: a second blank
        spoken = np.flatnonzero(rows[:, -1] <= options.blank_skip)
        silent, rows = np.delete(rows[:, -1], spoken), rows[spoken]
        order = np.argsort(-rows[:, 1:-1], axis=1, kind="stable")[:, : options.labels] + 1
        tried = (rows[:, 1:-1] > options.label_floor).sum(axis=1)
        root = _Prefix(None, self._space, " ", self.language_model.start if self.language_model else ())
        root.blank = root.mass = 1.0
        beam, scale, gaps = [root], float(np.log(silent).sum()), np.diff(spoken, prepend=-1) > 1
        steps = zip(rows.tolist(), order.tolist(), tried.tolist(), gaps.tolist(), strict=True)
        for step, (row, numbers, n, gap) in enumerate(steps):
            if gap:
                for node in beam:
                    node.blank, node.label = node.mass, 0.0
            beam, best = self._prune(self._step(beam, row, numbers[:n], step, hot))
            scale += math.log(best)
        return self._finish(beam, scale, hot, spoken.tolist(), duration)

    def _step(self, beam: _Beam, row: list[float], numbers: list[int], step: int, hot: HotWords) -> _Beam:
        """The prefixes that one step reaches, with their next_blank and next_label."""
        reached, blank, floor, space = [], row[-1], self.options.beam_floor, self._space
        top = beam[0].mass * blank
        for node in beam:
            before, label, mass, last = node.blank, node.label, node.mass, node.number
            if node.step != step:
                node.step, node.next_label = step, 0.0
                reached.append(node)
            node.next_blank = mass * blank
            node.next_label += label * row[last]
            if label > before and row[last] > node.peak:
                node.peak, node.place = row[last], step
            for number in numbers:
                probability = row[number]
                gain = (before if number == last else mass) * probability
                if gain <= top * floor:
                    continue
                if number == last == space:  # writes nothing, nor does one at the beginning
                    node.next_label += gain
                    continue
                child = node.children.get(number)
                if child is None:
                    child = node.children[number] = self._extend(node, number, hot)
                gain *= child.weight
                if child.step != step:
                    if gain <= top * floor and not child.mass:
                        continue
                    child.step, child.next_blank, child.next_label = step, 0.0, 0.0
                    reached.append(child)
                    child.peak = child.peak if child.mass else 0.0  # it may have been dropped before
                child.next_label += gain
                if probability > child.peak:
                    child.peak, child.place = probability, step
                if gain > top:
                    top = gain
        return reached

    def _prune(self, reached: _Beam) -> tuple[_Beam, float]:
        """The best of the prefixes reached, best first, scaled to a mass of 1, and the mass of the best before."""
        options, kept, seen = self.options, _Beam(), set()
        for node in reached:
            node.mass = node.next_blank + node.next_label
        reached.sort(key=attrgetter("mass"), reverse=True)
        best = reached[0].mass
        for node in reached:
            future = (node.state, node.word, node.number, node.heard)
            if len(kept) == options.width or node.mass <= best * options.beam_floor or future in seen:
                node.forget()
                continue
            if options.recombine:
                seen.add(future)
            node.blank, node.label, node.mass = node.next_blank / best, node.next_label / best, node.mass / best
            kept.append(node)
        return kept, best

    def _extend(self, parent: _Prefix, number: int, hot: HotWords) -> _Prefix:
        """The prefix with one more character, weighed by what language and hot words say of it."""
        character, nats = self.alphabet.characters[number - 1], 0.0
        node = _Prefix(parent, number, character, parent.state)
        if character == " ":
            nats, node.state, node.heard = self._end_word(parent, hot)
        elif character in "?!":
            node.word, node.ahead, node.heard = parent.word, parent.ahead, parent.heard
        else:
            node.word = parent.word + character
            node.heard, nats = hot.after(parent.heard, character, begins=not parent.word)
            if self.language_model:
                node.ahead = self.language_model.prefix(node.word)
                nats += self.options.lm_weight * (node.ahead - parent.ahead)
        node.weight = math.exp(min(max(nats, -300.0), 300.0))
        return node

    def _end_word(self, prefix: _Prefix, hot: HotWords) -> tuple[float, State, str]:
        """What the end of the unfinished word adds, in nats; the language model's state and what is hot behind it."""
        if not prefix.word:
            return 0.0, prefix.state, prefix.heard
        heard, nats = hot.after(prefix.heard, " ", begins=False)
        nats += self.options.word_bonus
        if not self.language_model:
            return nats, prefix.state, heard
        score, state = self.language_model.word(prefix.state, prefix.word)
        nats -= self.options.unknown_penalty * (state[-1] == UNKNOWN)
        return nats + self.options.lm_weight * (score - prefix.ahead), state, heard

    def _finish(self, beam: _Beam, scale: float, hot: HotWords, steps: list[int], duration: float) -> Scored:
        """Texts of the last beam with their last words ended, the same text once, best first."""
        found: dict[str, tuple[Transcript, float]] = {}
        for node in beam:
            bonus, _, heard = self._end_word(node, hot)
            new, score = node.read(steps, duration), math.log(node.mass) + scale + bonus + hot.unfinished(heard)
            old, before = found.get(new.text, (new, -math.inf))  # the old one is of a likelier prefix
            found[new.text] = old, float(np.logaddexp(before, score))
        return sorted(found.values(), key=itemgetter(1), reverse=True)
