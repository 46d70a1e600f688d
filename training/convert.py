"""Bring an old Keras model into this project's layout: ``python -m training.convert OLD_FOLDER --out Models/NAME``.

The old folder is what descendants of https://keras.io/examples/audio/ctc_asr/ saved: the network (``model.h5`` or
``model.keras``, written by Keras 2 or 3) and its vocabulary (``num_to_char.pkl``, ``char_to_num.pkl``). Both kinds of
file can hold code. None is run: weights are read as numbers, pickles as a list of their constants.
"""

import argparse
import io
import json
import logging
import pickletools
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config import ROOT
from speech.alphabet import CHARACTERS, Alphabet
from speech.errors import ModelError, ModelMismatch, ModelNotFound, SpeechError
from speech.model_card import WEIGHTS, ModelCard, sha256, write_card
from training.export import export
from training.old_keras import read_layers, read_member, rebuild, sizes_of, untrusted

PICKLES = ("num_to_char.pkl", "char_to_num.pkl")
MAX_PICKLE_BYTES = 2**20
OUT_OF_VOCABULARY = ("", "[UNK]")  # what Keras' StringLookup may call label 0
RUNS_CODE = {"REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"}  # opcodes of a pickle


def read_characters(file: Path) -> tuple[str, str]:
    """(characters from label 1 on, where they come from) of a pickled vocabulary, which is never unpickled.

    Raises:
        ModelNotFound: there is no such file.
        ModelMismatch: it holds no list of different single characters.
    """
    if not file.is_file():
        raise ModelNotFound(f"{file.name}: expected a vocabulary, found no such file")
    with file.open("rb") as stream:
        data = stream.read(MAX_PICKLE_BYTES + 1)
    if len(data) > MAX_PICKLE_BYTES:
        raise ModelMismatch(f"{file.name}: expected at most {MAX_PICKLE_BYTES} bytes, found more")
    with untrusted(file, "a pickled vocabulary"):
        opcodes = [(opcode.name, value) for opcode, value, _ in pickletools.genops(data)]
        remark = " (it asks to run code, which was not run)" if RUNS_CODE & {name for name, _ in opcodes} else ""
        labels = _labels(opcodes)
        characters = labels[1:] if labels[:1] and labels[0] in OUT_OF_VOCABULARY else labels
        single = all(isinstance(c, str) and len(c) == 1 and c.isprintable() for c in characters)
        if not single or not characters or len(set(characters)) < len(characters):
            texts = ascii([value for name, value in opcodes if "UNICODE" in name])[:120]
            raise ModelMismatch(f"{file.name}: expected different single characters, found {texts}{remark}")
    return "".join(characters), file.name + remark


def _labels(opcodes: list[tuple[str, Any]]) -> list[Any]:
    """The labels that a pickled list, dict, ``get_vocabulary()`` or StringLookup layer holds, in their order."""
    blobs = [value for name, value in opcodes if "BINBYTES" in name]
    for blob in blobs:
        if blob.startswith(b"PK"):  # Keras 3 pickles a layer as a .keras file
            with zipfile.ZipFile(io.BytesIO(blob)) as archive:
                return json.loads(read_member(archive, "config.json", MAX_PICKLE_BYTES))["config"]["vocabulary"]
    if blobs:  # numpy.str_, of which get_vocabulary() consists
        return [blob.decode("utf-32-le") for blob in blobs]
    texts = [value for name, value in opcodes if "UNICODE" in name]
    numbers = [value for name, value in opcodes if name.startswith(("BININT", "INT", "LONG"))]
    if texts and len(numbers) == len(texts):  # a dict, of characters or of labels
        numbered = dict(zip(numbers, texts, strict=True))
        if 0 not in numbered:
            numbered[0] = ""
        if sorted(numbered) != list(range(len(numbered))) or numbered[0] not in OUT_OF_VOCABULARY:
            raise ModelMismatch(f"expected labels from 1 on, or 0 out of vocabulary, found {ascii(numbered)[:80]}")
        return [numbered[label] for label in range(len(numbered))]
    return [text for text in texts if len(text) < 2 or text in OUT_OF_VOCABULARY]


def choose_characters(folder: Path, n_outputs: int) -> tuple[str, str]:
    """(characters, where they come from) of a network: those of its pickles, or else this project's alphabet.

    Raises:
        ModelMismatch: the pickles do not settle it, and this project's alphabet has another size or is in neither.
    """
    found: dict[str, str] = {}
    problems = []
    for name in PICKLES:
        try:
            characters, source = read_characters(folder / name)
            if Alphabet(characters).size == n_outputs:
                found[source] = characters
            else:
                problems.append(f"{name}: expected {n_outputs - 2} characters, found {len(characters)}")
        except ModelError as error:
            problems.append(str(error))
    if len(set(found.values())) > 1:
        problems.append(f"expected the same characters in both, found {' and '.join(map(ascii, found.values()))}")
    elif found:
        return next(iter(found.values())), "; ".join([" and ".join(found), *problems])
    if Alphabet().size != n_outputs or (found and CHARACTERS not in found.values()):
        raise ModelMismatch(f"no vocabulary for {n_outputs} outputs: {'; '.join(problems)}")
    return CHARACTERS, f"this project's alphabet, because: {'; '.join(problems)}"


def convert(folder: Path, out: Path) -> ModelCard:
    """Write the model of an old folder into ``out``: weights, card, README and the file for ONNX Runtime.

    Raises:
        ModelNotFound: the old folder has no network.
        ModelMismatch: the network or its vocabulary cannot be read, or is not this project's; or ``out`` is not empty.
        OSError: ``out`` cannot be written.
    """
    files = [folder / "model.h5", folder / WEIGHTS, *sorted(folder.glob("*.h5"))]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise ModelNotFound(f"expected model.h5 or {WEIGHTS} in {folder.name!r}, found neither")
    if out.exists() and any(out.iterdir()):
        raise ModelMismatch(f"expected {out.name!r} to be a new or an empty folder, found files in it")
    layers, version = read_layers(file)
    rnn_layers, rnn_units, n_outputs = sizes_of(layers)
    characters, source = choose_characters(folder, n_outputs)
    model = rebuild(layers)
    origin = {"file": file.name, "sha256": sha256(file), "keras_version": version, "vocabulary": source}
    out.mkdir(parents=True, exist_ok=True)
    try:
        model.save(out / WEIGHTS)
        sums, blank = {WEIGHTS: sha256(out / WEIGHTS)}, Alphabet(characters).blank
        name = out.resolve().name
        card = ModelCard(name, characters, blank, rnn_layers, rnn_units, sums, training={"converted_from": origin})
        write_card(card, out)
        (out / "README.md").write_text(_readme(card, origin), encoding="utf-8")
        return export(out)
    except BaseException:
        shutil.rmtree(out)  # it was empty: no half a model stays
        raise


def _readme(card: ModelCard, origin: dict[str, str]) -> str:
    return f"""# {card.name}

Converted by `python -m training.convert` from `{origin["file"]}` (Keras {origin["keras_version"]}).

- Network: {card.rnn_layers} bidirectional GRU layers of {card.rnn_units} units, {card.alphabet.size} outputs.
- Characters, from label 1 on: `{card.characters}`; the blank is label {card.blank}.
- Vocabulary read from: {origin["vocabulary"]}.
- Input: the features of `card.json`. The old files do not name theirs; these are what their example code computes.
- Error rates: not measured. `python -m training.evaluate` measures them.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.convert", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with model.h5 or model.keras, and the pickles")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new model, such as Models/NAME")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        card = convert(given.folder, given.out)
    except (SpeechError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {' '.join(str(error).split())}\n")
    origin = card.training["converted_from"]
    print(f"{origin['file']}, Keras {origin['keras_version']}: {card.rnn_layers} layers of {card.rnn_units} units")
    print(f"{card.alphabet.size} outputs; vocabulary of {len(card.characters)} characters from {origin['vocabulary']}")
    out = given.out.resolve()
    print(f"{given.out} is ready: set STT_MODEL to {card.name if out.parent == ROOT / 'Models' else out}")


if __name__ == "__main__":
    main()
