"""Code and card that disagree stop the load, both values named."""

import json
import shutil
from pathlib import Path

import pytest

from predictor import SpeechPredictor
from speech.errors import ModelMismatch, ModelNotFound
from speech.model_card import FEATURES, read_card, write_card


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def rewrite(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **changes}))


def test_a_card_survives_being_written(folder: Path):
    card = read_card(folder)
    write_card(card, folder)
    assert read_card(folder) == card


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_other_features_are_refused_with_both_values(folder: Path, name: str):
    rewrite(folder, features={**FEATURES, name: "other"})
    with pytest.raises(ModelMismatch) as raised:
        SpeechPredictor.load(folder)
    assert all(text in str(raised.value) for text in (name, repr(FEATURES[name]), "'other'"))


def test_another_blank_is_refused_with_both_values(folder: Path):
    rewrite(folder, blank=0)
    with pytest.raises(ModelMismatch, match=r"31.*card says 0"):
        SpeechPredictor.load(folder)


def test_another_architecture_is_refused(folder: Path):
    rewrite(folder, rnn_units=32)
    with pytest.raises(ModelMismatch, match="2 × 32"):
        SpeechPredictor.load(folder, engine="keras")


def test_other_weights_are_refused_with_both_sums(folder: Path):
    expected = read_card(folder).sha256["model.onnx"]
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelMismatch, match=f"the card says {expected}, the file has [0-9a-f]{{64}}"):
        SpeechPredictor.load(folder, engine="onnx")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 1}', "null"])
def test_a_broken_card_is_refused(folder: Path, text: str):
    (folder / "card.json").write_text(text)
    with pytest.raises(ModelMismatch, match="card"):
        SpeechPredictor.load(folder)


@pytest.mark.parametrize(("name", "value"), [("characters", None), ("sha256", []), ("features", 1), ("rnn_units", "2")])
def test_a_card_of_other_types_is_refused(folder: Path, name: str, value: object):
    rewrite(folder, **{name: value})
    with pytest.raises(ModelMismatch, match=f"card.*{name}: expected"):
        SpeechPredictor.load(folder)


def test_a_missing_folder_is_said_with_what_there_is(folder: Path):
    with pytest.raises(ModelNotFound, match=r"'nothing'.*copy.*Name one"):
        SpeechPredictor.load(folder.parent / "nothing")
