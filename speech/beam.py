"""From log-probabilities to text, with language: CTC prefix beam search over words and hot words.

Sources: Graves & Jaitly, Towards end-to-end speech recognition with recurrent neural networks, ICML 2014 (the search);
Hannun et al., First-pass large vocabulary continuous speech recognition, arXiv:1408.2873 (the language model in it).
A step of the search is a few dozen NumPy calls on arrays with a place for each prefix in the beam, so its time hardly
grows with the width; what language says of the next letter is looked up in the tables of `speech.spelling`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from operator import index, itemgetter
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from speech.alphabet import Alphabet
from speech.ctc import SECONDS_PER_STEP, LogProbs, Transcript, Word, widened
from speech.errors import ModelMismatch, ModelNotFound
from speech.language_model import MARKS, UNKNOWN, LanguageModel, State
from speech.spelling import START, HotLetters, hot_letters, letters_of, plain_letters

OPTIONS = "decoder.json"  # the name of a BeamOptions file in a model's folder
RAREST = 1e-3  # what rarer labels than that count as
NEVER = 1e-30  # probability of what the network rules out: no step may end all prefixes
Weights = Mapping[str, float]  # hot words or phrases, and the bonus of each in nats
Scored = list[tuple[Transcript, float]]  # each with the logarithm of its weighed probability, best first
NONE_HOT: Weights = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class BeamOptions:
    """Weights (in nats) and limits of the search.

    The network's probabilities p are surer than they are right, and hold what is usual twice, as language does too: the
    search takes p ** acoustic_scale / prior ** prior_scale instead (the prior as in hybrid systems: Bourlard & Morgan,
    Connectionist Speech Recognition, 1994; Manohar et al., IEEE SLT 2015, for CTC).

    Raises ValueError if a limit leaves nothing to search or a number is not finite, TypeError if it is none.
    """

    width: int = 128  # prefixes that are kept
    lm_weight: float = 0.5  # of the language model's log-probabilities, beside the network's
    word_bonus: float = 1.0  # for each word: what a language model takes from long texts is given back
    acoustic_scale: float = 1.0  # of the network's log-probabilities
    prior_scale: float = 0.0  # of the priors' logarithms
    priors: tuple[float, ...] = ()  # how probable each label is on the whole; none: all the same
    unknown_penalty: float = 0.0  # for each word outside the vocabulary, on top of the cost of its letters
    labels: int = 8  # labels that are tried in one step
    label_floor: float = 3e-3  # probability below which a label is not tried
    beam_floor: float = 1e-4  # share of the best prefix's probability below which a prefix is dropped
    recombine: bool = True  # of prefixes that the future cannot tell apart keep the best; lists fewer alternatives
    blank_skip: float = 0.99  # a step whose blank is more probable than this says nothing

    def __post_init__(self) -> None:
        numbers = [*self.priors, *(value for name, value in asdict(self).items() if name != "priors")]
        if min(index(self.width), index(self.labels)) < 1 or not all(map(math.isfinite, numbers)):
            raise ValueError(f"expected finite numbers, a width and labels of at least 1, found {self}")
        if not all(0 <= prior <= 1 for prior in self.priors):
            raise ValueError(f"expected priors of 0 to 1, found {self.priors}")


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


Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
ROOT = 1  # its parent, 0, is never in the beam
PARENT, CHARACTER, PLACE = range(3)  # rows of a tree: a node, a label, and the step in which it was heard best


class _Tree:
    """All beginnings of the text that were ever kept: each is a parent and one more label."""

    def __init__(self, n_steps: int, space: int) -> None:
        self.size = ROOT + 1
        self.nodes, self.peak = np.zeros((3, 64 + 16 * n_steps), np.intp), np.zeros(64 + 16 * n_steps)
        self.slot = np.full(len(self.peak), -1, np.intp)  # where in the beam a node is; -1 between two steps
        self.nodes[CHARACTER, ROOT] = space

    def add(self, parents: Ints, labels: Ints, peaks: Floats, place: int) -> Ints:
        """New nodes, and their numbers."""
        start, self.size = self.size, self.size + len(parents)
        while self.size > len(self.peak):
            self.nodes, self.peak = np.concatenate([self.nodes] * 2, axis=1), np.concatenate([self.peak] * 2)
            self.slot = np.full(len(self.peak), -1, np.intp)
        new = slice(start, self.size)
        self.nodes[PARENT, new], self.nodes[CHARACTER, new], self.nodes[PLACE, new] = parents, labels, place
        self.peak[new] = peaks
        return np.arange(start, self.size)

    def path(self, node: int) -> list[int]:
        """The nodes from the first character to this one."""
        path = []
        while node != ROOT:
            path.append(node)
            node = int(self.nodes[PARENT, node])
        return path[::-1]


NODE, LAST, LETTERS, WORDS, HOT, AFTER = range(6)  # rows of the beam's state: a node, a label, three states; `_ends`
BLANK, LABEL, END = range(3)  # rows of its masses: of the paths that end in the blank, and in the last character


class _Search:
    """One utterance's search: the tree, the beam, and what the language model said of words in it.

    Columns of ``state`` (6, n) and ``mass`` (3, n) are the prefixes that are kept; BLANK and LABEL of the best one add
    up to 1, times exp(``scale``).
    """

    def __init__(self, decoder: "BeamDecoder", n_steps: int, hot: HotLetters | None) -> None:
        self.decoder, self.hot = decoder, hot
        self.tree = _Tree(n_steps, decoder.space)
        self.state = np.array([[ROOT], [decoder.space], [START], [0], [0], [0]])
        self.mass = np.array([[1.0], [0.0], [math.nan]])
        self.scale = 0.0
        model = decoder.language_model
        self._states: list[State] = [model.start if model else ()]
        self._numbers = {self._states[0]: 0}

    def _ends(self, slots: Ints) -> Floats:
        """The factors that the ends of these prefixes' unfinished words bring; row AFTER is the state of the words
        behind. Worked out once for each prefix."""
        factors = self.mass[END]
        for slot in slots[np.isnan(factors[slots])].tolist():
            letters, words = self.state[LETTERS : WORDS + 1, slot].tolist()
            factors[slot], self.state[AFTER, slot] = self._end(words, letters)
        return factors[slots]

    def _end(self, words: int, letters: int) -> tuple[float, int]:
        if letters == START:
            return 1.0, words
        options, model, tables = self.decoder.options, self.decoder.language_model, self.decoder.letters
        if not model:
            return math.exp(options.word_bonus), words
        token = int(tables.token[letters])
        score, state = model.follow(self._states[words], token)
        after = self._numbers.setdefault(state, len(self._states))
        if after == len(self._states):
            self._states.append(state)
        nats = options.word_bonus + options.lm_weight * (score + float(tables.rest[letters]))
        nats -= options.unknown_penalty * (token == UNKNOWN)
        return math.exp(min(max(nats, -300.0), 300.0)), after

    def silence(self) -> None:
        """Blanks that no step was spent on."""
        self.mass[BLANK] += self.mass[LABEL]
        self.mass[LABEL] = 0

    def step(self, row: Floats, plain: Floats, tried: Ints, space: int, place: int) -> None:
        """Go on by one step of these probabilities (``plain`` before they were weighed), trying these labels, of which
        number ``space`` is the space."""
        tables, options, tree, state = self.decoder.letters, self.decoder.options, self.tree, self.state
        nodes, last, n, k = state[NODE], state[LAST], state.shape[1], len(tried)
        total, heard = self.mass[BLANK] + self.mass[LABEL], row[last]
        again = tried == last[:, None]
        gain = np.where(again, self.mass[BLANK][:, None], total[:, None]) * row[tried]
        mass = self.mass.copy()
        blank, label = mass[BLANK], mass[LABEL]
        np.multiply(total, row[-1], out=blank)
        label *= heard
        gain *= gain > options.beam_floor * max(row[-1], label.max())
        gain *= tables.weight[state[LETTERS][:, None], tried]
        if self.hot:
            gain *= self.hot.weight[state[HOT][:, None], tried]
        if space >= 0:
            ended, spaces = gain[:, space], again[:, space]
            label += ended * spaces  # a second space writes nothing, nor does one at the beginning
            ended *= ~spaces
            slots = ended.nonzero()[0]
            ended[slots] *= self._ends(slots)
            mass[END] = self.mass[END]

        # What leads to a prefix that is in the beam already belongs to it.
        tree.slot[nodes] = np.arange(n)
        parent = tree.slot[tree.nodes[PARENT, nodes]]
        tree.slot[nodes] = -1
        held, column = (again & (parent >= 0)[:, None]).nonzero()
        above = parent[held]
        label[held] += gain[above, column]
        gain[above, column] = 0

        clear = plain[last]
        louder = ((clear > tree.peak[nodes]) & (label > blank)).nonzero()[0]
        tree.peak[nodes[louder]], tree.nodes[PLACE, nodes[louder]] = clear[louder], place

        score = np.concatenate([blank + label, gain.ravel()])
        best = score.max()
        self.scale += math.log(best)
        mass[:END] /= best
        found = (score > best * options.beam_floor).nonzero()[0]
        if found[-1] < n:  # nothing new
            self.state, self.mass = (state, mass) if len(found) == n else (state[:, found], mass[:, found])
            return
        found = found[np.argsort(-score[found], kind="stable")][: 3 * options.width]
        new = (found >= n).nonzero()[0]
        source, added = found.copy(), found[new] - n
        source[new], label_number = np.divmod(added, k)
        character, state, mass = tried[label_number], state[:, source], mass[:, source]
        state[LAST, new] = character
        state[LETTERS, new] = tables.next[state[LETTERS, new], character]
        if space >= 0:
            state[WORDS, new] = np.where(label_number == space, state[AFTER, new], state[WORDS, new])
        if self.hot:
            state[HOT, new] = self.hot.next[state[HOT, new], character]
        mass[BLANK, new], mass[LABEL, new], mass[END, new] = 0, score[found[new]] / best, math.nan
        kept = np.arange(len(found))
        if options.recombine:
            future = (state[WORDS] * len(tables.next) + state[LETTERS]) * len(row) + state[LAST]
            if self.hot:
                future = future * len(self.hot.next) + state[HOT]
            order = future.argsort(kind="stable")
            future = future[order]
            first = np.ones(len(order), bool)
            np.not_equal(future[1:], future[:-1], out=first[1:])
            kept = order[first]
            kept.sort()
        kept = kept[: options.width]
        self.state, self.mass, new = state[:, kept], mass[:, kept], (found[kept] >= n).nonzero()[0]
        character = self.state[LAST, new]
        self.state[NODE, new] = tree.add(self.state[NODE, new], character, plain[character], place)

    def ended(self) -> dict[int, float]:
        """Node and logarithm of the probability of each text, its last word ended; likelier prefixes first."""
        found: dict[int, float] = {}
        mass, parents, space = self.mass[BLANK] + self.mass[LABEL], self.tree.nodes[PARENT], self.decoder.space
        order = np.argsort(-mass, kind="stable")
        score = np.log(mass) + self.scale + np.log(self._ends(np.arange(len(mass))))
        if self.hot:
            hot = self.state[HOT]
            score += np.log(self.hot.weight[hot, space]) + self.hot.unfinished[self.hot.next[hot, space]]
        for node, last, value in zip(*self.state[[NODE, LAST]][:, order].tolist(), score[order].tolist(), strict=True):
            text = int(parents[node]) if last == space and node != ROOT else node
            found[text] = float(np.logaddexp(found.get(text, -math.inf), value))
        return found

    def read(self, node: int, steps: list[int], duration: float) -> Transcript:
        """The text, with times and confidences as `speech.ctc.decode_greedy` gives them, but of each character's best
        step alone; ``steps`` are those that were listened to."""
        path, words, clock = self.tree.path(node), [], 0.0
        characters = [
            self.decoder.alphabet.characters[label - 1] for label in self.tree.nodes[CHARACTER, path].tolist()
        ]
        places = [steps[place] for place in self.tree.nodes[PLACE, path].tolist()]
        for is_space, run in groupby(range(len(path)), lambda i: characters[i] == " "):
            letters = list(run)
            if not is_space:
                start = min(max(places[letters[0]] * SECONDS_PER_STEP, clock), duration)
                clock = min(max((places[letters[-1]] + 1) * SECONDS_PER_STEP, start), duration)
                text = "".join(characters[i] for i in letters)
                words.append(Word(text, start, clock, self._confidence([path[i] for i in letters])))
        text = " ".join(word.text for word in words)
        return Transcript(text, self._confidence(path), widened(words, duration))

    def _confidence(self, path: list[int]) -> float:
        return float(np.exp(np.log(self.tree.peak[path]).mean())) if path else 0.0


class BeamDecoder:
    """Finds the text that network and language together think most probable. Safe to share between threads.
    Raises ModelMismatch if the language model cannot spell the alphabet's words."""

    def __init__(
        self, alphabet: Alphabet, language_model: LanguageModel | None = None, options: BeamOptions | None = None
    ) -> None:
        self.alphabet, self.language_model, self.options = alphabet, language_model, options or BeamOptions()
        self.space = alphabet.characters.find(" ") + 1  # 0, which is never tried, if the alphabet has none
        letters = set(alphabet.characters.translate(MARKS)) - {" "}
        if language_model and not letters <= set(language_model.letters):
            raise ModelMismatch(f"expected a language model of words in {letters}, found {language_model.letters!r}")
        if len(self.options.priors) not in (0, alphabet.size):
            raise ModelMismatch(f"expected {alphabet.size} priors, found {len(self.options.priors)}")
        if language_model:
            self.letters = letters_of(language_model, alphabet, self.options.lm_weight)
        else:
            self.letters = plain_letters(alphabet)

    def decode(self, log_probs: LogProbs, hot_words: Weights = NONE_HOT, duration: float = math.inf) -> Transcript:
        """The best text; no word ends after ``duration`` seconds. Raises ValueError for an absurd hot word."""
        search, steps = self._search(log_probs, hot_words)
        best = max(search.ended().items(), key=itemgetter(1))
        return search.read(best[0], steps, duration)

    def hypotheses(self, log_probs: LogProbs, hot_words: Weights = NONE_HOT, duration: float = math.inf) -> Scored:
        """The texts in the beam at the end, best first. Arguments as those of `decode`."""
        search, steps = self._search(log_probs, hot_words)
        found: dict[str, tuple[Transcript, float]] = {}
        for node, score in search.ended().items():
            new = search.read(node, steps, duration)
            old, before = found.get(new.text, (new, -math.inf))  # the old one is of a likelier prefix
            found[new.text] = old, float(np.logaddexp(before, score))
        return sorted(found.values(), key=itemgetter(1), reverse=True)

    def _search(self, log_probs: LogProbs, hot_words: Weights) -> tuple[_Search, list[int]]:
        """The search at its end, and the steps that it listened to."""
        options = self.options
        hot = hot_letters(hot_words, self.alphabet) if hot_words else None
        rows = np.fmax(np.exp(np.fmin(log_probs.values.astype(np.float64), 0)), NEVER)
        rows[:, -1] += rows[:, 0]  # label 0 writes nothing: a second blank
        spoken = np.flatnonzero(rows[:, -1] <= options.blank_skip)
        search = _Search(self, len(spoken), hot)
        search.scale = float(np.log(np.delete(rows[:, -1], spoken)).sum())
        plain = rows[spoken]
        rows = plain**options.acoustic_scale
        if options.priors:
            priors = np.array(options.priors)
            priors[-1] += priors[0]
            rows *= np.maximum(priors, RAREST) ** -options.prior_scale
        rows /= rows[:, 1:].sum(axis=1, keepdims=True)
        order = np.argsort(-rows[:, 1:-1], axis=1, kind="stable")[:, : options.labels] + 1
        tried = np.minimum((rows[:, 1:-1] > options.label_floor).sum(axis=1), options.labels).tolist()
        gaps = (np.diff(spoken, prepend=-1) > 1).tolist()
        spaces = np.where((order == self.space).any(1), (order == self.space).argmax(1), options.labels).tolist()
        inputs = zip(rows, plain, order, tried, spaces, gaps, strict=True)
        for step, (row, before, labels, n, space, gap) in enumerate(inputs):
            if gap:
                search.silence()
            search.step(row, before, labels[:n], space if space < n else -1, step)
        return search, spoken.tolist()
