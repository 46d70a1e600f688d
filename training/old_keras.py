"""Reads the layers of an old Keras file, ``.h5`` or ``.keras`` of Keras 2 or 3, without running anything in it."""

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from speech.errors import ModelError, ModelMismatch
from speech.model import build_model

if TYPE_CHECKING:
    import keras

GRU = ("kernel", "recurrent_kernel", "bias")
WEIGHT_NAMES = {  # of each kind of layer, in Keras' order
    "Conv2D": ("kernel",),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Bidirectional": GRU + GRU,
    "Dense": ("kernel", "bias"),
}
SETTINGS = (  # what decides about the output beside the weights and their shapes
    *("strides", "padding", "dilation_rate", "data_format", "target_shape", "epsilon", "activation", "merge_mode"),
    *("recurrent_activation", "reset_after", "go_backwards", "negative_slope", "max_value", "threshold"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One layer of an old network: its class, its settings, and its weights in Keras' order."""

    kind: str
    settings: dict[str, Any]
    weights: list[np.ndarray]


@contextmanager
def untrusted(file: Path, expected: str) -> Iterator[None]:
    """Damage shows in many ways (h5py, zipfile, json and pickletools raise their own errors): make it one."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise ModelMismatch(f"expected {file.name} to be {expected}, found {found}") from error


def read_layers(file: Path) -> tuple[list[Layer], str]:
    """(layers, version of Keras) of an ``.h5`` or ``.keras`` file, without running anything that is in it.

    Raises:
        ModelMismatch: the file is damaged, is no whole model, or refers to something outside itself.
    """
    n_bytes = file.stat().st_size
    with untrusted(file, "a whole model saved by Keras"):
        if file.suffix != ".keras":
            with h5py.File(file, "r") as h5:
                configs, version = _configs(json.loads(h5.attrs["model_config"])), h5.attrs["keras_version"]
                weights = _read(h5, _legacy_paths(h5, configs), n_bytes)
        else:
            with zipfile.ZipFile(file) as archive:
                configs = _configs(json.loads(read_member(archive, "config.json", n_bytes)))
                version = json.loads(read_member(archive, "metadata.json", n_bytes))["keras_version"]
                stored = io.BytesIO(read_member(archive, "model.weights.h5", n_bytes))
            with h5py.File(stored, "r") as h5:
                weights = _read(h5, _paths(configs), n_bytes)
        layers = [Layer(*config, arrays) for config, arrays in zip(configs, weights, strict=True)]
        return layers, ascii(version)[1:20].strip("'")


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    size = archive.getinfo(name).file_size
    if size > limit:  # Keras does not compress
        raise ModelMismatch(f"{name}: expected at most {limit} bytes, found {size}")
    return archive.read(name)


def _configs(model: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(class, settings) of each layer of a network's JSON; a bidirectional layer's include those of its GRU."""
    return [
        (layer["class_name"], {**layer["config"].get("layer", {}).get("config", {}), **layer["config"]})
        for layer in model["config"]["layers"]
    ]


def _legacy_paths(h5: h5py.File, configs: list[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    """Where an ``.h5`` keeps each layer's weights: as the attribute ``weight_names`` of the layer's group says."""
    paths = []
    for kind, settings in configs:
        group = f"model_weights/{settings['name']}"
        names = _find(h5, group).attrs["weight_names"] if kind in WEIGHT_NAMES else []
        names = [name.decode() if isinstance(name, bytes) else name for name in names]
        found = tuple(name.split("/")[-1].partition(":")[0] for name in names)
        if found != WEIGHT_NAMES.get(kind, ()):
            raise ModelMismatch(f"{settings['name']}: expected weights {WEIGHT_NAMES[kind]}, found {found}")
        paths.append([f"{group}/{name}" for name in names])
    return paths


def _paths(configs: list[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    """Where a ``.keras`` keeps each layer's weights: in groups named by class, numbered within the class."""
    paths, kinds = [], [kind for kind, _ in configs]
    for i, kind in enumerate(kinds):
        group = "layers/" + {"BatchNormalization": "batch_normalization"}.get(kind, kind.lower())
        group += f"_{kinds[:i].count(kind)}" if kind in kinds[:i] else ""
        parts = ["forward_layer/cell/vars", "backward_layer/cell/vars"] if kind == "Bidirectional" else ["vars"]
        n_each = len(WEIGHT_NAMES.get(kind, ())) // len(parts)
        paths.append([f"{group}/{part}/{n}" for part in parts for n in range(n_each)])
    return paths


def _find(root: h5py.File, path: str) -> Any:
    """A group or dataset that lies in the file itself. Raises ModelMismatch where a link leads away or to nothing."""
    found: Any = root
    for part in filter(None, path.split("/")):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            raise ModelMismatch(f"{path}: expected it inside the file, found {type(link).__name__} at {part!r}")
        found = found[part]
    return found


def _read(root: h5py.File, paths: list[list[str]], n_bytes: int) -> list[list[np.ndarray]]:
    """The arrays at the paths, after their headers promised nothing but numbers and no more than the file has."""
    datasets = [[_find(root, path) for path in group] for group in paths]
    for data in (data for group in datasets for data in group):
        if not isinstance(data, h5py.Dataset) or data.dtype.kind != "f" or data.external or data.is_virtual:
            raise ModelMismatch(f"{data.name}: expected floating-point numbers inside the file, found {data!r}")
    if (total := sum(data.nbytes for group in datasets for data in group)) > n_bytes:
        shapes = ", ".join(f"{data.name} {data.shape}" for group in datasets for data in group)
        raise ModelMismatch(f"expected weights of at most {n_bytes} bytes, the file's size, found {total} in {shapes}")
    return [[np.asarray(data[()], np.float32) for data in group] for group in datasets]


def sizes_of(layers: Sequence[Layer]) -> tuple[int, int, int]:
    """(rnn_layers, rnn_units, n_outputs), from the shapes of the weights. Raises ModelMismatch without them."""
    recurrent = [layer.weights[1].shape for layer in layers if layer.kind == "Bidirectional"]
    bias = [layer.weights[1].shape for layer in layers if layer.kind == "Dense"][-1:]
    if len(set(recurrent)) != 1 or not recurrent[0] or not bias or not bias[0] or 0 in recurrent[0] + bias[0]:
        found = f"found recurrent kernels {recurrent} and the bias {bias}"
        raise ModelMismatch(f"expected bidirectional GRUs of one size and a dense layer behind them, {found}")
    return len(recurrent), recurrent[0][0], bias[0][0]


def rebuild(layers: Sequence[Layer]) -> "keras.Model":
    """This project's network with the old weights in it.

    Raises:
        ModelMismatch: the old network has other layers, settings or shapes; the message names the layer.
    """
    model = build_model(*sizes_of(layers))
    configs = _configs(json.loads(json.dumps({"config": model.get_config()}, default=str)))
    idle = ("InputLayer", "Dropout")
    ours = [(kind, settings) for kind, settings in configs if kind not in idle]
    theirs = [layer for layer in layers if layer.kind not in idle]
    if (expected := [kind for kind, _ in ours]) != (found := [layer.kind for layer in theirs]):
        raise ModelMismatch(f"expected the layers {', '.join(expected)}, found {', '.join(found)}")
    for layer, (_, settings) in zip(theirs, ours, strict=True):
        name, new = layer.settings["name"], model.get_layer(settings["name"])
        for key in settings.keys() & layer.settings.keys() & set(SETTINGS):
            if layer.settings[key] != settings[key]:
                raise ModelMismatch(f"{name}: expected {key} {settings[key]!r}, found {layer.settings[key]!r}")
        shapes = [weight.shape for weight in new.get_weights()]
        if shapes != [weight.shape for weight in layer.weights]:
            raise ModelMismatch(f"{name}: expected shapes {shapes}, found {[w.shape for w in layer.weights]}")
        if not all(np.isfinite(weight).all() for weight in layer.weights):
            raise ModelMismatch(f"{name}: expected finite weights, found NaN or infinity")
        new.set_weights(layer.weights)
    return model
