"""The convolutions in the frequency domain are the convolutions."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from speech.features import N_BINS
from training.export import _first_convolution, _Graph, _spectral_convolution
from training.spectral import BINS_IN, STEP

ONE = np.ones(1, np.float32)


def run(g: _Graph, y: str, x: np.ndarray) -> np.ndarray:
    g.add("Identity", y, output="y")
    graph = helper.make_graph(
        g.nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * x.ndim)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 3)],
        g.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("n_steps", [1, 2, 37])
def test_the_first_equals_the_direct_one(n_steps: int):
    rng = np.random.default_rng(n_steps)
    kernel = rng.standard_normal((32, 1, 11, 41)).astype(np.float32) / 20
    x = rng.standard_normal((2 * n_steps + 10, N_BINS)).astype(np.float32)
    g = _Graph()
    found = run(g, _first_convolution(g, "x", g.whole(n_steps), kernel, g.constant(ONE)), x)
    clip, weight = torch.from_numpy(x[None, :-1]), torch.from_numpy(kernel)  # the last frame is out of reach
    expected = torch.nn.functional.conv2d(clip, weight, stride=2, padding=(0, 20)).permute(1, 2, 0)
    np.testing.assert_allclose(found[:, :BINS_IN], expected.numpy(), atol=2e-5)
    assert not found[:, BINS_IN:].any()


@pytest.mark.parametrize("n_tiles", [1, 2, 5])
def test_the_second_equals_the_direct_one(n_tiles: int):
    rng = np.random.default_rng(n_tiles)
    kernel = rng.standard_normal((32, 32, 11, 21)).astype(np.float32) / 80
    x = rng.standard_normal((n_tiles * STEP + 10, BINS_IN, 32)).astype(np.float32)
    g = _Graph()
    found = run(g, _spectral_convolution(g, "x", kernel, g.constant(ONE)), np.pad(x, ((0, 0), (0, 1), (0, 0))))
    clip, weight = torch.from_numpy(x).permute(2, 0, 1), torch.from_numpy(kernel)
    expected = torch.nn.functional.conv2d(clip, weight, stride=(1, 2), padding=(0, 10)).permute(1, 2, 0)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)
