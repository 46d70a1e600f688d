"""The first GRU layer's kernels, reduced to what real sound needs of them.

They take 49 · 32 values a step, a third of the network's arithmetic, but what they make of speech hardly leaves a space
of far fewer dimensions: kernel ≈ into · out, whose inner dimension is its rank. The reduced kernel has its old shape:
Keras and further training need not know; `training.export` finds the two factors again and multiplies by both in turn.
Principal components of a layer's responses: Zhang, Zou, He, Sun, Accelerating Very Deep Convolutional Networks for
Classification and Detection, 2015, https://arxiv.org/abs/1505.06798
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from speech.audio import from_pcm16
from speech.features import spectrogram
from training.dataset import Clip

if TYPE_CHECKING:
    from training.torch_model import Network

LOST = 0.001  # share of the responses' power that may be lost
CLIPS = 24  # of each corpus are listened to
MULTIPLE = 32  # of which the rank is one
NOTHING = 1e-5  # a singular value so much smaller than the largest one is rounding

Matrix = npt.NDArray[np.float32]


def pays(rank: int, kernel: Matrix) -> bool:
    """Whether two products of this inner dimension are less work than one by the kernel."""
    return rank * sum(kernel.shape) < kernel.size


def reduced(kernel: Matrix, squares: npt.NDArray[np.float64], lost: float = LOST) -> Matrix:
    """A kernel (n_in, n_out) of the lowest rank that keeps the power of its responses to inputs x (n, n_in), but for a
    share; the kernel as it is if that does not pay. ``squares`` is xᵀx, (n_in, n_in)."""
    power, directions = np.linalg.eigh(kernel.T.astype(np.float64) @ squares @ kernel)  # ascending
    if not power.sum() > 0:
        return kernel
    missing = 1 - np.cumsum(power[::-1]) / power.sum()
    rank = int(np.searchsorted(-missing, -lost)) + 1
    rank = -(-rank // MULTIPLE) * MULTIPLE
    if not pays(rank, kernel):
        return kernel
    kept = directions[:, -rank:]
    return (kernel @ kept @ kept.T).astype(np.float32)


def factors(kernel: Matrix) -> tuple[Matrix, Matrix] | None:
    """(n_in, rank) and (rank, n_out), whose product is the kernel (n_in, n_out), if its rank is so low that it pays."""
    left, values, right = np.linalg.svd(kernel, full_matrices=False)
    rank = max(1, int((values > NOTHING * values[0]).sum()))
    return (left[:, :rank], values[:rank, None] * right[:rank]) if pays(rank, kernel) else None


def reduce(network: "Network", clips: Sequence[Clip]) -> None:
    """Reduce the first GRU layer's kernels, by what reaches them of some of the clips."""
    import torch

    from training.train import pad

    rng, by_corpus = np.random.default_rng(0), defaultdict(list)
    for i in rng.permutation(len(clips)):
        by_corpus[clips[i].utterance.corpus].append(clips[i])
    layer: Any = network.rnn[0]
    squares = np.zeros((layer.kernel.shape[1],) * 2)

    def listen(_: Any, given: Any) -> None:
        heard = given[0].flatten(0, 1).numpy().astype(np.float64)
        squares[...] += heard.T @ heard

    hook = layer.register_forward_pre_hook(listen)
    network.eval()
    with torch.no_grad():
        for clip in (clip for corpus in by_corpus.values() for clip in corpus[:CLIPS]):
            network(*pad([spectrogram(from_pcm16(np.asarray(clip.samples)))]))
        hook.remove()
        both = torch.cat(list(layer.kernel), dim=1).numpy()  # of the two directions
        found = torch.from_numpy(reduced(both, squares))
        layer.kernel.copy_(torch.stack(found.chunk(2, dim=1)))
