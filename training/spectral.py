"""The convolutions as matrix products in the frequency domain: the same for less arithmetic.

The second one's 11 × 21 kernel is two thirds of the network's arithmetic; an eleventh of that is left. Along the bins
the whole axis is transformed, even and odd bins apart because of the stride of 2; along time, tiles of 32 steps that
overlap by 10 (overlap-save). In between, each of 32 × 28 frequencies needs one small complex matrix product over the
channels. The first one's 11 × 41 kernel has one channel in: it is transformed along the bins alone, and each of 55
frequencies needs one product over the frames that a step reaches, which leaves less than half. Everything is a real
matrix product, so that any runtime does it well. Sources: Mathieu, Henaff, LeCun, "Fast Training of Convolutional
Networks through FFTs", 2013, https://arxiv.org/abs/1312.5851; overlap-save: Oppenheim & Schafer, "Discrete-Time Signal
Processing", 8.7.3.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from speech.features import N_BINS as N_INPUTS

Matrix = npt.NDArray[np.float32]

KERNEL = (11, 21)  # of conv_2: steps × bins, strides 1 × 2, "same"
BINS_IN, BINS_OUT = 97, 49
PAIRS_OF_BINS = 49  # an even bin and an odd one; the last odd one is 0
N_TIME, N_BINS = 32, 54  # lengths of the transforms: a tile; one phase of the bins and the kernel's reach on one side
STEP = N_TIME - KERNEL[0] + 1  # steps of output that a tile gives
HALF = N_BINS // 2 + 1  # of a real signal's spectrum half is enough

FIRST = (11, 41)  # frames × bins of conv_1's kernel, strides 2 × 2, "same"
FIRST_BINS, FIRST_HALF = 108, 55  # length of its transform, and the half of that which is enough
PAIRS = 6  # of frames that a step reaches: 11 frames and one that counts for nothing


@dataclass(frozen=True, slots=True)
class Transforms:
    """Real matrices of the transforms; a complex value is two rows or columns, real part first.

    ``bins`` (2 · 28, 49), the same for both phases, and ``time`` (32 · 2, 32 · 2) lead into the frequency domain,
    ``time_back`` (22 · 2, 32 · 2) and ``bins_back`` (49, 2 · 28) out of it; ``kernel`` (32 · 28 · 2, 11 · 11) is for
    the kernel.
    """

    bins: Matrix
    time: Matrix
    time_back: Matrix
    bins_back: Matrix
    kernel: Matrix


def first_convolution(kernel: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Matrices for conv_1 with a kernel (out, 1, 11, 41): into the frequencies (193, 55 · 2 phases · 2), there times
    (55, 12 frames · 2 phases · 2, 2 · out), and back (97, 55 · 2); a complex value is two columns, real part first."""
    n_out, half = len(kernel), np.arange(FIRST_HALF)
    into = np.zeros((N_INPUTS, FIRST_HALF, 2, 2))
    spectrum = np.zeros((FIRST_HALF, 2 * PAIRS, 2, 2, 2, n_out))
    for phase in (0, 1):
        dft = _dft(np.arange(len(range(phase, N_INPUTS, 2))), half, FIRST_BINS, -1)
        into[phase::2, :, phase, 0], into[phase::2, :, phase, 1] = dft.real, dft.imag
        taps = kernel[:, 0, :, phase::2].transpose(2, 1, 0)  # (bins of this phase, frames, out)
        reach = np.arange(len(taps)) - FIRST[1] // 4
        found = np.tensordot(_dft(half, reach, FIRST_BINS, 1), taps, 1)
        spectrum[:, : FIRST[0], phase, 0] = np.stack([found.real, found.imag], 2)
        spectrum[:, : FIRST[0], phase, 1] = np.stack([-found.imag, found.real], 2)
    back = _back(BINS_IN, FIRST_BINS)
    return (
        into.reshape(N_INPUTS, -1).astype(np.float32),
        spectrum.reshape(FIRST_HALF, -1, 2 * n_out).astype(np.float32),
        np.stack([back.real, -back.imag], 2).reshape(BINS_IN, -1).astype(np.float32),
    )


def transforms() -> Transforms:
    """The matrices of the discrete Fourier transforms."""
    ahead = _dft(np.arange(HALF), np.arange(PAIRS_OF_BINS), N_BINS, -1)
    tile, reach = np.arange(N_TIME), np.arange(-5, 6)
    back = _back(BINS_OUT, N_BINS)
    # A correlation: the kernel's transform has the other sign.
    over_time = _dft(tile, np.arange(KERNEL[0]), N_TIME, 1)
    kernel = over_time[:, None, :, None] * _dft(np.arange(HALF), reach, N_BINS, 1)[:, None, :]
    return Transforms(
        *(
            matrix.astype(np.float32)
            for matrix in (
                np.concatenate([ahead.real, ahead.imag]),
                _as_real(_dft(tile, tile, N_TIME, -1)),
                _as_real(_dft(np.arange(STEP), tile, N_TIME, 1) / N_TIME),
                np.stack([back.real, -back.imag], 1).reshape(BINS_OUT, -1),
                np.stack([kernel.real, kernel.imag], 2).reshape(N_TIME * HALF * 2, -1),
            )
        )
    )


def kernel_taps(kernel: npt.NDArray[np.float32]) -> Matrix:
    """(11 · 11, 2 phases · in · out) of a kernel (out, in, 11, 21): the taps that meet even bins and those for odd."""
    n_out, n_in = kernel.shape[:2]
    taps = np.zeros((KERNEL[0], 11, 2, n_in, n_out), np.float32)
    for column in range(KERNEL[1]):
        reach, phase = divmod(column - KERNEL[1] // 2, 2)
        taps[:, reach + 5, phase] = kernel[:, :, :, column].transpose(2, 1, 0)
    return taps.reshape(KERNEL[0] * 11, -1)


def _back(n_out: int, n: int) -> npt.NDArray[np.complex128]:
    """The first values (n_out, n / 2 + 1) of a real signal of even length n from half of its spectrum."""
    twice = np.full(n // 2 + 1, 2.0)  # stands for the half that is left out
    twice[[0, -1]] = 1
    return _dft(np.arange(n_out), np.arange(n // 2 + 1), n, 1) * twice / n


def _dft(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], n: int, sign: int) -> npt.NDArray[np.complex128]:
    return np.exp(sign * 2j * np.pi * np.outer(rows, columns) / n)


def _as_real(matrix: npt.NDArray[np.complex128]) -> npt.NDArray[np.float64]:
    """(2m, 2n) for a complex (m, n): works on columns of (real, imaginary) pairs."""
    pairs = np.array([[matrix.real, -matrix.imag], [matrix.imag, matrix.real]])
    return pairs.transpose(2, 0, 3, 1).reshape(2 * matrix.shape[0], -1)
