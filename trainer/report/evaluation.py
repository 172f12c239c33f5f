"""The page's part on held-out evaluation: alarms, means with intervals and gains, benchmark tables, image statistics."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.report.run_folder import RunFolder, number, percent
from trainer.report.svg import SERIES, Plot, drawing

_STEP = re.compile(r"^step_(\d{6,})$")
_STATISTICS = ("saturation", "brightness", "contrast", "edge_density", "colour_entropy", "sharpness", "diversity")


@dataclass(frozen=True)
class Measured:
    """A reward of the last evaluation, in words. `verdict` is up or down where the gain's interval leaves 0 out."""

    name: str
    mean: str
    interval: str
    gain: str
    verdict: str


@dataclass(frozen=True)
class BenchmarkTable:
    """UniGenBench's table of a set: rows of kind, name, accuracy, interval, judged by asked, and the accuracy of what the
    benchmark's own tool reads of the same answers."""

    name: str
    step: int
    answered: str
    failures: str
    rows: tuple[tuple[str, str, str, str, str, str], ...]


@dataclass(frozen=True)
class EvaluationPart:
    """What the template shows; `alarms` are (name, steps at which it was raised, the newest sentence)."""

    step: int | None
    alarms: tuple[tuple[str, str, str], ...]
    measured: tuple[Measured, ...]
    tables: tuple[BenchmarkTable, ...]
    plots: tuple[Plot, ...]


def evaluation_part(run: RunFolder) -> EvaluationPart:
    """From rows and the files under `eval/`; what is missing or damaged is left out."""
    rows = [row for row in run.rows if any(key.startswith("eval/") for key in row)]
    last: Mapping[str, Any] = rows[-1] if rows else {}
    steps = sorted(int(match.group(1)) for path in run.path.glob("eval/step_*") if (match := _STEP.match(path.name)))
    step = number(last.get("eval/step", last.get("step")))
    return EvaluationPart(
        step=None if math.isnan(step) else int(step),
        alarms=tuple(_alarms(run.path, steps)),
        measured=tuple(_measured(last)),
        tables=tuple(_tables(run.path, steps)),
        plots=tuple(_plots(run)),
    )


def _measured(row: Mapping[str, Any]) -> list[Measured]:
    names = [key.removesuffix("/low") for key in row if key.startswith("eval/") and key.endswith("/low")]
    found = []
    for key in names:
        value, low, high = (number(row.get(name)) for name in (key, f"{key}/low", f"{key}/high"))
        gains = [number(row.get(f"{key}/{name}")) for name in ("gain", "gain_low", "gain_high")]
        gain, verdict = "–", ""
        if not math.isnan(gains[1]):
            gain = "{} ({} to {})".format(*alike(gains, "+"))
            verdict = "up" if gains[1] > 0 else "down" if gains[2] < 0 else ""
        mean, *ends = alike([value, low, high])
        found.append(Measured(key.removeprefix("eval/"), mean, " to ".join(ends), gain, verdict))
    return found


def alike(numbers: Sequence[float], sign: str = "") -> list[str]:
    """A mean and the ends of its interval with as many decimals as give the interval's width two or three figures."""
    _, low, high = numbers
    width = high - low
    decimals = min(6, max(0, 2 - math.floor(math.log10(width)))) if 0 < width < math.inf else 3
    return [f"{value:{sign}.{decimals}f}" for value in numbers]


def _alarms(run_dir: Path, steps: list[int]) -> list[tuple[str, str, str]]:
    raised: dict[str, list[int]] = {}
    newest: dict[str, str] = {}
    for step in steps:
        listed = _json(run_dir / "eval" / f"step_{step:06d}" / "alarms.json")
        for alarm in listed if isinstance(listed, list) else []:
            if isinstance(alarm, dict):
                raised.setdefault(str(alarm.get("name")), []).append(step)
                newest[str(alarm.get("name"))] = str(alarm.get("text"))
    return [(name, _range(at), newest[name]) for name, at in raised.items()]


def _range(steps: list[int]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}, {len(steps)} times"


def _tables(run_dir: Path, steps: list[int]) -> list[BenchmarkTable]:
    """The newest table of each set."""
    found: dict[str, BenchmarkTable] = {}
    for step in steps:
        for path in sorted(run_dir.glob(f"eval/step_{step:06d}/*/unigenbench.json")):
            tree = _json(path)
            try:
                found[path.parent.name] = _table(path.parent.name, step, tree)
            except (LookupError, TypeError, ValueError, AttributeError):
                continue
    return list(found.values())


def _table(name: str, step: int, tree: Any) -> BenchmarkTable:
    failures = ", ".join(f"{count} {code}" for code, count in tree["failures"].items())
    rows = [
        (
            str(row["kind"]),
            str(row["name"]),
            "–" if row["accuracy"] is None else percent(row["accuracy"]),
            "" if row["low"] is None else f"{percent(row['low'])} to {percent(row['high'])}",
            f"{row['judged']} / {row['asked']}",
            _official(row),
        )
        for row in tree["rows"]
    ]
    return BenchmarkTable(name, step, f"{tree['answered']} of {tree['pictures']}", failures, tuple(rows))


def _official(row: Mapping[str, Any]) -> str:
    """The accuracy and of how many points; a dash in tables of runs that did not count them."""
    accuracy = row.get("official_accuracy")
    return "–" if accuracy is None else f"{percent(accuracy)} of {row['official_judged']}"


def _plots(run: RunFolder) -> list[Plot]:
    """Each statistic of training images, and of the first evaluation set's."""
    sets = [key.split("/")[1] for row in run.rows for key in row if key.startswith("stats/") and key.count("/") == 2]
    heldout = next(iter(dict.fromkeys(sets)), None)
    plots: list[Plot] = []
    for name in _STATISTICS:
        training = run.points(f"stats/{name}")
        evaluated = run.points(f"stats/{heldout}/{name}") if heldout else ([], [])
        kept = [(step, value) for step, value in zip(*evaluated, strict=True) if not math.isnan(value)]
        if not training[0] and not kept:
            continue
        title = name.replace("_", " ")
        with drawing(title, plots, alt=f"{title} of the images over steps") as axes:
            if training[0]:
                axes.plot(*training, color=SERIES[1], linewidth=1, alpha=0.85, label="training")
            if kept:
                axes.plot(*zip(*kept, strict=True), color=SERIES[0], linewidth=2, marker="o", label="held-out")
    return plots


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
