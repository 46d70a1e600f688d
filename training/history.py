"""Where a network comes from: the commands that made it and what they heard, of all runs that led to it.

A run keeps it in ``recipe.json``: ``command``, a line for each call, ``data``, and ``before``, the history of what it
began with. Publishing writes the whole into the card.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speech.model_card import CARD, read_card
from training.dataset import Clip

RECIPE = "recipe.json"
SUMS = "steps", "hours", "hours_heard"

ATTRIBUTION = {
    "ljspeech": "The LJ Speech Dataset, Keith Ito and Linda Johnson, 2017; public domain",
    "librispeech": "LibriSpeech, Panayotov et al., ICASSP 2015; CC BY 4.0",
    "kathleen": "rhasspy/dataset-voice-kathleen; CC0",
    "vctk": "VCTK, Yamagishi, Veaux and MacDonald; CC BY 4.0 / ODC-By",
    "speechocean762": "speechocean762, Zhang et al., Interspeech 2021; free for commercial and non-commercial use",
}

OWN = "the trainer's own"
NAMED = 5  # sources of one corpus, at most

History = dict[str, Any]  # command, data (facts by corpus) and SUMS; each may be missing


def of_model(folder: Path) -> History:
    """What the card of a model says of its training; without a card nothing.

    Raises as `read_card`.
    """
    said = read_card(folder).training if (folder / CARD).exists() else {}
    found = {name: said[name] for name in ("command", "data", *SUMS) if name in said}
    if origin := said.get("converted_from"):
        found["command"] = f"python -m training.convert    # {origin['file']}, SHA-256 {origin['sha256']}"
    return found


def of_run(folder: Path) -> History:
    """What a run's recipe says of it and of what it began with; without a recipe nothing.

    Raises:
        ValueError: the recipe is damaged.
    """
    if not (folder / RECIPE).exists():
        return {}
    recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    before: History = recipe.get("before", {})
    command = lines(before.get("command", ""), recipe.get("command", ""))
    return {**before, "command": command, "data": more(before.get("data", {}), recipe.get("data", {}))}


def lines(*commands: str) -> str:
    """Commands below each other, each line once."""
    return "\n".join(dict.fromkeys(line for command in commands for line in command.splitlines()))


def credits_of(clips: Sequence[Clip]) -> dict[str, Any]:
    """Facts of what is heard, by corpus: clips, hours and source (whom to credit, and the licence)."""
    facts: dict[str, Any] = {}
    for corpus in sorted({clip.utterance.corpus for clip in clips}):
        heard = [clip for clip in clips if clip.utterance.corpus == corpus]
        seconds = sum(clip.seconds for clip in heard)
        facts[corpus] = {"clips": len(heard), "hours": round(seconds / 3600, 2), "source": _source(heard, corpus)}
    return facts


def _source(clips: Sequence[Clip], corpus: str) -> str:
    """Whose a corpus is: as its makers ask, or else as the manifest says."""
    known = [by for name, by in ATTRIBUTION.items() if corpus.lower().startswith(name)]
    said = sorted({clip.utterance.credit for clip in clips} - {""})
    if known or not said:
        return known[0] if known else OWN
    return " / ".join(said[:NAMED]) + (f" and {len(said) - NAMED} more" if len(said) > NAMED else "")


def more(data: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Facts by corpus of both; of a corpus in both those of more hours, and the sources of both."""
    found: dict[str, Any] = {}
    for name, facts in sorted([*data.items(), *other.items()], key=lambda item: item[1]["hours"]):
        sources = [one["source"] for one in (found.get(name), facts) if one]
        found[name] = {**facts, "source": " / ".join(dict.fromkeys(s for said in sources for s in said.split(" / ")))}
    return dict(sorted(found.items()))
