"""What an evaluation found, for people: Markdown tables, a picture, and a model's ``evaluation.md``."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from speech.alphabet import normalise_text
from speech.beam import OPTIONS
from speech.model_card import LANGUAGE_MODEL, WEIGHTS, sha256
from training.scores import Rates, Result, by_everything, count_words, rates

WORST = 10  # utterances of the report
POINTS = 12  # of the learning curve, about
AS_RECORDED = "as recorded"  # the condition
REPORT, PICTURE = "evaluation.md", "evaluation.png"

Groups = Mapping[str, Mapping[str, Rates]]  # decoder → name of the group → its rates


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What each decoder heard, and the rates by what they are grouped by; ``conditions`` may be empty."""

    clean: Mapping[str, Sequence[Result]]
    groups: Mapping[str, Groups]
    conditions: Groups

    @classmethod
    def of(
        cls, clean: Mapping[str, Sequence[Result]], degraded: Mapping[str, Mapping[str, Sequence[Result]]]
    ) -> "Evaluation":
        """Score what was heard in the clips as they are, and under conditions: condition → decoder → results."""
        scored = {decoder: by_everything(results) for decoder, results in clean.items()}
        groups = {by: {d: of[by] for d, of in scored.items()} for by in next(iter(scored.values()))}
        under = {AS_RECORDED: clean, **degraded} if degraded else {}
        conditions = {d: {name: rates(heard[d]) for name, heard in under.items()} for d in clean} if under else {}
        return cls(clean, groups, conditions)

    def tables(self) -> dict[str, str]:
        """Every table by its subject."""
        found = {by: table(groups, by) for by, groups in self.groups.items()}
        found["errors"] = kinds(self.groups["corpus"])
        if self.conditions:
            found["condition"] = table(self.conditions, "condition")
            found["errors under conditions"] = kinds(self.conditions, "condition")
        return found

    def as_dict(self) -> dict[str, Any]:
        """All of it for JSON."""
        rated = {**self.groups, **({"condition": self.conditions} if self.conditions else {})}
        first = next(iter(self.clean.values()))
        utterances = [
            {**asdict(result), "hypothesis": {d: results[i].hypothesis for d, results in self.clean.items()}}
            for i, result in enumerate(first)
        ]
        return {
            "rates": {
                decoder: {by: {name: asdict(r) for name, r in g[decoder].items()} for by, g in rated.items()}
                for decoder in self.clean
            },
            "utterances": utterances,
        }


def _cell(rate: float, interval: tuple[float, float]) -> str:
    return f"{rate:.1f} ({interval[0]:.1f}–{interval[1]:.1f})"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def table(groups: Groups, by: str = "corpus") -> str:
    """The rates of each group as a Markdown table, the decoders side by side."""
    several = len(groups) > 1
    head = [by, "clips", "sound"]
    head += [f"{d if several else ''} {rate} % (95 %)".strip() for d in groups for rate in ("WER", "CER")]
    rows = []
    for name, first in next(iter(groups.values())).items():
        found = [decoder[name] for decoder in groups.values()]
        cells = [c for r in found for c in (_cell(r.wer, r.wer_interval), _cell(r.cer, r.cer_interval))]
        rows.append([name, str(first.clips), f"{first.seconds:.0f} s", *cells])
    return _markdown(head, rows)


def kinds(groups: Groups, by: str = "corpus") -> str:
    """Substitutions, deletions and insertions, and the raw rates, as a Markdown table."""
    head = [by, "decoder", "substituted %", "deleted %", "inserted %", "WER %", "raw WER %", "CER %", "raw CER %"]
    rows = []
    for name in next(iter(groups.values())):
        for decoder, found in groups.items():
            r = found[name]
            numbers = (r.substitutions, r.deletions, r.insertions, r.wer, r.raw_wer, r.cer, r.raw_cer)
            rows.append([name, decoder, *(f"{number:.1f}" for number in numbers)])
    return _markdown(head, rows)


def _word_errors(result: Result) -> tuple[int, int]:
    *errors, length = count_words(normalise_text(result.reference), normalise_text(result.hypothesis))
    return sum(errors), length


def worst(results: Sequence[Result]) -> list[Result]:
    """The results, those with the most errors per word first."""

    def rate(result: Result) -> float:
        errors, length = _word_errors(result)
        return errors / length

    return sorted(results, key=rate, reverse=True)


def worst_table(results: Sequence[Result]) -> str:
    """The worst utterances as a Markdown table, without their texts."""
    rows = []
    for r in worst(results)[:WORST]:
        errors, length = _word_errors(r)
        wer = f"{100 * errors / length:.0f}"
        rows.append([r.id, r.corpus, r.speaker or "–", f"{r.seconds:.1f} s", f"{r.snr:.0f} dB", str(length), wer])
    return _markdown(["utterance", "corpus", "speaker", "sound", "SNR", "words", "WER %"], rows)


def in_short(found: Evaluation) -> str:
    """The extremes in sentences, of the last decoder: the one that serves."""
    decoder, last = [*found.clean.items()][-1]
    whole = rates(last)
    lines = [
        f"- Of 100 words said, {decoder} writes {whole.substitutions:.0f} as others and leaves {whole.deletions:.0f} "
        f"out; it adds {whole.insertions:.0f} that nobody said."
    ]
    for by, groups in {**found.groups, "condition": found.conditions}.items():
        ranked = sorted(groups.get(decoder, {}).items(), key=lambda group: group[1].wer)
        ranked = [(name, of) for name, of in ranked if name not in ("all", AS_RECORDED)]
        if len(ranked) > 1:
            (best, least), (poorest, most) = ranked[0], ranked[-1]
            lines.append(f"- By {by}: from {least.wer:.1f} % WER ({best}) to {most.wer:.1f} % ({poorest}).")
    return "\n".join(lines)


def read_log(log_file: Path) -> Iterator[tuple[str, float, float]]:
    """Name, hours of sound heard and value of each line of a run's ``log.csv``, but of those that were cut off."""
    with log_file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            with suppress(TypeError, ValueError):
                yield row["name"], float(row["heard_h"]), float(row["value"])


def learning_curve(log_file: Path) -> str:
    """Error rates of a run's ``log.csv`` against the hours of sound heard, about as many rows as `POINTS`."""
    scores: dict[float, dict[str, float]] = {}
    for name, hour, value in read_log(log_file):
        if name.startswith(("wer_", "cer_")):
            scores.setdefault(hour, {})[name] = value
    if not scores:
        return ""
    hours = sorted(scores)
    chosen = hours[:: -(-len(hours) // POINTS)]
    names = sorted({name for found in scores.values() for name in found}, key=lambda name: (name[4:], name[0] != "w"))
    head = ["hours heard", *(f"{name[4:]} {name[:3].upper()} %" for name in names)]
    rows = [
        [f"{hour:.1f}", *(f"{scores[hour][n]:.1f}" if n in scores[hour] else "–" for n in names)]
        for hour in dict.fromkeys([*chosen, hours[-1]])
    ]
    return _markdown(head, rows)


def plot(found: Evaluation, picture: Path) -> None:
    """Word error rates with their intervals, a panel for each grouping, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {**found.groups, **({"condition": found.conditions} if found.conditions else {})}
    figure, axes = pyplot.subplots(-(-len(panels) // 2), 2, figsize=(12, 4 * -(-len(panels) // 2)), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (by, groups) in zip(axes.flat, panels.items(), strict=False):
        for n, (decoder, of) in enumerate(groups.items()):
            places = [i + 0.4 * (n - (len(groups) - 1) / 2) for i in range(len(of))]
            middle = [r.wer for r in of.values()]
            low = [r.wer - r.wer_interval[0] for r in of.values()]
            high = [r.wer_interval[1] - r.wer for r in of.values()]
            axis.barh(places, middle, 0.4, xerr=[low, high], label=decoder, error_kw={"linewidth": 0.8})
        axis.set_yticks(range(len(of)), list(of), fontsize=7)
        axis.invert_yaxis()
        axis.set(xlabel="WER, %", title=f"by {by}", xlim=(0, None))
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)


def sums(folder: Path) -> str:
    """The files that decide what a model hears, each with the start of its SHA-256."""
    there = [name for name in (WEIGHTS, LANGUAGE_MODEL, OPTIONS) if (folder / name).exists()]
    return ", ".join(f"`{name}` {sha256(folder / name)[:12]}" for name in there)


def write_report(found: Evaluation, folder: Path, command: str) -> None:
    """Write ``evaluation.md`` and its picture into the model's folder; it holds no text of a recording."""
    tables = found.tables()
    decoder, last = [*found.clean.items()][-1]
    curve = learning_curve(folder / "log.csv") if (folder / "log.csv").exists() else ""
    sections = {
        "In short": in_short(found),
        "By corpus": tables["corpus"],
        "Kinds of errors": tables["errors"],
        "By speaker": tables["speaker"],
        "By length": tables["length"],
        "By signal-to-noise ratio": f"Estimated by `training.conditions.signal_to_noise`.\n\n{tables['SNR']}",
        "Robustness": "\n\n".join(tables[name] for name in ("condition", "errors under conditions") if name in tables),
        "Worst utterances": f"Of {decoder}.\n\n{worst_table(last)}",
        "Learning curve": f"Greedy, during training (`log.csv`).\n\n{curve}" if curve else "",
    }
    plot(found, folder / PICTURE)
    head = (
        f"# {folder.name}: how well it hears\n\n"
        f"Written by `{command}` on {datetime.now(UTC).date().isoformat()}, of {sums(folder)} (SHA-256). "
        "What the columns mean: [docs/model.md](../../docs/model.md).\n\n"
        f"![word error rates]({PICTURE})\n"
    )
    body = "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items() if text)
    (folder / REPORT).write_text(head + body, encoding="utf-8")
