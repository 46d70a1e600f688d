"""What every letter does to the beginning of a word, as tables that a whole beam is looked up in at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from speech.alphabet import Alphabet
from speech.hot_words import HotWords
from speech.language_model import FIRST_WORD, RESOLUTION, SPELLING_ORDER, UNKNOWN, LanguageModel

Numbers = npt.NDArray[np.int32]
Factors = npt.NDArray[np.float32]
MAX_NATS = 75.0  # a letter is worth at most so much, either way: no float32 may become 0 or infinite
START = 0  # the state before the first letter of a word


def factor(nats: npt.ArrayLike) -> Factors:
    """exp, within limits."""
    return np.exp(np.clip(nats, -MAX_NATS, MAX_NATS)).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Letters:
    """Beginnings of words, and what one more letter makes of them.

    State 0 is the empty beginning; then come all beginnings of known words, then the last three letters of beginnings
    that no known word has: nothing else of those matters to what may follow.

    Attributes:
        next: (n_states, n_labels) the state behind each label; a space leads to 0.
        weight: (n_states, n_labels) factor of the language model's weight for each label; 1 for a space, whose worth
            depends on the words before.
        token: (n_states,) of the word that is complete here, UNKNOWN if none is.
        rest: (n_states,) nats; to be added to the log-probability of ``token`` when the word ends here.
    """

    next: Numbers
    weight: Factors
    token: Numbers
    rest: Factors


def plain_letters(alphabet: Alphabet) -> Letters:
    """Without a language model: 0 before a word's first letter, 1 behind it."""
    inside = np.array([0] + [character not in " ?!" for character in alphabet.characters] + [0], np.int32)
    stays = np.array([0] + [character in "?!" for character in alphabet.characters] + [0], np.int32)
    ones = np.ones((2, alphabet.size), np.float32)
    return Letters(np.stack([inside, inside | stays]), ones, np.zeros(2, np.int32), np.zeros(2, np.float32))


def letters_of(model: LanguageModel, alphabet: Alphabet, lm_weight: float) -> Letters:
    """Tables of a language model. Takes a tenth of a second for 40,000 words."""
    base, letter = len(model.letters) + 2, {character: number for number, character in enumerate(model.letters, 1)}
    span, n_contexts = base ** (SPELLING_ORDER - 2), base ** (SPELLING_ORDER - 1)
    spelling = np.asarray(model.spelling).reshape(n_contexts, base) / RESOLUTION
    unigrams = np.asarray(model.unigrams) / RESOLUTION

    # The tree of the vocabulary, one letter's depth after the other; words are in alphabetical order.
    longest = max(map(len, model.words), default=0)
    points = np.array(model.words, f"U{longest + 1}").view(np.uint32).reshape(-1, longest + 1)  # 0 behind the end
    numbers = np.zeros(1 + max(points.max(initial=0), *map(ord, letter)), np.int64)
    numbers[list(map(ord, letter))] = list(letter.values())
    spelt = numbers[points]
    probability = np.exp(-unigrams[FIRST_WORD:])
    parents, into, tokens = ([np.zeros(1, np.int64)] for _ in range(3))
    mass: list[npt.NDArray[np.float64]] = [np.ones(1)]
    here, n_states = np.zeros(len(spelt), np.int64), 1  # the state of each word's first letters
    new = np.zeros(len(spelt), bool)
    new[:1] = True
    for depth in range(longest):
        column = spelt[:, depth]
        new[1:] |= column[1:] != column[:-1]
        alive = column > 0
        first = new & alive
        before, here = here, n_states - 1 + np.cumsum(first)
        parents.append(before[first])
        into.append(column[first])
        mass.append(np.bincount(here[alive] - n_states, probability[alive], int(first.sum())).astype(np.float64))
        token = np.full(int(first.sum()), UNKNOWN, np.int64)
        ends = alive & (spelt[:, depth + 1] == 0)
        token[here[ends] - n_states] = FIRST_WORD + np.flatnonzero(ends)
        tokens.append(token)
        n_states += int(first.sum())

    parent, number = np.concatenate(parents), np.concatenate(into)
    ahead = np.log(np.maximum(np.concatenate(mass), 1e-15))
    context, spent = np.zeros(n_states, np.int64), np.zeros(n_states)
    start = 1
    for level in parents[1:]:
        states = slice(start, start + len(level))
        spent[states] = spent[level] + spelling[context[level], number[states]]
        context[states] = context[level] % span * base + number[states]
        start += len(level)

    contexts = np.concatenate([context, np.arange(n_contexts)])
    unknown = -unigrams[UNKNOWN] - spent - ahead  # what leaving the vocabulary costs, before the letter itself
    toll = np.concatenate([unknown, np.zeros(n_contexts)])
    labels = np.array([0] + [letter.get(character, 0) for character in alphabet.characters] + [0])
    spells = labels > 0
    following = np.zeros((len(contexts), alphabet.size), np.int32)
    following[:, spells] = n_states + contexts[:, None] % span * base + labels[spells]
    nats = np.zeros(following.shape, np.float32)
    nats[:, spells] = toll[:, None] - spelling[contexts][:, labels[spells]]
    label_of = np.zeros(base, np.int64)
    label_of[labels[spells]] = np.flatnonzero(spells)
    known = np.arange(1, n_states)
    following[parent[1:], label_of[number[1:]]] = known
    nats[parent[1:], label_of[number[1:]]] = ahead[1:] - ahead[parent[1:]]
    marks = [place for place, character in enumerate(alphabet.characters, 1) if character in "?!"]
    following[:, marks] = np.arange(len(following))[:, None]

    token = np.concatenate([*tokens, np.full(n_contexts, UNKNOWN)])
    rest = np.concatenate([-spent - ahead, np.full(n_contexts, unigrams[UNKNOWN])]) - spelling[contexts, base - 1]
    complete = token >= FIRST_WORD
    rest[complete] = -ahead[complete[:n_states].nonzero()[0]]
    return Letters(following, factor(lm_weight * nats), token.astype(np.int32), rest.astype(np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class HotLetters:
    """The letters of hot words heard so far, and what one more label makes of them.

    State 0 is before a word, 1 inside a word that is not hot. ``next`` and ``weight`` are as those of `Letters`, the
    space included; ``unfinished`` (n_states,) nats are what has to be given back if nothing follows.
    """

    next: Numbers
    weight: Factors
    unfinished: Factors


def hot_letters(weights: Mapping[str, float], alphabet: Alphabet) -> HotLetters:
    """Tables of hot words, made once for all parts of a recording. Raises ValueError as `HotWords` does."""
    return _hot_letters(tuple(weights.items()), alphabet)


@lru_cache(16)
def _hot_letters(weights: tuple[tuple[str, float], ...], alphabet: Alphabet) -> HotLetters:
    hot = HotWords(dict(weights), alphabet.characters)
    states, numbers = [("", True), ("", False)], {("", True): 0, ("", False): 1}
    following, nats = [], []
    for heard, begins in states:  # which grows
        row = [(numbers[heard, begins], 0.0)]
        for character in alphabet.characters:
            after, gained, inside = heard, 0.0, not begins
            if character == " " and inside and not heard.endswith(" "):
                after, gained = hot.after(heard, " ", begins=False)
                inside = bool(after)
            elif character not in " ?!":
                after, gained = hot.after(heard, character, begins)
                inside = True
            state = (after, not inside)
            if state not in numbers:
                numbers[state] = len(states)
                states.append(state)
            row.append((numbers[state], gained))
        row.append(row[0])
        following.append([state for state, _ in row])
        nats.append([gained for _, gained in row])
    unfinished = np.array([hot.unfinished(heard) for heard, _ in states], np.float32)
    return HotLetters(np.array(following, np.int32), factor(nats), unfinished)
