"""Old models work: files really written by Keras 2 and 3 convert right, and nothing that is in them runs."""

import gzip
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import Settings
from speech.alphabet import CHARACTERS
from speech.engine import load_onnx
from speech.errors import ModelError, ModelMismatch
from speech.model_card import read_card
from training.convert import PICKLES, choose_characters, convert, main, read_characters
from training.old_keras import read_layers

KERAS2 = Path(__file__).parent / "fixtures" / "keras2"
OTHERS = CHARACTERS[::-1]  # an alphabet of the right size that is not the built-in one
N_OUTPUTS = len(CHARACTERS) + 2


def ancestor(units: int = 16, rnn_layers: int = 2, lambda_layer: Callable[[Any], Any] | None = None):
    """The network of https://keras.io/examples/audio/ctc_asr/ with its names, compiled, no weight at its start."""
    import keras
    from keras import layers

    keras.utils.clear_session()  # names such as dense_1 are counted anew

    def CTCLoss(y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean(y_pred, axis=(1, 2))

    def ctc_accuracy(y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean(y_pred)

    inputs = layers.Input((None, 193), name="input")
    x = layers.Reshape((-1, 193, 1), name="expand_dim")(inputs)
    for i, (kernel, strides) in enumerate((([11, 41], [2, 2]), ([11, 21], [1, 2])), start=1):
        x = layers.Conv2D(32, kernel, strides=strides, padding="same", use_bias=False, name=f"conv_{i}")(x)
        x = layers.BatchNormalization(name=f"conv_{i}_bn")(x)
        x = layers.ReLU(name=f"conv_{i}_relu")(x)
    x = layers.Reshape((-1, x.shape[-2] * x.shape[-1]))(x)
    for i in range(1, rnn_layers + 1):
        gru = layers.GRU(units, return_sequences=True, reset_after=True, name=f"gru_{i}")
        x = layers.Bidirectional(gru, name=f"bidirectional_{i}", merge_mode="concat")(x)
        x = layers.Dropout(0.5)(x) if i < rnn_layers else x
    if lambda_layer:
        x = layers.Lambda(lambda_layer)(x)
    x = layers.ReLU(name="dense_1_relu")(layers.Dense(2 * units, name="dense_1")(x))
    x = layers.Dense(N_OUTPUTS, activation="softmax")(layers.Dropout(0.5)(x))
    model = keras.Model(inputs, x, name="DeepSpeech_2")
    rng = np.random.default_rng(5)
    for layer in model.layers:
        values = [w + rng.uniform(0.01, 0.2, w.shape) * rng.choice([-1, 1], w.shape) for w in layer.get_weights()]
        layer.set_weights([np.abs(v) if layer.name.endswith("_bn") else v for v in values])
    model.compile(optimizer="adam", loss=CTCLoss, metrics=[ctc_accuracy])
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of old models by the Keras that wrote them: network, pickles, expected.npz (frames, log_probs)."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("keras2", "keras3")}
    for file in KERAS2.iterdir():
        if file.suffix == ".gz":
            (folders["keras2"] / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        elif file.suffix in (".npz", ".pkl"):
            shutil.copy(file, folders["keras2"])
    model, folder = ancestor(), folders["keras3"]
    for name in ("model.h5", "model.keras"):
        model.save(folder / name)
    frames = np.random.default_rng(6).standard_normal((1, 74, 193), np.float32)
    np.savez(folder / "expected.npz", frames=frames, log_probs=np.log(model.predict(frames, verbose=0)))
    for name, value in zip(PICKLES, lookups(OTHERS), strict=True):
        (folder / name).write_bytes(pickle.dumps(value))
    return folders


def lookups(characters: str) -> tuple[Any, Any]:
    """(num_to_char, char_to_num) as the example makes them."""
    from keras.layers import StringLookup

    char_to_num = StringLookup(vocabulary=list(characters), oov_token="")
    return StringLookup(vocabulary=char_to_num.get_vocabulary(), oov_token="", invert=True), char_to_num


@pytest.fixture
def folder(old: dict[str, Path], tmp_path: Path) -> Path:
    """A folder to spoil: model.h5 of Keras 3, no pickles."""
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(old["keras3"] / "model.h5", folder)
    return folder


def fails(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command line leaves with status 1, and no folder."""
    with pytest.raises(SystemExit) as left:
        main([str(folder), "--out", str(out)])
    assert left.value.code == 1
    assert not out.exists()
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1 and "expected" in stderr and "found" in stderr
    return stderr


# What converts


@pytest.mark.parametrize("file", ["model.h5", "model.keras"])
@pytest.mark.parametrize(
    ("writer", "version", "sizes", "characters"),
    [("keras2", "2.15.0", (2, 4), CHARACTERS), ("keras3", "3.", (2, 16), OTHERS)],
)
def test_the_converted_model_computes_what_the_old_one_did(
    old: dict[str, Path], tmp_path: Path, file: str, writer: str, version: str, sizes: tuple[int, int], characters: str
):
    folder, out = tmp_path / "old", tmp_path / "Models" / "new"
    shutil.copytree(old[writer], folder, ignore=lambda _, names: {"model.h5", "model.keras"} - {file})
    convert(folder, out)
    card = read_card(out)
    assert (card.name, card.rnn_layers, card.rnn_units, card.characters) == ("new", *sizes, characters)
    origin = card.training["converted_from"]
    assert origin["keras_version"].startswith(version)
    assert origin["vocabulary"].startswith("num_to_char.pkl")
    assert f"`{characters}`" in (out / "README.md").read_text(encoding="utf-8")
    expected = np.load(folder / "expected.npz")
    frames = expected["frames"].astype(np.float32)
    found = load_onnx(card, out, 1)(frames, np.array([frames.shape[1]], np.int32))
    assert expected["log_probs"].std(axis=1).max() > 0.1  # there is something to get wrong
    np.testing.assert_allclose(found, expected["log_probs"], rtol=0, atol=1e-4)


def test_the_command_line_says_what_it_found(old: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(old["keras2"], tmp_path / "old")
    (tmp_path / "old" / "model.h5").rename(tmp_path / "old" / "speech.h5")  # the ancestors took any .h5
    (tmp_path / "old" / "model.keras").unlink()
    main([str(tmp_path / "old"), "--out", str(tmp_path / "new")])
    said = capsys.readouterr().out
    assert "speech.h5, Keras 2.15.0: 2 layers of 4 units" in said
    assert "32 outputs; vocabulary of 30 characters from num_to_char.pkl" in said
    model = re.search("STT_MODEL to (.*)", said)[1]
    assert (Settings(model=model).model_folder / "model.keras").exists()  # it is not in Models/


# The vocabulary


def vocabularies() -> dict[str, Callable[[], Any]]:
    """Everything that the ancestors pickled."""
    labelled = ["", *OTHERS]
    return {
        "list": lambda: list(OTHERS),
        "tuple": lambda: tuple(labelled),
        "label of": lambda: {c: i for i, c in enumerate(labelled)},
        "label of, from 1": lambda: {c: i for i, c in enumerate(OTHERS, start=1)},
        "label of, shuffled": lambda: {c: i for i, c in sorted(enumerate(labelled), key=lambda pair: pair[1])},
        "character of": lambda: dict(enumerate(["[UNK]", *OTHERS])),
        "get_vocabulary": lambda: lookups(OTHERS)[0].get_vocabulary(),
        "num_to_char": lambda: lookups(OTHERS)[0],
        "char_to_num": lambda: lookups(OTHERS)[1],
    }


@pytest.mark.parametrize("kind", vocabularies())
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_every_kind_of_pickled_vocabulary_is_read(tmp_path: Path, kind: str, protocol: int):
    (tmp_path / "char_to_num.pkl").write_bytes(pickle.dumps(vocabularies()[kind](), protocol))
    characters, source = choose_characters(tmp_path, N_OUTPUTS)
    assert characters == OTHERS
    assert source.startswith("char_to_num.pkl") and "num_to_char.pkl: expected" in source


@pytest.mark.parametrize(
    "value",
    [
        list("abc"),
        list("a" * 30),
        {c: i for i, c in enumerate(OTHERS)},  # label 0 would be a character: not this layout
        {c: 2 * i for i, c in enumerate(OTHERS)},
        [*OTHERS[:-1], "\x00"],
        {"model": "DeepSpeech_2"},
        None,
    ],
)
def test_a_vocabulary_that_does_not_fit_is_not_believed(tmp_path: Path, value: object):
    for name in PICKLES:
        (tmp_path / name).write_bytes(pickle.dumps(value))
    characters, source = choose_characters(tmp_path, N_OUTPUTS)
    assert characters == CHARACTERS
    assert source.startswith("this project's alphabet, because:") and source.count("found") == 2
    with pytest.raises(ModelMismatch, match="no vocabulary for 41 outputs"):
        choose_characters(tmp_path, 41)


def test_pickles_that_disagree_settle_nothing_alone(tmp_path: Path):
    (tmp_path / PICKLES[0]).write_bytes(pickle.dumps(list(OTHERS)))
    (tmp_path / PICKLES[1]).write_bytes(pickle.dumps(list(CHARACTERS)))
    characters, source = choose_characters(tmp_path, N_OUTPUTS)
    assert characters == CHARACTERS and "same characters in both" in source
    (tmp_path / PICKLES[1]).write_bytes(pickle.dumps(list(OTHERS.upper())))
    with pytest.raises(ModelMismatch, match="same characters in both"):
        choose_characters(tmp_path, N_OUTPUTS)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.crater),)


def test_a_hostile_pickle_does_not_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    crater = tmp_path / "crater"
    hostile = pickle.dumps(Bomb(crater))
    pickle.loads(hostile)  # it is a live one
    crater.rmdir()
    for name in PICKLES:
        (folder / name).write_bytes(hostile)
    main([str(folder), "--out", str(tmp_path / "new")])
    assert not crater.exists()
    assert read_card(tmp_path / "new").characters == CHARACTERS
    assert "it asks to run code, which was not run" in capsys.readouterr().out


def test_characters_beside_hostile_code_are_read_without_it(tmp_path: Path):
    crater = tmp_path / "crater"
    (tmp_path / PICKLES[0]).write_bytes(pickle.dumps([*OTHERS, Bomb(crater)]))
    assert read_characters(tmp_path / PICKLES[0]) == (OTHERS, f"{PICKLES[0]} (it asks to run code, which was not run)")
    assert not crater.exists()


def test_a_large_pickle_is_not_read(tmp_path: Path):
    (tmp_path / PICKLES[0]).write_bytes(pickle.dumps([*OTHERS, "x" * 2**20]))
    with pytest.raises(ModelMismatch, match="at most 1048576 bytes"):
        read_characters(tmp_path / PICKLES[0])


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_a_vocabulary_or_a_model_error(tmp_path: Path, data: st.DataObject):
    real = bytearray((KERAS2 / data.draw(st.sampled_from(PICKLES))).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        real[data.draw(st.integers(0, len(real) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "any.pkl").write_bytes(data.draw(st.one_of(st.just(bytes(real)), st.binary(max_size=200))))
    try:
        characters, _ = read_characters(tmp_path / "any.pkl")
    except ModelError:
        return
    assert len(set(characters)) == len(characters) > 0


# Hostile networks

FORWARD = "model_weights/bidirectional_1/bidirectional_1/forward_gru_1/gru_cell/recurrent_kernel"
DENSE = "model_weights/dense_1/dense_1/kernel"


def spoil_link(h5: h5py.File) -> None:
    with h5py.File(Path(h5.filename).with_name("other"), "w") as other:
        other["kernel"] = h5[DENSE][()]
    del h5[DENSE]
    h5[DENSE] = h5py.ExternalLink("other", "kernel")


def spoil_group_link(h5: h5py.File) -> None:
    h5.copy("model_weights", "elsewhere")
    del h5["model_weights"]
    h5["model_weights"] = h5py.SoftLink("/elsewhere")


def spoil_storage(h5: h5py.File) -> None:
    secret = Path(h5.filename).with_name("secret")
    secret.write_bytes(bytes(32 * 32 * 4))
    del h5[DENSE]
    h5.create_dataset(DENSE, (32, 32), "f4", external=[(str(secret), 0, 32 * 32 * 4)])


def spoil_virtual(h5: h5py.File) -> None:
    del h5[DENSE]
    layout = h5py.VirtualLayout((32, 32), "f4")
    layout[:] = h5py.VirtualSource("other", "kernel", shape=(32, 32))
    h5.create_virtual_dataset(DENSE, layout)


def replaced(path: str, shape: tuple[int, ...], dtype: str = "f4", **options: object) -> Callable[[h5py.File], None]:
    def spoil(h5: h5py.File) -> None:
        del h5[path]
        h5.create_dataset(path, shape, dtype, **options)

    return spoil


def removed(path: str) -> Callable[[h5py.File], None]:
    def spoil(h5: h5py.File) -> None:
        del h5[path]

    return spoil


def spoil_config(before: str, after: str) -> Callable[[h5py.File], None]:
    def spoil(h5: h5py.File) -> None:
        text = h5.attrs["model_config"]
        assert before in text
        h5.attrs["model_config"] = text.replace(before, after)

    return spoil


def spoil_number(h5: h5py.File) -> None:
    h5[DENSE][0, 0] = np.nan


def spoil_scale(h5: h5py.File) -> None:
    """Numbers so large that the export, the last step, finds the two engines apart."""
    h5["model_weights/dense/dense/kernel"][...] *= 1e4


def spoil_order(h5: h5py.File) -> None:
    attributes = h5["model_weights/conv_1_bn"].attrs
    attributes["weight_names"] = attributes["weight_names"][::-1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_link, "expected it inside the file, found ExternalLink at 'kernel'"),
        (spoil_group_link, "found SoftLink at 'model_weights'"),
        (spoil_storage, "expected floating-point numbers inside the file"),
        (spoil_virtual, "expected floating-point numbers inside the file"),
        (replaced(DENSE, (31, 32)), "dense_1: expected shapes [(32, 32), (32,)], found [(31, 32), (32,)]"),
        (replaced(DENSE, ()), "dense_1: expected shapes [(32, 32), (32,)], found [(), (32,)]"),
        (replaced(DENSE, (32, 32), "i4"), "expected floating-point numbers"),
        (replaced(DENSE, (10**7, 10**7), chunks=(100, 100), compression="gzip"), "expected weights of at most"),
        (replaced(FORWARD, (10**7, 3 * 10**7), chunks=(100, 100)), "expected weights of at most"),
        (replaced(FORWARD, ()), "expected bidirectional GRUs of one size"),
        (replaced(FORWARD, (8, 24)), "expected bidirectional GRUs of one size"),
        (
            replaced(FORWARD.replace("recurrent_", ""), (8, 48)),
            "bidirectional_1: expected shapes [(1568, 48), (16, 48)",
        ),
        (removed("model_weights"), "found NoneType at 'model_weights'"),
        (removed("model_weights/conv_2"), "found NoneType at 'conv_2'"),
        (removed(DENSE), "found NoneType at 'kernel'"),
        (spoil_order, "conv_1_bn: expected weights ('gamma', 'beta', 'moving_mean', 'moving_variance')"),
        (spoil_scale, "model.onnx: expected log-probabilities within"),
        (spoil_number, "dense_1: expected finite weights"),
        (spoil_config('"strides": [2, 2]', '"strides": [1, 2]'), "conv_1: expected strides [2, 2], found [1, 2]"),
        (spoil_config('"epsilon": 0.001', '"epsilon": 0.01'), "expected epsilon 0.001, found 0.01"),
        (spoil_config('"Dropout"', '"Softmax"'), "expected the layers"),
        (spoil_config("{", "["), "expected model.h5 to be a whole model saved by Keras, found JSONDecodeError"),
        (lambda h5: h5.attrs.pop("model_config"), "expected model.h5 to be a whole model saved by Keras"),
        (lambda h5: h5.attrs.modify("model_config", "[" * 100_000), "found RecursionError"),
    ],
)
def test_a_hostile_network_is_refused_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[h5py.File], None], message: str
):
    with h5py.File(folder / "model.h5", "r+") as h5:
        spoil(h5)
    assert message in fails(folder, tmp_path / "new", capsys)


@pytest.mark.parametrize("file", ["model.h5", "model.keras"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_network_is_refused(
    old: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, kept: float
):
    data = (old["keras3"] / file).read_bytes()
    (tmp_path / file).write_bytes(data[: int(kept * len(data))])
    assert "to be a whole model saved by Keras" in fails(tmp_path, tmp_path / "new", capsys)


def test_a_zip_bomb_is_not_unpacked(old: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with (
        zipfile.ZipFile(old["keras3"] / "model.keras") as real,
        zipfile.ZipFile(tmp_path / "model.keras", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in ("config.json", "metadata.json"):
            bomb.writestr(name, real.read(name), zipfile.ZIP_STORED)
        bomb.writestr("model.weights.h5", bytes(10_000_000))
    assert "model.weights.h5: expected at most" in fails(tmp_path, tmp_path / "new", capsys)


def test_a_lambda_layer_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    crater = str(tmp_path / "crater")

    def explode(x: Any) -> Any:
        import os

        os.makedirs(crater, exist_ok=True)
        return x

    ancestor(4, 1, explode).save(tmp_path / "model.h5")
    os.rmdir(crater)  # it went off while the network was built
    assert "found Reshape, Conv2D" in fails(tmp_path, tmp_path / "new", capsys)
    assert not os.path.exists(crater)


# Folders


def test_a_folder_without_a_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "expected model.h5 or model.keras in 'nowhere'" in fails(tmp_path / "nowhere", tmp_path / "new", capsys)


def test_a_folder_that_holds_something_is_left_alone(folder: Path, tmp_path: Path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "card.json").write_text("mine")
    with pytest.raises(ModelMismatch, match="new or an empty folder"):
        convert(folder, tmp_path / "new")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["card.json"]


def test_reading_keeps_the_order_of_the_network(old: dict[str, Path]):
    layers, _ = read_layers(old["keras3"] / "model.keras")
    legacy, _ = read_layers(old["keras3"] / "model.h5")
    assert [layer.settings["name"] for layer in layers] == [layer.settings["name"] for layer in legacy]
    for ours, theirs in zip(layers, legacy, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours.weights, theirs.weights, strict=True))
