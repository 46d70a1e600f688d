"""The convolution in the frequency domain is the convolution."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from training.export import _Graph, _spectral_convolution
from training.spectral import BINS_IN, STEP


@pytest.mark.parametrize("n_tiles", [1, 2, 5])
def test_it_equals_the_direct_one(n_tiles: int):
    rng = np.random.default_rng(n_tiles)
    kernel = rng.standard_normal((32, 32, 11, 21)).astype(np.float32) / 80
    x = rng.standard_normal((n_tiles * STEP + 10, BINS_IN, 32)).astype(np.float32)
    g = _Graph()
    g.add("Identity", _spectral_convolution(g, "x", kernel), output="y")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 3) for name in ("x", "y")]
    graph = helper.make_graph(g.nodes, "g", info[:1], info[1:], g.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    clip, weight = torch.from_numpy(x).permute(2, 0, 1), torch.from_numpy(kernel)
    expected = torch.nn.functional.conv2d(clip, weight, stride=(1, 2), padding=(0, 10)).permute(1, 2, 0)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)
