"""Hot words as people write them: ``Kubernetes, ice cream:6``."""

import unicodedata
from collections.abc import Iterable

from speech.alphabet import CHARACTERS, normalise_text
from speech.language_model import MARKS, MAX_HOT_WEIGHT

HOT_WEIGHT = 4.0  # nats, where none is given: docs/decoding.md has what it does
MAX_HOT_WORDS = 100  # words or phrases at once
MAX_HOT_LENGTH = 64  # characters of one


def read_hot_words(texts: Iterable[str], characters: str = CHARACTERS) -> dict[str, float]:
    """Words or phrases, separated by commas, and the bonus of each in nats, which may stand behind a colon.

    Raises:
        ValueError: one cannot be spelled with the characters, its bonus is no number of at most 100 either way, or
            they are too long or too many.
    """
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
