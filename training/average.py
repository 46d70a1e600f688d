"""One model of several: ``python -m training.average A/checkpoint.pt B/checkpoint.pt --weights 0.3 0.7 --out FOLDER``.

Networks that were trained on from the same weights may be averaged, and the mean is often better than each: Wortsman et
al., Model soups, ICML 2022. The last checkpoint gives what is not averaged: progress and optimisers.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

Tensors = dict[str, torch.Tensor]


def mean(networks: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]) -> Tensors:
    """The weighted mean of networks; what is not made of fractions (counts) is the last one's.

    Raises:
        ValueError: they are of different shapes, or the weights do not add up to 1.
    """
    if len(networks) != len(weights) or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"expected {len(networks)} weights that add up to 1, found {list(weights)}")
    shapes = [{name: tuple(tensor.shape) for name, tensor in network.items()} for network in networks]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("expected networks of one size, found several")
    found: Tensors = dict(networks[-1])
    for name, last in networks[-1].items():
        if last.is_floating_point():
            parts = [weight * network[name].double() for network, weight in zip(networks, weights, strict=True)]
            found[name] = torch.stack(parts).sum(0).to(last.dtype)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.average", description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="of training.train")
    parser.add_argument("--weights", nargs="+", type=float, help="one for each, 1 together; all the same if not given")
    parser.add_argument("--out", required=True, type=Path, help="folder for the new checkpoint")
    given = parser.parse_args(arguments)
    states = [torch.load(file, "cpu", weights_only=True) for file in given.checkpoints]
    weights = given.weights or [1 / len(states)] * len(states)
    try:
        network = mean([state["averaged"] for state in states], weights)
    except ValueError as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    torch.save({**states[-1], "network": network, "averaged": network}, given.out / "checkpoint.pt")


if __name__ == "__main__":
    main()
