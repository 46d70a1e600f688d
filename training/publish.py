"""Turn a run's checkpoint into a model that can be served: ``python -m training.publish Models/NAME --data …``."""

import argparse
import json
import logging
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from config import ROOT
from predictor import SpeechPredictor
from speech.alphabet import Alphabet
from speech.beam import OPTIONS
from speech.engine import computes_bfloat16
from speech.model_card import LANGUAGE_MODEL, WEIGHTS, ModelCard, sha256, write_card
from training.command import one_line
from training.dataset import Clip
from training.evaluate import transcribe_clips
from training.export import export, measure
from training.history import RECIPE, SUMS, credits_of, of_run
from training.low_rank import factors, reduce
from training.report import Groups, read_log, table
from training.scores import by_corpus

log = logging.getLogger("training.publish")

CARD_TEXT = """# {name}

{rnn_layers} × {rnn_units} bidirectional GRU network (see `speech/model.py`), {millions:.1f} million weights, trained by
`training/` of this project; numbers in `card.json`.

## Data

{data}

## Error rates

{rates}

`docs/model.md` says what such numbers mean, what else is measured, and whom to credit for the texts of a language model
that came with the shipped one.

## How it was trained

```
{command}
```

{steps} steps in {hours:.2f} hours; {hours_heard:.1f} hours of sound heard, repeats included; commit {commit}, {date}.

![loss and error rates](curves.png)
"""

RATES = """Greedy decoding through the service's own predictor, on clips that it was not trained on:

{table}

`python -m training.evaluate MODEL DATA --decoder greedy` makes such a table; `MODEL` is this folder."""

NO_RATES = (
    "Not measured: the data had no clips of the split `dev`. `python -m training.evaluate` measures it on others."
)


def write_weights(weights: Mapping[str, Sequence[np.ndarray]], rnn_layers: int, rnn_units: int, folder: Path) -> int:
    """Write ``model.keras`` from arrays by layer name; gives the number of weights.

    Matrices are rounded to float16's precision, so that the exported file can store them in half the space and
    still compute exactly the same; but for kernels of low rank, which that would spoil.
    """
    from speech.model import build_model

    model = build_model(rnn_layers, rnn_units, Alphabet().size)
    for name, arrays in weights.items():
        kept = [a for a in arrays if name.startswith("conv") or a.ndim < 2 or len(a) <= 2]
        if name == "bidirectional_1" and factors(np.concatenate([arrays[0], arrays[3]], axis=1)):
            kept += [arrays[0], arrays[3]]
        model.get_layer(name).set_weights(
            [a if any(a is k for k in kept) else a.astype(np.float16).astype(np.float32) for a in arrays]
        )
    model.save(folder / WEIGHTS)
    return model.count_params()


def plot(log_file: Path, picture: Path) -> None:
    """Loss and error rates of a run's log.csv against the hours of sound heard, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series: dict[str, tuple[list[float], list[float]]] = {}
    for name, hours, value in read_log(log_file):
        x, y = series.setdefault(name, ([], []))
        x.append(hours)
        y.append(value)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    left.plot(*series.get("loss", ([], [])), linewidth=0.8)
    left.set(xlabel="hours of sound heard", ylabel="CTC loss per character", ylim=(0, 3.5))
    for name, points in sorted(series.items()):
        if name.startswith(("wer", "cer")):
            style = "-" if name.startswith("wer") else "--"
            right.plot(*points, style, label=name.replace("_", " "))
    right.set(xlabel="hours of sound heard", ylabel="error rate on dev, %", ylim=(0, 105))
    if right.lines:
        right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def _was_heard(clip: Clip, recipe: Mapping[str, Any]) -> bool:
    times = recipe.get("repeat", {}).get(clip.utterance.corpus, 1)
    return clip.seconds <= recipe.get("max_seconds", math.inf) and times > 0


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return "unknown"
    return run.stdout.strip() or "unknown"


def publish(folder: Path, train: Sequence[Clip], dev: Sequence[Clip], command: str | None = None) -> Groups:
    """Write weights, export, card, picture and README of the run in ``folder``, and score it on ``dev``.

    What it began with is credited, too; ``command`` stands for the commands that the run remembers.

    Raises:
        FileNotFoundError: what a run leaves is not all there; ValueError: no clips, weights that are no numbers,
            or a damaged recipe.
    """
    import torch

    from training.torch_model import Network

    if missing := [n for n in (RECIPE, "checkpoint.pt", "log.csv") if not (folder / n).is_file()]:
        raise FileNotFoundError(f"expected a run in {folder}, found no {', '.join(missing)}")
    recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    history, own = of_run(folder), ("before", "command", "data")
    train = [clip for clip in train if _was_heard(clip, recipe)]
    if not train:
        raise ValueError("expected the clips that it was trained on, found none")
    state = torch.load(folder / "checkpoint.pt", "cpu", weights_only=True)
    alphabet = Alphabet()
    network = Network(alphabet.size, recipe["rnn_layers"], recipe["rnn_units"], 0.0)
    network.load_state_dict(state["averaged"])
    if not all(bool(tensor.isfinite().all()) for tensor in state["averaged"].values()):
        raise ValueError(
            f"expected weights in {folder / 'checkpoint.pt'}, found infinite ones or NaN: the run diverged"
        )
    reduce(network, train)
    count = write_weights(network.keras_weights(), recipe["rnn_layers"], recipe["rnn_units"], folder)
    step, _, elapsed, heard, *_ = state["progress"]
    steps, hours, hours_heard = (history.get(name, 0) for name in SUMS)
    training = {
        "command": command or history.get("command") or "python -m training.train",
        "recipe": {name: value for name, value in recipe.items() if name not in own},
        "data": history.get("data") or credits_of(train),
        "steps": steps + step,
        "hours": round(hours + elapsed / 3600, 2),
        "hours_heard": round(hours_heard + heard / 3600, 1),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    there = [name for name in (WEIGHTS, LANGUAGE_MODEL, OPTIONS) if (folder / name).exists()]
    sums = {name: sha256(folder / name) for name in there}
    card = ModelCard(folder.name, alphabet.characters, alphabet.blank, recipe["rnn_layers"], recipe["rnn_units"], sums,
                     training=training)  # fmt: skip
    write_card(card, folder)
    card = export(folder)
    if dev and computes_bfloat16():
        card = measure(folder, dev)
    greedy = {"greedy": SpeechPredictor.load(folder, decoder="greedy")}
    groups = (
        {name: by_corpus(heard) for name, heard in transcribe_clips(greedy, dev).items()} if dev else {"greedy": {}}
    )
    error_rates = {"dev": {name: asdict(group) for name, group in groups["greedy"].items()}}
    write_card(replace(card, error_rates=error_rates), folder)
    plot(folder / "log.csv", folder / "curves.png")
    data = [f"- {name}: {f['clips']} clips, {f['hours']} h. {f['source']}" for name, f in training["data"].items()]
    text = CARD_TEXT.format(
        **{**training, "data": "\n".join(data)}, name=folder.name, rnn_layers=card.rnn_layers, rnn_units=card.rnn_units,
        millions=count / 1e6, rates=RATES.format(table=table(groups)) if dev else NO_RATES,
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")
    return groups


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    from training.train import load_splits

    parser = argparse.ArgumentParser(prog="python -m training.publish", description=__doc__)
    parser.add_argument("model", type=Path, help="folder with a run's checkpoint.pt, recipe.json and log.csv")
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="the data it was trained on")
    parser.add_argument("--cache", type=Path, default=Path("Data/cache"), help="decoded audio is kept here")
    parser.add_argument("--command", help="how it was trained, for the card (default: what the run remembers)")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with one_line(parser):
        train, dev = load_splits(given.data, given.cache)
        print(table(publish(given.model, train, dev, given.command)))


if __name__ == "__main__":
    main()
