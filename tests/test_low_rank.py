"""The first GRU layer's kernels lose what sound does not need, and the export multiplies by two small matrices."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from speech.alphabet import Alphabet
from speech.audio import Waveform, decode_wav
from speech.engine import load_keras, load_onnx
from speech.features import spectrogram
from speech.model_card import ONNX, WEIGHTS, ModelCard, sha256, write_card
from tests.conftest import make_sound
from training.dataset import Clip, Utterance
from training.export import export
from training.low_rank import MULTIPLE, factors, reduce, reduced
from training.publish import write_weights
from training.torch_model import Network

SAMPLE = Path(__file__).parents[1] / "samples" / "hello.wav"


def kernel_and_inputs(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A kernel (200, 240), and inputs (500, 200) that fill 20 dimensions, and others by so much."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((500, 20)) @ rng.standard_normal((20, 200)) / 20**0.5
    return (
        rng.standard_normal((200, 240), np.float32),
        (inputs + noise * rng.standard_normal((500, 200))).astype(np.float32),
    )


def squares(inputs: np.ndarray) -> np.ndarray:
    return inputs.T.astype(np.float64) @ inputs


def test_responses_stay_and_the_rank_falls():
    kernel, inputs = kernel_and_inputs(noise=0.01)
    found = reduced(kernel, squares(inputs), lost=0.001)
    assert np.linalg.matrix_rank(found, 1e-4) == MULTIPLE
    responses = inputs @ kernel
    assert np.square(inputs @ found - responses).sum() < 0.001 * np.square(responses).sum()


def test_what_needs_all_dimensions_stays_as_it_is():
    kernel, inputs = kernel_and_inputs(noise=10)
    assert reduced(kernel, squares(inputs), lost=0.001) is kernel
    assert factors(kernel) is None


def test_silence_and_nothing_change_nothing():
    kernel, inputs = kernel_and_inputs(noise=0)
    assert reduced(kernel, squares(0 * inputs)) is kernel
    into, out = factors(0 * kernel)
    assert not (into @ out).any()


def test_factors_are_those_of_the_product():
    rng = np.random.default_rng(1)
    kernel = rng.standard_normal((90, 7), np.float32) @ rng.standard_normal((7, 60), np.float32)
    into, out = factors(kernel)
    assert (into.shape, out.shape) == ((90, 7), (7, 60))
    np.testing.assert_allclose(into @ out, kernel, atol=1e-4)


def test_a_network_is_reduced_by_what_it_hears():
    torch.manual_seed(0)
    network = Network(Alphabet().size, 1, 64, 0.0)
    samples = (decode_wav(SAMPLE.read_bytes()).samples * 32767).astype(np.int16)
    reduce(network, [Clip(Utterance("x", SAMPLE, "", "made", "", "train"), samples, "")])
    kernel = torch.cat(list(network.rnn[0].kernel.detach()), dim=1).numpy()
    assert factors(kernel) is not None
    assert factors(kernel)[0].shape[1] % MULTIPLE == 0


@pytest.mark.parametrize("rank", [0, 5])
def test_the_export_of_kernels_of_low_rank_is_small_and_exact(rank: int, tmp_path: Path):
    torch.manual_seed(0)
    network = Network(Alphabet().size, 2, 12, 0.0)
    if rank:
        with torch.no_grad():
            both = torch.randn(1568, rank) @ torch.randn(rank, 72) / 100
            network.rnn[0].kernel.copy_(torch.stack(both.chunk(2, dim=1)))
    write_weights(network.keras_weights(), 2, 12, tmp_path)
    alphabet = Alphabet()
    sums = {WEIGHTS: sha256(tmp_path / WEIGHTS)}
    write_card(ModelCard("x", alphabet.characters, alphabet.blank, 2, 12, sums), tmp_path)
    card = export(tmp_path)
    grus = [node for node in onnx.load(tmp_path / ONNX).graph.node if node.op_type == "GRU"]
    sizes = {array.name: list(array.dims) for array in onnx.load(tmp_path / ONNX).graph.initializer}
    named = {node.output[0]: node.input[0] for node in onnx.load(tmp_path / ONNX).graph.node if node.op_type == "Cast"}
    width = sizes[named.get(grus[0].input[1], grus[0].input[1])][2]
    assert width == (rank or 1568)
    clips = [decode_wav(SAMPLE.read_bytes()), Waveform(make_sound(1.3).astype(np.float32) / 32768)]
    for frames in (spectrogram(clip).frames[None] for clip in clips):
        n_frames = np.array([frames.shape[1]], np.int32)
        expected, found = (load(card, tmp_path, 0)(frames, n_frames) for load in (load_keras, load_onnx))
        np.testing.assert_allclose(found, expected, atol=1e-4)
