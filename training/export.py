"""Write the serving engine's file beside a model's weights: ``python -m training.export MODEL``."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech.engine import load_keras, load_onnx
from speech.errors import ModelMismatch, SpeechError
from speech.features import N_BINS
from speech.model import load_weights_file
from speech.model_card import ONNX, WEIGHTS, ModelCard, check_file, read_card, sha256, write_card

if TYPE_CHECKING:
    import keras

OPSET = 17
TOLERANCE = 1e-4  # in log-probabilities, against Keras
log = logging.getLogger("training.export")


class _Graph:
    """Nodes and initialisers of an ONNX graph, added in order."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, value: np.ndarray, half: bool = False) -> str:
        """Name of an initialiser; one that float16 holds exactly is stored so and widened when the file is loaded."""
        from onnx import numpy_helper

        name = f"constant_{len(self.initializers)}"
        with np.errstate(over="ignore"):
            narrow = value.astype(np.float16)
        if half and np.array_equal(narrow.astype(np.float32), value):
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(narrow), name))
            return self.add("Cast", name, to=1)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Name of the output of a new node."""
        from onnx import helper

        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output


def build_onnx(model: "keras.Model", weights_sha256: str) -> bytes:
    """ONNX file of a network of `speech.model.build_model`, with true lengths as a second input.

    ``frames`` float32 (batch, even number of frames, 193) and ``n_frames`` int32 (batch,) give ``log_probs``
    float32 (batch, frames / 2, n_outputs). Batch normalisation is folded into the convolutions; the first one's output
    is masked and the GRUs get sequence lengths, so padding changes nothing. Operators: https://onnx.ai/onnx/operators/
    """
    from onnx import TensorProto, helper

    g = _Graph()
    one = g.constant(np.array([1], np.int64))
    n_frames = g.add("Cast", "n_frames", to=TensorProto.INT64)
    n_steps = g.add("Div", g.add("Add", n_frames, one), g.constant(np.array([2], np.int64)))
    shape = g.add("Shape", "frames", start=1, end=2)
    longest = g.add("Squeeze", g.add("Div", shape, g.constant(np.array([2], np.int64))))
    steps = g.add("Range", g.constant(np.array(0, np.int64)), longest, g.constant(np.array(1, np.int64)))
    valid = g.add("Less", steps, g.add("Unsqueeze", n_steps, one))
    mask = g.add("Unsqueeze", g.add("Cast", valid, to=TensorProto.FLOAT), g.constant(np.array([1, 3], np.int64)))
    x = g.add("Unsqueeze", "frames", one)
    # "same" of an even number of frames: 4 before, 5 behind.
    for index, strides, pads in ((1, [2, 2], [4, 20, 5, 20]), (2, [1, 2], [5, 10, 5, 10])):
        kernel, bias = _folded(model, index)
        x = g.add("Conv", x, g.constant(kernel), g.constant(bias), strides=strides, pads=pads)
        x = g.add("Relu", x)
        x = g.add("Mul", x, mask) if index == 1 else x
    x = g.add("Transpose", x, perm=[2, 0, 3, 1])  # (steps, batch, bins, channels)
    x = g.add("Reshape", x, g.constant(np.array([0, 0, -1], np.int64)))
    lengths = g.add("Cast", n_steps, to=TensorProto.INT32)
    for layer in model.layers:
        if not layer.name.startswith("bidirectional"):
            continue
        directions = [layer.forward_layer.get_weights(), layer.backward_layer.get_weights()]
        w, r, b = (np.stack(parts) for parts in zip(*directions, strict=True))
        y = g.add(
            "GRU",
            x,
            g.constant(w.transpose(0, 2, 1), half=True),
            g.constant(r.transpose(0, 2, 1), half=True),
            g.constant(b.reshape(2, -1)),
            lengths,
            hidden_size=r.shape[1],
            direction="bidirectional",
            linear_before_reset=1,
        )
        x = g.add("Transpose", y, perm=[0, 2, 1, 3])  # (steps, batch, directions, units)
        x = g.add("Reshape", x, g.constant(np.array([0, 0, -1], np.int64)))
    for name in ("dense_1", "dense_2"):
        weight, bias = model.get_layer(name).get_weights()
        x = g.add("Add", g.add("MatMul", x, g.constant(weight, half=True)), g.constant(bias))
        x = g.add("Relu", x) if name == "dense_1" else x
    g.add("Transpose", g.add("LogSoftmax", x, axis=-1), perm=[1, 0, 2], output="log_probs")
    graph = helper.make_graph(
        g.nodes,
        "DeepSpeech_2",
        [
            helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["batch", "frames", N_BINS]),
            helper.make_tensor_value_info("n_frames", TensorProto.INT32, ["batch"]),
        ],
        [helper.make_tensor_value_info("log_probs", TensorProto.FLOAT, ["batch", "steps", model.output_shape[-1]])],
        g.initializers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    helper.set_model_props(proto, {"weights_sha256": weights_sha256})
    return proto.SerializeToString()


def _folded(model: "keras.Model", index: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (out, in, time, bins) and bias of a convolution with its batch normalisation folded in."""
    (kernel,) = model.get_layer(f"conv_{index}").get_weights()
    normalisation = model.get_layer(f"conv_{index}_bn")
    gamma, beta, mean, variance = (value.astype(np.float64) for value in normalisation.get_weights())
    scale = gamma / np.sqrt(variance + normalisation.epsilon)
    return (kernel.transpose(3, 2, 0, 1) * scale[:, None, None, None]).astype(np.float32), (beta - mean * scale).astype(
        np.float32
    )


def largest_difference(card: ModelCard, folder: Path) -> float:
    """Largest difference in log-probabilities between the exported file and Keras, on noise of several lengths."""
    rng = np.random.default_rng(0)
    reference, exported = load_keras(card, folder, 0), load_onnx(card, folder, 0)
    worst = 0.0
    for n in (1, 2, 37, 500):
        frames, n_frames = rng.standard_normal((1, n, N_BINS), np.float32), np.array([n], np.int32)
        difference = np.abs(reference(frames, n_frames) - exported(frames, n_frames)).max()
        worst = float(np.maximum(worst, difference))  # NaN stays
    return worst


def export(folder: Path) -> ModelCard:
    """Write ``model.onnx`` from ``model.keras``, compare the two, and enter it in the card.

    Raises:
        ModelError: the model cannot be loaded, or the exported file computes something else.
    """
    card = read_card(folder)
    model = load_weights_file(check_file(card, folder, WEIGHTS), card.rnn_layers, card.rnn_units, card.alphabet.size)
    (folder / ONNX).write_bytes(build_onnx(model, card.sha256[WEIGHTS]))
    card = replace(card, sha256={**card.sha256, ONNX: sha256(folder / ONNX)})
    difference = largest_difference(card, folder)
    if not difference <= TOLERANCE:
        (folder / ONNX).unlink()
        raise ModelMismatch(f"{ONNX}: expected log-probabilities within {TOLERANCE} of Keras, found {difference:.2g}")
    write_card(card, folder)
    log.info("%s: largest difference from Keras %.2g", folder / ONNX, difference)
    return card


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model, such as Models/NAME")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        export(given.model)
    except SpeechError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
