"""The network of `speech.model` in PyTorch: the same arithmetic, several times faster to train on a CPU.

Keras stays the definition and the shipped artefact; `Network.keras_weights` gives it the weights, and a test compares
the two.
Matrix products run in `product_type`, where asked; weights, normalisation and the loss stay in float32.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.spectral import BINS_OUT, HALF, KERNEL, N_TIME, STEP, transforms

CHANNELS = 32
BN_EPSILON = 1e-3  # Keras' default


def product_type(device: torch.device) -> torch.dtype:
    """bfloat16 if the device multiplies it faster than float32, else float32; on a CPU tried out, which takes 10 ms.

    Without instructions for it (AVX512-BF16, AMX) PyTorch takes a hundred times as long.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    single = torch.ones(256, 256, device=device)
    half = single.bfloat16()
    tried = [(_seconds(single), _seconds(half)) for _ in range(12)]  # in turns, as other programs come and go
    of_single, of_half = map(min, zip(*tried, strict=True))
    return torch.bfloat16 if of_half < 0.8 * of_single else torch.float32


def _seconds(matrix: Tensor) -> float:
    started = time.perf_counter()
    _ = matrix @ matrix
    return time.perf_counter() - started


class SpectralConv(nn.Module):
    """conv_2 (11 × 21, strides 1 × 2, "same") in the frequency domain, as `training.spectral` says."""

    bins: Tensor
    time: Tensor
    time_back: Tensor
    bins_back: Tensor
    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, *KERNEL))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv2d
        for name, matrix in asdict(transforms()).items():
            self.register_buffer(name, torch.from_numpy(matrix), persistent=False)

    def spectrum(self) -> Tensor:
        """The kernel's: float32 (32 · 28, 2 · 2 phases · in, 2 · out)."""
        n_out, n_in = self.weight.shape[:2]
        taps = F.pad(self.weight, (0, 1)).view(n_out, n_in, KERNEL[0], -1, 2)  # pairs of even and odd bins
        taps = taps.permute(2, 3, 4, 1, 0).reshape(self.kernel.shape[1], -1)
        real, imaginary = (self.kernel @ taps).view(N_TIME * HALF, 2, 2 * n_in, n_out).unbind(1)
        return torch.cat([torch.cat([real, imaginary], 2), torch.cat([-imaginary, real], 2)], 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 49, out) of x (B, T, 97, in), in its type."""
        batch, n_steps, _, channels = x.shape
        n_tiles = -(-n_steps // STEP)
        x = F.pad(x, (0, 0, 0, 1)).view(batch, n_steps, -1, 2 * channels)  # pairs of an even and an odd bin
        x = F.pad(self.bins.to(x.dtype) @ x, (0, 0, 0, 0, 5, n_tiles * STEP + 5 - n_steps))
        x = x.flatten(2).unfold(1, N_TIME, STEP).transpose(2, 3)  # overlapping tiles
        x = self.time.to(x.dtype) @ x.reshape(batch * n_tiles, 2 * N_TIME, -1)
        x = x.view(-1, N_TIME, 2, HALF, 2 * channels).permute(1, 3, 0, 2, 4).reshape(N_TIME * HALF, -1, 4 * channels)
        x = (x @ self.spectrum().to(x.dtype)).view(N_TIME, HALF, -1, 2, channels).permute(2, 0, 3, 1, 4)
        x = self.time_back.to(x.dtype) @ x.reshape(-1, 2 * N_TIME, HALF * channels)
        x = self.bins_back.to(x.dtype) @ x.view(-1, 2 * HALF, channels)
        return x.view(batch, n_tiles * STEP, BINS_OUT, channels)[:, :n_steps]


class _GruRecurrence(torch.autograd.Function):
    """Both directions of one GRU layer (gates z, r, h; reset_after), one batched product a step.

    x (T, 2, B, 3u) holds the input's share of the gates, w (2, u, 3u) and b (2, 1, 3u) are the recurrent weights.
    """

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype  # of the products for the weights' gradient
        n, _, batch, width = x.shape
        u = width // 3
        outputs = x.new_zeros(n + 1, 2, batch, u)
        gates = torch.empty_like(x[..., : 2 * u])
        candidate = x.new_empty(n, 2, batch, u)
        recurrent = x.new_empty(n, 2, batch, width)
        bias = b.expand(2, batch, width).contiguous()
        x_gates, x_candidate = x[..., : 2 * u].unbind(0), x[..., 2 * u :].unbind(0)
        r_gates, r_candidate = recurrent[..., : 2 * u].unbind(0), recurrent[..., 2 * u :].unbind(0)
        z, r = gates[..., :u].unbind(0), gates[..., u:].unbind(0)
        gate, cand, rec, out = gates.unbind(0), candidate.unbind(0), recurrent.unbind(0), outputs.unbind(0)
        for t in range(n):
            torch.baddbmm(bias, out[t], w, out=rec[t])
            torch.add(x_gates[t], r_gates[t], out=gate[t]).sigmoid_()
            torch.addcmul(x_candidate[t], r[t], r_candidate[t], out=cand[t]).tanh_()
            torch.lerp(cand[t], out[t], z[t], out=out[t + 1])
        ctx.save_for_backward(w, outputs, gates, candidate, recurrent)
        return outputs[1:]

    @staticmethod
    def backward(ctx, grad: Tensor):
        w, outputs, gates, candidate, recurrent = ctx.saved_tensors
        n, _, batch, width = recurrent.shape
        u = width // 3
        z, r = gates[..., :u], gates[..., u:]
        into_candidate = (1 - z) * (1 - candidate * candidate)
        slopes = torch.empty_like(recurrent).view(n, 2, batch, 3, u)
        slopes[..., 0, :] = (outputs[:-1] - candidate) * z * (1 - z)
        slopes[..., 1, :] = into_candidate * recurrent[..., 2 * u :] * r * (1 - r)
        slopes[..., 2, :] = into_candidate * r
        d_out = torch.empty_like(candidate)
        d_rec = torch.empty_like(slopes)
        w_t = w.transpose(1, 2).contiguous()
        g_, dh, slope, z_ = grad.unbind(0), d_out.unbind(0), slopes.unbind(0), z.unbind(0)
        dh_, dr, drf = d_out.unsqueeze(-2).unbind(0), d_rec.unbind(0), d_rec.view(n, 2, batch, width).unbind(0)
        dh[n - 1].copy_(g_[n - 1])
        for t in range(n - 1, -1, -1):
            torch.mul(dh_[t], slope[t], out=dr[t])
            if t:
                torch.addcmul(g_[t - 1], dh[t], z_[t], out=dh[t - 1]).baddbmm_(drf[t], w_t)
        d_rec = d_rec.view(n, 2, batch, width)
        ahead, behind = outputs[:-1].to(ctx.dtype), d_rec.to(ctx.dtype)
        d_w = torch.stack([
            (ahead[:, d].reshape(-1, u).t() @ behind[:, d].reshape(-1, width)).float() for d in range(2)
        ])  # fmt: skip
        d_b = d_rec.sum(dim=(0, 2)).unsqueeze(1)
        d_x = d_rec.clone()
        d_x[..., 2 * u :] = d_out * into_candidate
        return d_x, d_w, d_b, None


class BiGru(nn.Module):
    """One bidirectional GRU layer, weights in Keras' layout, lengths respected exactly.

    The backward direction reads each clip reversed within its own length, so the padding is last for both.
    """

    def __init__(self, n_in: int, units: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(2, n_in, 3 * units))
        self.recurrent = nn.Parameter(torch.empty(2, units, 3 * units))
        self.bias = nn.Parameter(torch.zeros(2, 2, 3 * units))  # direction, (input, recurrent)
        for d in range(2):
            nn.init.xavier_uniform_(self.kernel[d])
            for g in range(3):
                nn.init.orthogonal_(self.recurrent[d][:, g * units : (g + 1) * units])

    def forward(self, x: Tensor, reverse: Tensor, dtype: torch.dtype) -> Tensor:  # x (T, B, n_in), reverse (T, B)
        n, batch, _ = x.shape
        index = reverse.unsqueeze(-1)
        flat = x.reshape(n * batch, -1).to(dtype)
        ahead = (flat @ self.kernel[0].to(dtype)).view(n, batch, -1).float() + self.bias[0, 0]
        back = (flat @ self.kernel[1].to(dtype)).view(n, batch, -1).float() + self.bias[1, 0]
        back = back.gather(0, index.expand_as(back))
        h = _GruRecurrence.apply(torch.stack([ahead, back], 1), self.recurrent, self.bias[:, 1:2], dtype)
        return torch.cat([h[:, 0], h[:, 1].gather(0, index.expand_as(h[:, 1]))], -1)


class Network(nn.Module):
    """Conv2D × 2 → BiGRU × rnn_layers → dense → dense, as `speech.model.build_model`."""

    def __init__(self, n_labels: int, rnn_layers: int, rnn_units: int, dropout: float) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(1, CHANNELS, (11, 41), stride=(2, 2), padding=(0, 20), bias=False)
        self.conv_1_bn = nn.BatchNorm2d(CHANNELS, eps=BN_EPSILON)
        self.conv_2 = SpectralConv(CHANNELS)
        self.conv_2_bn = nn.BatchNorm2d(CHANNELS, eps=BN_EPSILON)
        widths = [49 * CHANNELS] + [2 * rnn_units] * (rnn_layers - 1)
        self.rnn = nn.ModuleList(BiGru(width, rnn_units) for width in widths)
        self.dense_1 = nn.Linear(2 * rnn_units, 2 * rnn_units)
        self.dense_2 = nn.Linear(2 * rnn_units, n_labels)
        self.dropout = nn.Dropout(dropout)
        self.dtype = torch.float32  # of the matrix products

    def forward(self, frames: Tensor, n_frames: Tensor) -> Tensor:
        """Log-probabilities float32 (steps, B, n_labels) of frames float32 (B, even number of frames, 193)."""
        n_steps = (n_frames + 1) // 2
        steps = torch.arange(frames.shape[1] // 2, device=frames.device)
        valid = steps < n_steps[:, None]  # (B, T)
        mask = valid[:, None, :, None]
        x = F.pad(frames.unsqueeze(1).to(self.dtype), (0, 0, 4, 5))  # "same" for an even number of frames
        x = F.conv2d(x.contiguous(memory_format=torch.channels_last), self.conv_1.weight.to(self.dtype),
                     stride=(2, 2), padding=(0, 20))  # fmt: skip
        x = torch.relu(self.conv_1_bn(x)) * mask
        x = self.conv_2(x.to(self.dtype).permute(0, 2, 3, 1))
        x = torch.relu(self.conv_2_bn(x.permute(0, 3, 1, 2)))
        x = x.permute(2, 0, 3, 1).flatten(2)  # (T, B, 49 · 32), frequency-major as Keras' Reshape
        reverse = torch.where(valid, n_steps[:, None] - 1 - steps, steps).t().contiguous()
        for index, layer in enumerate(self.rnn):
            x = layer(self.dropout(x) if index else x, reverse, self.dtype)
        x = self.dropout(torch.relu(F.linear(x.to(self.dtype), self.dense_1.weight.to(self.dtype),
                                             self.dense_1.bias.to(self.dtype))))  # fmt: skip
        x = F.linear(x.to(self.dtype), self.dense_2.weight.to(self.dtype), self.dense_2.bias.to(self.dtype))
        return x.float().log_softmax(-1)

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the input must be."""
        return self.dense_2.weight.device

    def front_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters up to the second convolution; while they need no gradient, its backward pass is skipped."""
        for layer in (self.conv_1, self.conv_1_bn, self.conv_2):
            yield from layer.parameters()

    def hidden_matrices(self) -> Iterator[nn.Parameter]:
        """The weights between the first layer and the last, without biases."""
        ends = ("conv_1.weight", "dense_2.weight")
        named = self.named_parameters()
        return (p for name, p in named if p.ndim > 1 and not name.endswith("bias") and name not in ends)

    def keras_weights(self) -> dict[str, list[np.ndarray]]:
        """Weights by the name of the Keras layer they belong to, in Keras' order and layout."""
        array = {name: value.detach().float().cpu().numpy() for name, value in self.state_dict().items()}
        named = {}
        for name in ("conv_1", "conv_2"):
            named[name] = [array[f"{name}.weight"].transpose(2, 3, 1, 0)]
            parts = ("weight", "bias", "running_mean", "running_var")
            named[f"{name}_bn"] = [array[f"{name}_bn.{part}"] for part in parts]
        for i in range(len(self.rnn)):
            kernel, recurrent, bias = (array[f"rnn.{i}.{part}"] for part in ("kernel", "recurrent", "bias"))
            named[f"bidirectional_{i + 1}"] = [part[d] for d in range(2) for part in (kernel, recurrent, bias)]
        for name in ("dense_1", "dense_2"):
            named[name] = [array[f"{name}.weight"].T, array[f"{name}.bias"]]
        return named

    def load_keras_weights(self, named: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Take the weights of a Keras network, as `keras_weights` gives them. Raises KeyError, RuntimeError if they do
        not fit."""
        state = self.state_dict()
        for name in ("conv_1", "conv_2"):
            state[f"{name}.weight"] = torch.tensor(named[name][0].transpose(3, 2, 0, 1))
            for part, value in zip(("weight", "bias", "running_mean", "running_var"), named[f"{name}_bn"], strict=True):
                state[f"{name}_bn.{part}"] = torch.tensor(value)
        for i in range(len(self.rnn)):
            ahead, back = named[f"bidirectional_{i + 1}"][:3], named[f"bidirectional_{i + 1}"][3:]
            for part, directions in zip(("kernel", "recurrent", "bias"), zip(ahead, back, strict=True), strict=True):
                state[f"rnn.{i}.{part}"] = torch.tensor(np.stack(directions))
        for name in ("dense_1", "dense_2"):
            state[f"{name}.weight"], state[f"{name}.bias"] = (torch.tensor(value.T) for value in named[name])
        self.load_state_dict(state)
