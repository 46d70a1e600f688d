"""Muon steps as PyTorch's own does on single matrices, and treats the matrices within one tensor alone."""

import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonal
from training.torch_model import Network


@pytest.mark.parametrize("shape", [(64, 90), (20, 300), (300, 20), (2, 3, 40, 90)])
def test_all_directions_count_the_same(shape: tuple[int, ...]):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[-1]))))
    assert 0.3 < values.min() <= values.max() < 1.3


def steps(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, gradients: list[list[torch.Tensor]]):
    for row in gradients:
        for parameter, gradient in zip(parameters, row, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("shape", [(32, 50), (50, 32)])
def test_single_matrices_move_as_with_pytorchs(shape: tuple[int, int]):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), [[torch.randn(shape)] for _ in range(4)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    found = steps([ours], Muon([ours], 0.02, 0.1), gradients)[0]
    expected = steps([theirs], reference, gradients)[0]
    assert (found - expected).norm() < 0.02 * (expected - start).norm()  # both round to bfloat16, in another order


def test_each_gate_and_direction_is_a_matrix():
    torch.manual_seed(0)
    parts, gradients = torch.randn(2, 3, 40, 16), torch.randn(3, 2, 3, 40, 16)  # (direction, gate, in, units)
    single = [nn.Parameter(part.clone()) for part in parts.flatten(0, 1)]
    apart = steps(single, Muon(single, 0.02), [list(row.flatten(0, 1)) for row in gradients])
    joined = nn.Parameter(parts.transpose(1, 2).flatten(-2))
    rows = [[row.transpose(1, 2).flatten(-2)] for row in gradients]
    found = steps([joined], Muon([joined], 0.02), rows)[0].unflatten(-1, (3, 16)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found, torch.stack(apart), atol=1e-5, rtol=0)


def test_what_has_no_gradient_stays():
    parameter = nn.Parameter(torch.ones(4, 4))
    Muon([parameter], 0.1, 0.1).step()
    assert torch.equal(parameter.detach(), torch.ones(4, 4))


def test_the_first_and_the_last_layer_and_what_is_no_matrix_are_not_its():
    network = Network(32, 2, 8, 0.0)
    names = {name for name, p in network.named_parameters() if any(p is q for q in network.hidden_matrices())}
    layers = {f"rnn.{i}.{part}" for i in range(2) for part in ("kernel", "recurrent")}
    assert names == {"conv_2.weight", "dense_1.weight", *layers}
