"""One model of several: ``python -m training.average Models/A B/checkpoint.pt --weights 0.3 0.7 --out FOLDER``.

Networks that were trained on from the same weights may be averaged, and the mean is often better than each: Wortsman et
al., Model soups, ICML 2022. The last one is a checkpoint and gives what is not averaged: progress and optimisers. What
lies beside it comes along, so that `training.publish` can make a model of the mean.
"""

import argparse
import json
import pickle
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from speech.beam import OPTIONS
from speech.model_card import LANGUAGE_MODEL, WEIGHTS
from training.command import one_line
from training.history import RECIPE, lines, more, of_model, of_run
from training.old_keras import read_layers, sizes_of
from training.torch_model import Network

ALONG = "log.csv", LANGUAGE_MODEL, OPTIONS  # of the last one's folder

Tensors = dict[str, torch.Tensor]


def mean(networks: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]) -> Tensors:
    """The weighted mean of networks; what is not made of fractions (counts) is the last one's.

    Raises:
        ValueError: they are of different shapes, or the weights do not add up to 1.
    """
    if len(networks) != len(weights) or not abs(sum(weights) - 1) <= 1e-6:
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


def read_state(source: Path) -> dict[str, Any]:
    """What a checkpoint holds, or of a model's folder its weights as ``averaged``.

    Raises:
        OSError: there is none; ModelMismatch, ValueError: it is damaged or something else.
    """
    if source.is_dir():
        layers, _ = read_layers(source / WEIGHTS)
        rnn_layers, rnn_units, alphabet_size = sizes_of(layers)
        network = Network(alphabet_size, rnn_layers, rnn_units, 0.0)
        network.load_keras_weights({layer.settings["name"]: layer.weights for layer in layers})
        return {"averaged": network.state_dict()}
    try:
        state: dict[str, Any] = torch.load(source, "cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"expected a checkpoint of training.train in {source}, found something else") from error
    if not isinstance(state, dict) or "averaged" not in state:
        raise ValueError(f"expected a checkpoint of training.train in {source}, found something else")
    return state


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.average", description=__doc__)
    parser.add_argument(
        "checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="of training.train, or a model's folder"
    )
    parser.add_argument("--weights", nargs="+", type=float, help="one for each, 1 together; all the same if not given")
    parser.add_argument("--out", required=True, type=Path, help="folder for the new checkpoint")
    given = parser.parse_args(arguments)
    out = given.out / "checkpoint.pt"
    with one_line(parser):
        for name in (out.name, WEIGHTS):
            if (given.out / name).exists():
                raise ValueError(f"expected a folder without {name} as --out, found one in {given.out}")
        states = [read_state(file) for file in given.checkpoints]
        if "progress" not in states[-1]:
            raise ValueError(f"expected a checkpoint as the last one, found the model {given.checkpoints[-1]}")
        network = mean([state["averaged"] for state in states], given.weights or [1 / len(states)] * len(states))
        histories = [of_model(file) if file.is_dir() else of_run(file.parent) for file in given.checkpoints]
        given.out.mkdir(parents=True, exist_ok=True)
        torch.save({**states[-1], "network": network, "averaged": network}, out)
        last = given.checkpoints[-1].parent
        for name in ALONG:
            if (last / name).is_file():
                shutil.copy(last / name, given.out / name)
        if (last / RECIPE).is_file():
            before = {**histories[-1], "command": lines(*(found.get("command", "") for found in histories)),
                      "data": reduce(more, (found.get("data", {}) for found in histories))}  # fmt: skip
            command = shlex.join(["python", "-m", "training.average", *(arguments or sys.argv[1:])])
            recipe = {**json.loads((last / RECIPE).read_text(encoding="utf-8")), "command": command, "before": before}
            (given.out / RECIPE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
