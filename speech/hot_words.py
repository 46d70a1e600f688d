"""Words that the speaker is likely to say: ``Kubernetes, ice cream:6``, and what they are worth letter by letter."""

import unicodedata
from collections.abc import Iterable, Mapping

from speech.alphabet import CHARACTERS, normalise_text
from speech.language_model import MARKS

HOT_WEIGHT = 4.0  # nats, where none is given: docs/decoding.md has what it does
MAX_HOT_WEIGHT = 100.0  # nats
MAX_HOT_WORDS = 100  # words or phrases at once
MAX_HOT_LENGTH = 64  # characters of one
MAX_HOT_TEXT = MAX_HOT_WORDS * (MAX_HOT_LENGTH + 16)  # characters of all, with bonuses and commas


def read_hot_words(texts: Iterable[str], characters: str = CHARACTERS) -> dict[str, float]:
    """Words or phrases, separated by commas, and the bonus of each in nats, which may stand behind a colon.

    Raises:
        ValueError: one cannot be spelled with the characters, its bonus is no number of at most 100 either way, or
            they are too long or too many.
    """
    texts = list(texts)
    if (length := sum(map(len, texts))) > MAX_HOT_TEXT:
        raise ValueError(f"expected at most {MAX_HOT_TEXT} characters of hot words, found {length}")
    found: dict[str, float] = {}
    for written in (part.strip() for text in texts for part in text.split(",")):
        if not written:
            continue
        phrase, _, weight = written.partition(":")
        if len(phrase) > MAX_HOT_LENGTH:
            raise ValueError(f"expected hot words of at most {MAX_HOT_LENGTH} characters, found {written!r:.99}")
        spelled = " ".join(normalise_text(phrase, characters).translate(MARKS).split())
        folded = unicodedata.normalize("NFKD", phrase.lower())
        if not spelled or any(c.isalnum() and c not in characters for c in folded):
            raise ValueError(f"expected hot words in letters, numbers written out, found {written!r:.99}")
        found[spelled] = _weight(weight, written)
        if len(found) > MAX_HOT_WORDS:
            raise ValueError(f"expected at most {MAX_HOT_WORDS} hot words, found more")
    return found


def _weight(weight: str, written: str) -> float:
    try:
        value = float(weight or HOT_WEIGHT)
    except ValueError:
        value = float("nan")
    if not abs(value) <= MAX_HOT_WEIGHT:
        raise ValueError(f"expected WORD or WORD:NUMBER, at most {MAX_HOT_WEIGHT:g} either way, found {written!r:.99}")
    return value


class HotWords:
    """Words and phrases that the speaker is likely to say, each with a bonus in nats (negative: unlikely).

    A bonus is earned letter by letter, so that the search does not drop the word before it ends, and given back
    where the letters turn out to be of another word.

    Raises:
        ValueError: a weight is not a number of at most 100 nats either way.
    """

    def __init__(self, weights: Mapping[str, float], characters: str) -> None:
        whole: dict[str, float] = {}
        for phrase, weight in weights.items():
            if not abs(weight) <= MAX_HOT_WEIGHT:
                raise ValueError(f"expected a weight of at most {MAX_HOT_WEIGHT:.0f} either way, found {weight}")
            if text := " ".join(normalise_text(phrase, characters).translate(MARKS).split()):
                whole[text + " "] = weight
        starts = {text[:end] for text in whole for end in range(1, len(text) + 1)}
        self._whole = whole
        self._found: dict[str, float] = {}
        # For now, by the letters of a phrase that has only begun, or by one that ended or began within it.
        self._earned = {start: sum(whole[end] for end in self._ends(start)) for start in {"", *starts}}
        for text, weight in whole.items():
            for end in range(1, len(text)):
                self._earned[text[:end]] = max(self._earned[text[:end]], weight * end / len(text))
        for start in sorted(starts, key=len):
            rest = self._longest(start.partition(" ")[2])
            self._earned[start] = max(self._earned[start], self._ended(start), self._earned[rest])

    def after(self, heard: str, character: str, begins: bool) -> tuple[str, float]:
        """The letters of hot words heard after one more character, and the bonus in nats that it adds.

        Args:
            heard: the letters heard before it, empty if they belong to no hot word.
            begins: the character is the first of a word.
        """
        if not heard and not begins:
            return "", 0.0
        longer = heard + character
        if longer in self._earned:
            return longer, self._earned[longer] - self._earned[heard]
        whole, longer = longer, self._longest(longer)  # another phrase may have begun at one of its words
        for_good = self._ended(whole) - self._ended(longer)
        return longer, for_good + self._earned[longer] - self._earned[heard]

    def unfinished(self, heard: str) -> float:
        """What has to be given back if nothing follows, in nats (0 or less for a bonus)."""
        return self._ended(heard) - self._earned[heard]

    def _longest(self, heard: str) -> str:
        while heard and heard not in self._earned:
            heard = heard.partition(" ")[2]
        return heard

    def _ended(self, heard: str) -> float:
        """What stays for good if nothing of it goes on: all phrases that ended, but those wholly within one that
        began before them."""
        heard = heard[: heard.rfind(" ") + 1]
        if heard not in self._found:
            total, rest, least = 0.0, heard, len(heard)  # least: letters behind the end of the phrases so far
            while rest:
                ends = [end for end in self._ends(rest) if len(rest) - len(end) < least]
                total += sum(self._whole[end] for end in ends)
                least = min([least, *(len(rest) - len(end) for end in ends)])
                rest = rest.partition(" ")[2]
            self._found[heard] = total
        return self._found[heard]

    def _ends(self, heard: str) -> list[str]:
        """The phrases, with their space, that what was heard begins with."""
        places = [end for end, character in enumerate(heard, 1) if character == " "]
        return [heard[:end] for end in places if heard[:end] in self._whole]
