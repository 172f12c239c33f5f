"""The rows of the table of runs: what is said of each, and in which order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from trainer.records.numbers import alike, interval, plain
from trainer.records.progress import duration, evaluations
from trainer.report.source import number
from trainer.runs.run import Run
from trainer.runs.state import gpus

MAX_REWARDS = 3  # columns of held-out rewards; the most frequent ones
ORDER = ("running", "failed", "killed", "stopped", "finished", "empty")  # what needs a person first


@dataclass(frozen=True)
class Held:
    """A held-out reward of the newest evaluation, and its gain since the first, each with its 95 % interval; NaN: unknown."""

    mean: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float

    @property
    def verdict(self) -> str:
        """up or down where the gain's interval leaves 0 out."""
        return "up" if self.gain_low > 0 else "down" if self.gain_high < 0 else ""

    @property
    def words(self) -> tuple[str, str, str]:
        """The mean, its interval, and the gain with its own; empty where they are unknown."""
        if math.isnan(self.low):
            return plain(self.mean), "", ""
        mean, low, high = alike([self.mean, self.low, self.high])
        gain = ""
        if not math.isnan(self.gain_low):
            gain = interval([self.gain, self.gain_low, self.gain_high], sign=True)
        return mean, f"{low} to {high}", gain


@dataclass(frozen=True)
class RunRow:
    """What the table says of a run. Seconds are NaN where they are not known yet."""

    name: str
    title: str
    state: str
    sentence: str
    step: int
    max_steps: int | None
    written_at: float | None
    held: Mapping[str, Held]
    alarms: tuple[str, ...]
    failed: int | None
    wall_s: float
    cpu_s: float
    gpu_s: float
    seed: str


@dataclass(frozen=True)
class Cell:
    """A cell as it is shown: `fine` is the small print below, `kind` its look, `order` what it is sorted by. One that says how
    long ago something was has that time as `at`, in seconds of the epoch."""

    key: str
    text: str
    fine: str = ""
    kind: str = ""
    order: float | str = ""
    at: float | None = None


def row_of(run: Run) -> RunRow:
    """A run's row, from all of its rows where they were read, else from its summary and its newest rows."""
    with run.lock:
        wall, cpu = _cost(run)
        count = gpus(run.summary)
        known: Any = sum(run.failed.values()) if run.complete else run.summary.get("failed_rewards")
        return RunRow(
            name=run.name,
            title=run.title,
            state=run.state.kind,
            sentence=run.state.sentence,
            step=run.step,
            max_steps=run.max_steps,
            written_at=run.written_at,
            held=held_of(run),
            alarms=tuple(sorted(alarms_of(run))),
            failed=known if isinstance(known, int) else None,
            wall_s=wall,
            cpu_s=cpu,
            gpu_s=wall * count,
            seed=run.seed,
        )


def held_of(run: Run) -> dict[str, Held]:
    """The held-out rewards of a run's newest evaluation; its summary's where no such row was read yet."""
    row = run.evaluated
    names = evaluations(row)
    if names:
        return {name: _held(row, name) for name in names}
    ends = run.summary.get("eval")
    after = ends.get("after") if isinstance(ends, Mapping) else None
    if not isinstance(ends, Mapping) or not isinstance(after, Mapping):
        return {}
    return {str(name): _summed(ends, str(name), number(mean)) for name, mean in after.items()}


def alarms_of(run: Run) -> Mapping[str, int]:
    """Each alarm's name, with how many evaluations raised it; of a run that is not read yet, those of the newest."""
    return run.alarms if run.complete else dict.fromkeys(_raised(run.evaluated), 1)


def _raised(row: Mapping[str, Any]) -> list[str]:
    return [key.removeprefix("alarm/") for key in row if key.startswith("alarm/") and number(row[key]) > 0]


def _cost(run: Run) -> tuple[float, float]:
    """Seconds of all steps and evaluations, and CPU seconds of rank 0; NaN where they are not known yet."""
    if run.complete:
        wall = run.sums["time/total"] + run.sums["time/evaluate"] + run.sums["time/checkpoint"]
        return wall, run.sums["time/cpu"] if run.knows_cpu else math.nan
    return (number(run.summary.get("wall_s")) if run.summary.get("steps") == run.step else math.nan), math.nan


def _held(row: Mapping[str, Any], name: str) -> Held:
    ends = ("", "/low", "/high", "/gain", "/gain_low", "/gain_high")
    return Held(*(number(row.get(f"eval/{name}{end}")) for end in ends))


def _summed(ends: Mapping[str, Any], name: str, mean: float) -> Held:
    def part(section: str) -> Any:
        found = ends.get(section)
        return found.get(name) if isinstance(found, Mapping) else None

    interval, gain = part("interval"), part("gain")
    low, high = map(number, interval) if isinstance(interval, list) and len(interval) == 2 else (math.nan, math.nan)
    told = gain if isinstance(gain, Mapping) else {}
    return Held(mean, low, high, *(number(told.get(key)) for key in ("gain", "low", "high")))


def rewards_of(rows: Iterable[RunRow]) -> list[str]:
    """The held-out rewards that have a column: those of the most runs, in the order in which runs name them."""
    counts = Counter(name for row in rows for name in row.held)
    return [name for name, _ in counts.most_common(MAX_REWARDS)]


def cells(row: RunRow, rewards: Sequence[str], now: float | None) -> list[Cell]:
    """A row's cells after its name. Without `now`, of a page that stays as it is, times are told as dates."""
    of = f" of {row.max_steps}" if row.max_steps else ""
    share = f"{100 * row.step / row.max_steps:.0f} %" if row.max_steps else ""
    found = [
        Cell("state", row.state, kind=row.state, order=ORDER.index(row.state)),
        Cell("step", f"{row.step}{of}", share, order=row.step),
    ]
    for name in rewards:
        held = row.held.get(name)
        text, interval, gain = held.words if held else ("–", "", "")
        found.append(
            Cell(
                key=f"eval/{name}",
                text=text,
                fine="\n".join(part for part in (interval, gain) if part),
                kind=held.verdict if held else "",
                order=_order(held.mean if held else math.nan),
            )
        )
    spent = ((row.cpu_s, "CPU"), (row.gpu_s, "GPU"))
    fine = "\n".join(f"{part} {duration(value)}" for value, part in spent if value > 0)
    alarms = f"{len(row.alarms)}" if row.alarms else "none"
    return [
        *found,
        Cell("time", "–" if math.isnan(row.wall_s) else duration(row.wall_s), fine, order=_order(row.wall_s)),
        Cell("alarms", alarms, ", ".join(row.alarms), "down" if row.alarms else "", len(row.alarms)),
        Cell(
            "failed",
            "–" if row.failed is None else f"{row.failed}",
            kind="down" if row.failed else "",
            order=row.failed or 0,
        ),
        Cell("written", _when(row.written_at, now), order=row.written_at or 0.0, at=row.written_at),
    ]


def _when(at: float | None, now: float | None) -> str:
    if at is None:
        return "–"
    if now is None:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{duration(max(0.0, now - at))} ago"


def _order(value: float) -> float:
    """Unknown numbers come last in falling order."""
    return -math.inf if math.isnan(value) else value


def sort(rows: Sequence[RunRow], key: str, *, falling: bool) -> list[RunRow]:
    """The rows by one of their columns; an unknown key leaves the newest first."""
    orders: dict[str, Callable[[RunRow], Any]] = {
        "name": lambda row: row.name.casefold(),
        "state": lambda row: ORDER.index(row.state),
        "step": lambda row: row.step,
        "time": lambda row: _order(row.wall_s),
        "alarms": lambda row: len(row.alarms),
        "failed": lambda row: row.failed or 0,
        "written": lambda row: row.written_at or 0.0,
    }
    if key.startswith("eval/"):
        name = key.removeprefix("eval/")
        return sorted(rows, key=lambda r: _order(r.held[name].mean) if name in r.held else -math.inf, reverse=falling)
    if key in orders:
        return sorted(rows, key=orders[key], reverse=falling)
    return sorted(rows, key=orders["written"], reverse=True)


def matching(rows: Iterable[RunRow], words: str, states: Sequence[str]) -> list[RunRow]:
    """The rows in whose name every one of `words` occurs, of one of `states` (none: of any)."""
    wanted = words.casefold().split()
    return [
        row
        for row in rows
        if (not states or row.state in states) and all(word in f"{row.name} {row.title}".casefold() for word in wanted)
    ]
