"""The rows of one run, read once and thinned as they are read, with what the report says of single rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.records.rows.columns import Columns
from trainer.records.rows.tail import Row, row_in
from trainer.records.silence import SilenceWatch
from trainer.report.reading import Reading

MAX_POINTS = 400  # of a curve


class RunRows(Reading):
    """All rows of a `metrics.jsonl`, in memory that does not grow with them: 13 kB a key.

    Attributes:
        first: the row of the evaluation before training; empty without one.
        excess: the largest share of a step that was spent waiting beyond the last answer's own latency, these seconds, and the
            step; None where no row says.

    Args:
        warn_after: `logging.warn_after_steps`.
    """

    def __init__(self, warn_after: int) -> None:
        super().__init__(MAX_POINTS, np.float64)
        self.first: Row = {}
        self.excess: tuple[float, float, int] | None = None
        self.watch = SilenceWatch(warn_after)

    def _take(self, columns: Columns) -> None:
        super()._take(columns)
        if not self.first and columns.steps[0] == 0:
            self.first = columns.row(0)
        self._look_at_waiting(columns)
        for row in _watched(columns):
            self.watch.add(row)

    def _look_at_waiting(self, columns: Columns) -> None:
        excess, total = (columns.numbers.get(key) for key in ("wait/excess_s", "time/total"))
        if excess is None or total is None:
            return
        for place in np.flatnonzero(~np.isnan(excess) & (total > 0)):
            seconds = float(excess[place])
            told = seconds / float(total[place]), seconds, int(columns.steps[place])
            self.excess = told if self.excess is None else max(self.excess, told)


def read_rows(path: Path, warn_after: int) -> RunRows:
    """Read a `metrics.jsonl`; lines that are no row (the last one may be torn) are passed over. Without the file there is none."""
    rows = RunRows(warn_after)
    try:
        with path.open("rb") as file:
            rows.go_on(file)
            file.seek(rows.tail.offset)
            rest = file.read()  # a last line without its end, which may be a whole row all the same
            if row_in(rest) is not None:
                rows.take_lines(rest + b"\n")
    except FileNotFoundError:
        pass
    return rows


def _watched(columns: Columns) -> list[Mapping[str, Any]]:
    """The rows with what a `SilenceWatch` looks at, and no more: an object for every number would take seconds."""
    given = {key: values.tolist() for key, values in columns.numbers.items() if SilenceWatch.looks_at(key)}
    rows: list[Mapping[str, Any]] = []
    for place, step in enumerate(columns.steps.tolist()):
        row: dict[str, Any] = {"step": step}
        for key, values in given.items():
            value = values[place]
            if not math.isnan(value):
                row[key] = value
            elif not key.startswith("eval/"):
                row[key] = None
        rows.append(row)
    return rows
