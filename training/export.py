"""Write the serving engines' file beside a model's weights: ``python -m training.export MODEL``.

With ``--measure DATA`` it is found out, too, what bfloat16 does to the word error rate; OpenVINO computes in it where
the card says that it does next to nothing.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speech.engine import available_cores, computes_bfloat16, load_keras, load_onnx, load_openvino
from speech.errors import ModelMismatch
from speech.features import N_BINS
from speech.model import CHANNELS, load_weights_file
from speech.model_card import ONNX, WEIGHTS, ModelCard, check_file, read_card, sha256, write_card
from training.command import one_line
from training.dataset import Clip
from training.low_rank import factors
from training.spectral import (
    BINS_IN,
    BINS_OUT,
    FIRST_HALF,
    HALF,
    KERNEL,
    N_TIME,
    PAIRS,
    PAIRS_OF_BINS,
    STEP,
    first_convolution,
    kernel_taps,
    transforms,
)

if TYPE_CHECKING:
    import keras

OPSET = 17
BLOCK_TILES = 32  # of 22 steps: 10 s of sound are convolved at a time
TOLERANCE = 1e-4  # in log-probabilities, against Keras
log = logging.getLogger("training.export")


class _Graph:
    """Nodes and initialisers of an ONNX graph, added in order."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, value: np.ndarray, half: bool = False) -> str:
        """Name of an initialiser; one that float16 holds exactly is stored so and widened when the file is loaded."""
        from onnx import numpy_helper

        name = f"{self.prefix}constant_{len(self.initializers)}"
        with np.errstate(over="ignore"):
            narrow = value.astype(np.float16)
        if half and np.array_equal(narrow.astype(np.float32), value):
            self.initializers.append(numpy_helper.from_array(np.asarray(narrow, order="C"), name))
            return self.add("Cast", name, to=1)
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def whole(self, *values: int) -> str:
        """Name of an initialiser with these int64 values."""
        return self.constant(np.array(values, np.int64))

    def span(self, length: str) -> str:
        """Name of 0 … length - 1 as a column."""
        zero, one = (self.constant(np.array(value, np.int64)) for value in (0, 1))
        return self.add("Unsqueeze", self.add("Range", zero, self.add("Squeeze", length), one), self.whole(1))

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Name of the output of a new node."""
        from onnx import helper

        output = output or f"{self.prefix}{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def product(self, matrix: np.ndarray, x: str, one: str) -> str:
        """Name of a constant matrix times x. With a constant on the left OpenVINO computes in float32; times the
        scalar ``one``, which it cannot know to be 1, it is none."""
        return self.add("MatMul", self.add("Mul", self.constant(matrix), one), x)


def build_onnx(model: "keras.Model", weights_sha256: str) -> bytes:
    """ONNX file of a network of `speech.model.build_model`, with true lengths as a second input.

    ``frames`` float32 (batch, even number of frames, 193) and ``n_frames`` int32 (batch,) give ``log_probs``
    float32 (batch, frames / 2, n_outputs). Batch normalisation is folded into the convolutions; the first one's output
    is masked and the backward GRUs read each clip reversed within its own length, so padding changes nothing (OpenVINO
    2026.4 computes something else for a GRU with sequence lengths, and ReverseSequence slowly: rows are gathered). The
    convolutions take blocks of 10 s one after the
    other, whose arrays are small; if the first GRU layer's kernels are of low rank (`training.low_rank`), so is what
    they give. Operators: https://onnx.ai/onnx/operators/
    """
    from onnx import TensorProto, helper

    layers = [layer for layer in model.layers if layer.name.startswith("bidirectional")]
    weights = [[d.get_weights() for d in (layer.forward_layer, layer.backward_layer)] for layer in layers]
    into, out = factors(np.concatenate([w for w, _, _ in weights[0]], axis=1)) or (None, None)
    if out is not None:
        weights[0] = [[part, *rest] for part, (_, *rest) in zip(np.split(out, 2, axis=1), weights[0], strict=True)]
    width = CHANNELS * BINS_OUT if into is None else into.shape[1]

    g = _Graph()
    n_frames = g.add("Cast", "n_frames", to=TensorProto.INT64)
    n_steps = g.add("Div", g.add("Add", n_frames, g.whole(1)), g.whole(2))
    longest = g.add("Div", g.add("Shape", "frames", start=1, end=2), g.whole(2))
    # Blocks of as many tiles as stay in the cache, as even as can be, with the steps that the kernel reaches beside.
    n_tiles = g.add("Div", g.add("Add", longest, g.whole(STEP - 1)), g.whole(STEP))
    n_blocks = g.add("Div", g.add("Add", n_tiles, g.whole(BLOCK_TILES - 1)), g.whole(BLOCK_TILES))
    tiles = g.add("Div", g.add("Sub", g.add("Add", n_tiles, n_blocks), g.whole(1)), n_blocks)
    block = g.add("Mul", tiles, g.whole(STEP))
    starts = g.add("Mul", g.span(n_blocks), block)
    beside = KERNEL[0] - 1
    steps = g.add("Add", starts, g.add("Transpose", g.span(g.add("Add", block, g.whole(beside)))))
    steps = g.add("Sub", steps, g.whole(beside // 2))  # (blocks, steps of a block), those outside the clip too
    valid = g.add("Less", steps, g.add("Unsqueeze", n_steps, g.whole(1, 2)))
    valid = g.add("And", valid, g.add("GreaterOrEqual", steps, g.whole(0)))
    mask = g.add("Cast", valid, to=TensorProto.FLOAT)
    # "same" of an even number of frames: conv_1 reaches 4 before and 5 behind, one more makes it whole pairs.
    n_window = g.add("Add", g.add("Mul", g.add("Add", block, g.whole(beside)), g.whole(2)), g.whole(2 * PAIRS - 2))
    before, rest = beside + 4, g.add("Mul", g.add("Mul", n_blocks, block), g.whole(2))
    behind = g.add("Sub", g.add("Add", rest, g.whole(beside + 2 * PAIRS - 2)), g.add("Mul", longest, g.whole(2)))
    padded = g.add("Pad", "frames", g.add("Concat", g.whole(0, before, 0, 0), behind, g.whole(0), axis=0))
    windows = g.add("Add", g.add("Mul", starts, g.whole(2)), g.add("Transpose", g.span(n_window)))
    blocks = g.add(
        "Reshape",
        g.add("Gather", padded, windows, axis=1),
        g.add("Concat", g.whole(-1), n_window, g.whole(N_BINS), axis=0),
    )
    mask = g.add("Reshape", mask, g.add("Concat", g.whole(-1), g.add("Add", block, g.whole(beside)), axis=0))
    x = g.add("Scan", blocks, mask, num_scan_inputs=2, body=_convolutions(model, into))
    batch = g.add("Shape", "frames", start=0, end=1)
    x = g.add("Reshape", x, g.add("Concat", batch, g.whole(-1, width), axis=0))
    x = g.add("Transpose", g.add("Slice", x, g.whole(0), longest, g.whole(1)), perm=[1, 0, 2])
    # Row of (steps · batch, …) that each step of each clip changes places with when the clips are reversed.
    step, clip = g.span(longest), g.add("Squeeze", g.span(batch), g.whole(1))
    last = g.add("Sub", n_steps, g.whole(1))
    mirrored = g.add("Where", g.add("Less", step, n_steps), g.add("Sub", last, step), step)
    rows = g.add("Reshape", g.add("Add", g.add("Mul", mirrored, batch), clip), g.whole(-1))

    def reverse(x: str) -> str:
        flat = g.add("Reshape", x, g.add("Concat", g.whole(-1), g.add("Shape", x, start=2), axis=0))
        return g.add("Reshape", g.add("Gather", flat, rows), g.add("Shape", x))

    def gru(x: str, w: np.ndarray, r: np.ndarray, b: np.ndarray) -> str:
        h = g.add(
            "GRU",
            x,
            g.constant(w.T[None], half=True),
            g.constant(r.T[None], half=True),
            g.constant(b.reshape(1, -1)),
            hidden_size=r.shape[0],
            linear_before_reset=1,
        )
        return g.add("Squeeze", h, g.whole(1))  # (steps, batch, units)

    ahead = back = ""
    for forward, backward in weights:
        from_behind = g.add("Concat", reverse(ahead), back, axis=2) if ahead else reverse(x)
        ahead, back = gru(x, *forward), gru(from_behind, *backward)
        x = g.add("Concat", ahead, reverse(back), axis=2)
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


def _convolutions(model: "keras.Model", into: np.ndarray | None) -> Any:
    """Graph of one block: ``block`` (2 · (steps + 10) + 10, 193) and ``mask`` (steps + 10,) give (steps, 49 · 32), or
    that times the matrix ``into``."""
    from onnx import TensorProto, helper

    g = _Graph("block_")
    n_steps = g.add("Shape", "mask")
    one = g.add("Cast", g.add("Greater", n_steps, g.whole(0)), to=TensorProto.FLOAT)
    kernel, bias = _folded(model, 1)
    x = g.add("Relu", g.add("Add", _first_convolution(g, "block", n_steps, kernel, one), g.constant(bias)))
    # The bin behind the last has got the bias. One mask of steps and bins: OpenVINO multiplies by two one by one.
    bins = (np.arange(2 * PAIRS_OF_BINS) < BINS_IN).astype(np.float32)[None]
    mask = g.add("MatMul", g.add("Unsqueeze", "mask", g.whole(1)), g.constant(bins))
    x = g.add("Mul", x, g.add("Unsqueeze", mask, g.whole(2)))
    kernel, bias = _folded(model, 2)
    x = g.add("Relu", g.add("Add", _spectral_convolution(g, x, kernel, one), g.constant(bias)))
    if into is None:
        g.add("Reshape", x, g.whole(0, -1), output="features")
    else:
        g.add("MatMul", g.add("Reshape", x, g.whole(0, -1)), g.constant(into), output="features")
    return helper.make_graph(
        g.nodes,
        "convolutions",
        [
            helper.make_tensor_value_info("block", TensorProto.FLOAT, ["window", N_BINS]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["steps"]),
        ],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["outputs", None])],
        g.initializers,
    )


def _first_convolution(g: _Graph, x: str, n_steps: str, kernel: np.ndarray, one: str) -> str:
    """(n, 98, out), the last bin 0, from x (2 n + 10, 193), kernel (out, 1, 11, 41), as `training.spectral` says."""
    into, spectrum, back = first_convolution(kernel)
    x = g.add("Reshape", g.add("MatMul", x, g.constant(into)), g.whole(0, FIRST_HALF, 4))
    x = g.add("Reshape", g.add("Transpose", x, perm=[1, 0, 2]), g.whole(FIRST_HALF, -1, 8))  # (55, pairs of frames, 8)
    reached = g.add("Add", g.span(n_steps), g.constant(np.arange(PAIRS)))
    x = g.add("Reshape", g.add("Gather", x, reached, axis=1), g.whole(0, 0, PAIRS * 8))
    x = g.add("MatMul", x, g.constant(spectrum))  # (55, n, 2 · out)
    x = g.add("Reshape", g.add("Transpose", x, perm=[1, 0, 2]), g.whole(0, 2 * FIRST_HALF, -1))
    return g.product(np.pad(back, ((0, 2 * PAIRS_OF_BINS - BINS_IN), (0, 0))), x, one)


def _spectral_convolution(g: _Graph, x: str, kernel: np.ndarray, one: str) -> str:
    """(22 n, 49, out) from x (22 n + 10, 98, in), the last bin 0, kernel (out, in, 11, 21), as `training.spectral`."""
    n_out, n_in = kernel.shape[:2]
    matrices = transforms()
    # The kernel's spectrum (frequency, real and imaginary · phase · in, real and imaginary · out): made at loading.
    spectrum = g.add("MatMul", g.constant(matrices.kernel), g.constant(kernel_taps(kernel)))
    spectrum = g.add("Reshape", spectrum, g.whole(N_TIME * HALF, 2, 2 * n_in, n_out))
    real, imaginary = (g.add("Gather", spectrum, g.constant(np.array(part)), axis=1) for part in (0, 1))
    rows = [(real, imaginary), (g.add("Neg", imaginary), real)]
    spectrum = g.add("Concat", *(g.add("Concat", *row, axis=2) for row in rows), axis=1)
    # Overlapping tiles of 32 steps.
    x = g.product(matrices.bins, g.add("Reshape", x, g.whole(0, PAIRS_OF_BINS, 2 * n_in)), one)
    n_tiles = g.add("Div", g.add("Shape", x, start=0, end=1), g.whole(STEP))
    starts = g.add("Mul", g.span(n_tiles), g.whole(STEP))
    x = g.add("Gather", x, g.add("Add", starts, g.constant(np.arange(N_TIME))), axis=0)
    x = g.product(matrices.time, g.add("Reshape", x, g.whole(0, 2 * N_TIME, -1)), one)
    # One product over the channels for each frequency.
    x = g.add("Reshape", x, g.whole(-1, N_TIME, 2, HALF, 2 * n_in))
    x = g.add("Reshape", g.add("Transpose", x, perm=[1, 3, 0, 2, 4]), g.whole(N_TIME * HALF, -1, 4 * n_in))
    x = g.add("Reshape", g.add("MatMul", x, spectrum), g.whole(N_TIME, HALF, -1, 2, n_out))
    # And back.
    x = g.add("Reshape", g.add("Transpose", x, perm=[2, 0, 3, 1, 4]), g.whole(-1, 2 * N_TIME, HALF * n_out))
    x = g.product(matrices.time_back, x, one)
    return g.product(matrices.bins_back, g.add("Reshape", x, g.whole(-1, 2 * HALF, n_out)), one)


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
    for n in (1, 2, 37, 500, 3001):
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
    card = replace(card, sha256={**card.sha256, ONNX: sha256(folder / ONNX)}, reduced_precision={})
    difference = largest_difference(card, folder)
    if not difference <= TOLERANCE:
        (folder / ONNX).unlink()
        raise ModelMismatch(f"{ONNX}: expected log-probabilities within {TOLERANCE} of Keras, found {difference:.2g}")
    write_card(card, folder)
    log.info("%s: largest difference from Keras %.2g", folder / ONNX, difference)
    return card


def measure(folder: Path, clips: Sequence[Clip]) -> ModelCard:
    """Hear the clips in float32 and in bfloat16, and enter both word error rates in the card.

    Raises:
        ModelError: the model cannot be loaded, or nothing here computes in bfloat16.
    """
    from predictor import SpeechPredictor
    from training.evaluate import transcribe_clips
    from training.scores import rates

    if not computes_bfloat16():
        raise ModelMismatch("expected OpenVINO on a CPU that computes in bfloat16 (AVX512-BF16, AMX), found none")
    card, wer = read_card(folder), {}
    for precision in ("f32", "bf16"):
        predictor = SpeechPredictor.load(folder, "onnx")
        predictor.engine = load_openvino(card, folder, available_cores(), precision)
        wer[precision] = float(rates(transcribe_clips({precision: predictor}, clips)[precision]).wer)
    change = round(wer["bf16"] - wer["f32"], 2)
    found = {"onnx": card.sha256[ONNX], "clips": len(clips), "wer": wer, "wer_change": change}
    card = replace(card, reduced_precision=found)
    write_card(card, folder)
    log.info("bfloat16: word error rate %+.2f points (%s)", change, wer)
    return card


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model, such as Models/NAME")
    parser.add_argument("--measure", type=Path, nargs="+", metavar="DATA", help="recordings whose split dev is heard")
    parser.add_argument("--cache", type=Path, default=Path("Data/cache"), help="decoded audio is kept here")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from training.evaluate import load

    with one_line(parser):
        clips = load(given.measure, "dev", given.cache) if given.measure else []
        export(given.model)
        if clips:
            measure(given.model, clips)


if __name__ == "__main__":
    main()
