"""Where a network comes from: the commands that made it and what they heard, of all runs that led to it.

A run keeps it in ``recipe.json``: ``command``, a line for each call, and ``before``, the history of what it began with.
Publishing writes the whole into the card.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speech.model_card import CARD, read_card

RECIPE = "recipe.json"
SUMS = "steps", "hours", "hours_heard"

History = dict[str, Any]  # command, data (facts by corpus) and SUMS; each may be missing


def of_model(folder: Path) -> History:
    """What the card of a model says of its training; without a card nothing.

    Raises as `read_card`.
    """
    said = read_card(folder).training if (folder / CARD).exists() else {}
    return {name: said[name] for name in ("command", "data", *SUMS) if name in said}


def of_run(folder: Path) -> History:
    """What a run's recipe says of it and of what it began with; without a recipe nothing."""
    if not (folder / RECIPE).exists():
        return {}
    recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    before: History = recipe.get("before", {})
    return {**before, "command": lines(before.get("command", ""), recipe.get("command", ""))}


def lines(*commands: str) -> str:
    """Commands below each other, each line once."""
    return "\n".join(dict.fromkeys(line for command in commands for line in command.splitlines()))


def more(data: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Facts by corpus of both; of a corpus in both those of more hours."""
    found = [*data.items(), *sorted(other.items())]
    return dict(sorted(found, key=lambda facts: facts[1]["hours"]))
