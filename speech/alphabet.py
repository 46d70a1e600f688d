"""The labels that the network writes: which number is which character, and where the blank stands."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

CHARACTERS = "abcdefghijklmnopqrstuvwxyz'?! "
APOSTROPHES = re.compile(r"(?<=\w)[`´ʼ‘′](?=\w)|’")
ELLIPSIS = re.compile(r"\.{2,}")
SPELT = str.maketrans({"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th"})
ZERO_WIDTH_SPACE = "\u200b"


@dataclass(frozen=True, slots=True)
class Alphabet:
    """The characters of a model, in label order.

    Label 0 is the empty out-of-vocabulary label that Keras' ``StringLookup(oov_token="")`` puts first, labels
    1 … n are the characters, and the blank of CTC comes last (the convention of ``tf.nn.ctc_loss``).
    """

    characters: str = CHARACTERS

    @property
    def blank(self) -> int:
        """The label of CTC's blank: the last output of the network."""
        return len(self.characters) + 1

    @property
    def size(self) -> int:
        """How many outputs the network has, the blank included."""
        return len(self.characters) + 2

    def encode(self, text: str) -> list[int]:
        """Labels of a normalised text. Raises KeyError for a character that is not in the alphabet."""
        label = {character: index for index, character in enumerate(self.characters, start=1)}
        return [label[character] for character in text]

    def decode(self, labels: Iterable[int]) -> str:
        """Text of labels; label 0 and the blank stand for nothing. Raises IndexError for a label out of range."""
        symbols = ["", *self.characters, ""]
        return "".join(symbols[label] for label in labels)


def normalise_text(text: str, characters: str = CHARACTERS) -> str:
    """The one spelling of a text, for training and for scoring.

    Letters are lowered and lose their accents, typographic apostrophes become ``'``. White space, dashes and marks that
    the alphabet lacks become one space, but for the single full stop; letters that it lacks are dropped. Numbers are
    dropped too: write them out first.
    """
    spaced = (" " if c not in characters and _parts(c) else c for c in ELLIPSIS.sub(" ", _folded(text)))
    return " ".join("".join(c for c in spaced if c in characters).split())


def lost_characters(text: str, characters: str = CHARACTERS) -> str:
    """The letters and digits of a text that `normalise_text` drops."""
    return "".join(c for c in _folded(text) if c.isalnum() and c not in characters)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKD", APOSTROPHES.sub("'", text.lower()).translate(SPELT))


def _parts(character: str) -> bool:
    """Whether words on both sides of it are two."""
    return character == ZERO_WIDTH_SPACE or (
        character != "." and (character.isspace() or unicodedata.category(character)[0] in "PS")
    )
