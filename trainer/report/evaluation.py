"""The page's part on held-out evaluation: alarms, means with intervals and gains, benchmark tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.records.numbers import NONE, alike, interval, percent
from trainer.report.run_folder import RunFolder
from trainer.report.source import number

_STEP = re.compile(r"^step_(\d{6,})$")


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


def evaluation_part(run: RunFolder) -> EvaluationPart:
    """From rows and the files under `eval/`; what is missing or damaged is left out."""
    last: Mapping[str, Any] = run.rows.evaluated
    steps = sorted(int(match.group(1)) for path in run.path.glob("eval/step_*") if (match := _STEP.match(path.name)))
    step = number(last.get("eval/step", last.get("step")))
    return EvaluationPart(
        step=None if math.isnan(step) else int(step),
        alarms=tuple(_alarms(run.path, steps)),
        measured=tuple(_measured(last)),
        tables=tuple(_tables(run.path, steps)),
    )


def _measured(row: Mapping[str, Any]) -> list[Measured]:
    names = [key.removesuffix("/low") for key in row if key.startswith("eval/") and key.endswith("/low")]
    found = []
    for key in names:
        value, low, high = (number(row.get(name)) for name in (key, f"{key}/low", f"{key}/high"))
        gains = [number(row.get(f"{key}/{name}")) for name in ("gain", "gain_low", "gain_high")]
        gain, verdict = NONE, ""
        if not math.isnan(gains[1]):
            gain = interval(gains, sign=True)
            verdict = "up" if gains[1] > 0 else "down" if gains[2] < 0 else ""
        mean, *ends = alike([value, low, high])
        found.append(Measured(key.removeprefix("eval/"), mean, " to ".join(ends), gain, verdict))
    return found


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
            NONE if row["accuracy"] is None else percent(row["accuracy"]),
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
    return NONE if accuracy is None else f"{percent(accuracy)} of {row['official_judged']}"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
