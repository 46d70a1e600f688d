"""Muon, an optimiser for the weight matrices of hidden layers: https://kellerjordan.github.io/posts/muon/.

A step goes along the momentum with all its singular values made equal, so no direction that the gradient has is left
behind. `torch.optim.Muon` takes single matrices only; our GRUs hold those of six gates in one tensor.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # of the quintic polynomial
ITERATIONS = 5  # of it
ADAMW_RMS = 0.2  # of AdamW's steps, by which a learning rate means the same for both (https://arxiv.org/abs/2502.16982)


def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Each of float32 (…, m, n) with its singular values moved to about 1 (Newton–Schulz iteration, in ``dtype``)."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype).contiguous()
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """With Nesterov momentum and decoupled weight decay. Parameters of three axes are (direction, in, 3 · units), a
    matrix for each direction and gate of a GRU; all others (out, …), one matrix. Products are in ``dtype``."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            rate = group["lr"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.mul_(group["momentum"]).add_(parameter.grad)
                ahead = parameter.grad.add(momentum, alpha=group["momentum"])
                if ahead.ndim == 3:
                    matrices = ahead.unflatten(-1, (3, -1)).transpose(1, 2)
                    update = orthogonal(matrices, self.dtype).transpose(1, 2).flatten(-2)
                else:
                    matrices = ahead.flatten(1)
                    update = orthogonal(matrices, self.dtype).view_as(parameter)
                size = max(matrices.shape[-2:])
                parameter.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate * ADAMW_RMS * size**0.5)
