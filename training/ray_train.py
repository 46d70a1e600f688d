"""Train on a Ray cluster: ``python -m training.ray_train --workers 2 --data … --out …``.

Ray Train (https://docs.ray.io/en/latest/train/train.html, ``pip install "ray[default,train]"``) starts the processes
where the cluster has room for them and makes them known to each other; each is then one of `training.workers`, as if
torchrun had started it. All other arguments are those of `training.train`, and every machine must find the project and
the data under the same paths.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def work(given: dict[str, Any]) -> None:
    """What each process does: train, in the folder that the command was called in."""
    from training.train import main as train

    os.chdir(given["folder"])
    train(given["arguments"])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise SystemExit('expected Ray Train: pip install "ray[default,train]"') from error
    from training.workers import PATIENCE

    parser = argparse.ArgumentParser(prog="python -m training.ray_train", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--gpus", action="store_true", help="each gets a GPU")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; Ray's own notes go to its ray/")
    given, others = parser.parse_known_args(arguments)
    out = given.out.resolve()
    trainer = TorchTrainer(
        work,
        train_loop_config={"folder": os.getcwd(), "arguments": ["--out", str(out), *others]},
        torch_config=TorchConfig(backend="gloo", timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(num_workers=given.workers, use_gpu=given.gpus),
        run_config=RunConfig(name="ray", storage_path=str(out)),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
