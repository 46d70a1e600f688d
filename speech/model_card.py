"""A model's card: what its weights expect, where they come from and how well they hear."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from speech.alphabet import Alphabet
from speech.audio import SAMPLE_RATE
from speech.errors import ModelMismatch, ModelNotFound
from speech.features import EPSILON, FFT_LENGTH, FRAME_LENGTH, FRAME_STEP, N_BINS

CARD, WEIGHTS, ONNX = "card.json", "model.keras", "model.onnx"
LANGUAGE_MODEL = "lm.npz"

FEATURES: dict[str, Any] = {
    "sample_rate": SAMPLE_RATE,
    "frame_length": FRAME_LENGTH,
    "frame_step": FRAME_STEP,
    "fft_length": FFT_LENGTH,
    "bins": N_BINS,
    "window": "periodic Hann",
    "compression": "square root of the magnitude",
    "normalisation": "mean and standard deviation of each frame",
    "epsilon": EPSILON,
}


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Contents of ``card.json``; ``sha256`` holds one sum for each file of weights."""

    name: str
    characters: str
    blank: int
    rnn_layers: int
    rnn_units: int
    sha256: dict[str, str]
    features: dict[str, Any] = field(default_factory=lambda: dict(FEATURES))
    training: dict[str, Any] = field(default_factory=dict)
    error_rates: dict[str, Any] = field(default_factory=dict)
    reduced_precision: dict[str, Any] = field(default_factory=dict)  # what bfloat16 does to the word error rate

    @property
    def alphabet(self) -> Alphabet:
        """The labels of the network's outputs."""
        return Alphabet(self.characters)


def sha256(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_card(folder: Path) -> ModelCard:
    """The card of a model's folder, checked against this code.

    Raises:
        ModelNotFound: there is no such folder, or no card in it.
        ModelMismatch: the card cannot be read, or asks for other features or labels than this code makes.
    """
    file = folder / CARD
    if not file.is_file():
        there = sorted(card.parent.name for card in folder.parent.glob(f"*/{CARD}"))
        raise ModelNotFound(
            f"expected a model in {folder.name!r}, found no {CARD} there; "
            f"models beside it: {', '.join(there) or 'none'}. Name one of them, or train one "
            "(python -m training.train) or convert one (python -m training.convert)"
        )
    try:
        card = ModelCard(**json.loads(file.read_text(encoding="utf-8")))
        for name, value in asdict(ModelCard("", "", 0, 0, 0, {})).items():
            if type(found := getattr(card, name)) is not type(value):
                raise TypeError(f"{name}: expected {type(value).__name__}, found {found!r:.50}")
    except (ValueError, TypeError) as error:
        raise ModelMismatch(f"expected {CARD} to be the card of a model, found: {error}") from error
    for name, expected in FEATURES.items():
        if card.features.get(name) != expected:
            raise ModelMismatch(f"{name}: the code makes {expected!r}, the card says {card.features.get(name)!r}")
    if card.blank != card.alphabet.blank:
        raise ModelMismatch(f"blank: the code puts it at {card.alphabet.blank}, the card says {card.blank}")
    return card


def write_card(card: ModelCard, folder: Path) -> None:
    """Write ``card.json`` into the folder."""
    (folder / CARD).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")


def add_files(folder: Path, *names: str) -> ModelCard:
    """Enter the sums of files that were written into the folder into its card."""
    card = read_card(folder)
    card = replace(card, sha256={**card.sha256, **{name: sha256(folder / name) for name in names}})
    write_card(card, folder)
    return card


def check_file(card: ModelCard, folder: Path, name: str) -> Path:
    """Path of one of the model's files, after its SHA-256 was compared with the card's.

    Raises:
        ModelNotFound: the file is missing.
        ModelMismatch: the card does not know the file, or its sum differs.
    """
    file = folder / name
    if not file.is_file():
        raise ModelNotFound(f"expected {name} in the folder of model {card.name!r}, found none")
    expected, found = card.sha256.get(name, "nothing of this file"), sha256(file)
    if expected != found:
        raise ModelMismatch(f"SHA-256 of {name}: the card says {expected}, the file has {found}")
    return file
