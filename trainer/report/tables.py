"""The tables of the report: where the time went, what failed, what served the rewards, and every evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trainer.records import keys
from trainer.records.numbers import NONE, milliseconds, percent, plain
from trainer.records.progress import duration
from trainer.report.run_folder import RunFolder

MAX_TABLE_ROWS = 40
_PHASES = ("rollout", "reward_wait", "update")
_REVISION_LENGTH = 80  # characters; a judge's names all its settings


def phases(run: RunFolder) -> list[tuple[str, str, float, str]]:
    """Name, seconds in words and share of the whole, as a number and in words, of each part of the run's time."""
    sums = {name: run.total(f"time/{name}") for name in (*_PHASES, "evaluate", "checkpoint")}
    sums["other"] = max(0.0, run.total("time/total") - sum(sums[name] for name in _PHASES))
    whole = sum(sums.values())
    return [(name, duration(s), s / whole, percent(s / whole)) for name, s in sums.items() if whole and s > 0]


def worst_excess(run: RunFolder) -> str:
    """The promise, measured: waiting beyond the last micro-batch's own latency, against the step's length."""
    if run.rows.excess is None:
        return ""
    share, excess, step = run.rows.excess
    if excess == 0:
        return "Never waited longer for rewards than the last micro-batch's own answer took."
    return f"Waiting for rewards beyond the last answer's own latency took at most {plain(excess)} s, {percent(share)} of step {step}."


def failures(run: RunFolder) -> list[tuple[str, list[tuple[str, int]]]]:
    """Per reward the failed scores of training by code."""
    return [(name, [(code, run.rows.failed[name, code]) for code in codes]) for name, codes in run.failures().items()]


def services(run: RunFolder) -> list[dict[str, str]]:
    """Per reward: what serves it, its latency over the whole run, cached scores."""
    table = []
    for name in run.rewards():
        p50, p95, worst = (run.trained(keys.latency(name, q)) for q in ("p50", "p95", "max"))
        highest = [value for value in worst.high or worst.values if not math.isnan(value)]
        table.append(
            {
                "name": name,
                "served": _served(run, name),
                "p50": milliseconds(median(p50.values)),
                "p95": milliseconds(median(p95.values)),
                "max": milliseconds(max(highest, default=math.nan)),
                "cached": plain(run.total(f"cached/{name}"), whole=True),
            }
        )
    return table


def _served(run: RunFolder, name: str) -> str:
    """Service, reward and revision of a column."""
    column, scorer = run.setting("rewards", "columns", name, default={}), run.scorers.get(name, {})
    parts = [column.get("service"), column.get("reward")] if isinstance(column, Mapping) else []
    text = " / ".join(str(part) for part in parts if part) or NONE
    revision = str(scorer.get("revision") or "")
    if not revision:
        return text
    return f"{text}, revision {revision[:_REVISION_LENGTH]}{'…' if len(revision) > _REVISION_LENGTH else ''}"


def evaluations(run: RunFolder) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The held-out curves as a table: names, and per evaluated step the numbers; of many, MAX_TABLE_ROWS evenly spread."""
    evaluated = run.rows.evaluations
    names = [name for name in run.rewards() if f"eval/{name}" in set(evaluated)]
    columns = [evaluated.values(f"eval/{name}") for name in names]
    known = [
        *columns,
        *(evaluated.values(f"eval/{name}/valid_share") for name in names),
    ]  # one may have no score at all
    rows = [n for n in range(len(evaluated.steps)) if any(not math.isnan(column[n]) for column in known)]
    if len(rows) > MAX_TABLE_ROWS:
        last = len(rows) - 1
        rows = [rows[round(n * last / (MAX_TABLE_ROWS - 1))] for n in range(MAX_TABLE_ROWS)]
    return names, [(evaluated.steps[n], [plain(column[n]) for column in columns]) for n in rows]


def median(values: Sequence[float]) -> float:
    """The middle of those that are numbers; NaN without any."""
    found = sorted(value for value in values if not math.isnan(value))
    return found[len(found) // 2] if found else math.nan
