"""What the rows of a run come to, read in order: curves, evaluations, sums and the rows that a table shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from trainer.records import keys
from trainer.records.rows.columns import ColumnReader, Columns
from trainer.records.rows.curves import CAPACITY, Curve, Curves, Evaluations
from trainer.records.rows.tail import Row, Tail
from trainer.report.source import Line, is_of_evaluation, number

IMAGES = "images drawn"  # in a step: no key of a row, it is made of two of them
SUMMED = ("time/total", "time/evaluate", "time/checkpoint", "time/cpu", IMAGES)


class Reading:
    """The rows of a `metrics.jsonl` up to the place that was reached.

    Attributes:
        row: the last one; empty before any.
        evaluated: the last one with an evaluation.
        sums: of SUMMED, over all rows.
        failed: failed scores by reward and code.

    Args:
        capacity: points of a curve, an even number.
        dtype: in which they are kept.
    """

    def __init__(self, capacity: int = CAPACITY, dtype: type[np.floating[Any]] = np.float32) -> None:
        self.tail = Tail()
        self.curves, self.evaluations = Curves(capacity, dtype), Evaluations()
        self.sums = dict.fromkeys(SUMMED, 0.0)
        self.failed: Counter[tuple[str, str]] = Counter()
        self.row: Row = {}
        self.evaluated: Row = {}
        self._reader = ColumnReader()

    def alarms(self) -> dict[str, int]:
        """Each alarm's name, with how many evaluations raised it."""
        raised = {
            key.removeprefix("alarm/"): sum(value > 0 for value in self.evaluations.values(key))
            for key in self.evaluations
            if key.startswith("alarm/")
        }
        return {name: count for name, count in raised.items() if count}

    def go_on(self, file: BinaryIO) -> None:
        """Read what has come since."""
        for piece in self.tail.pieces(file):
            self.take_lines(piece)

    def take_lines(self, data: bytes) -> None:
        """Take in the rows of some whole lines."""
        columns = self._reader.read(data)
        if len(columns.steps):
            self._take(columns)

    def as_arrays(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """All of it, for a file: what JSON can hold, and arrays."""
        curves, arrays = self.curves.as_arrays()
        evaluations, more = self.evaluations.as_arrays()
        failed = [[reward, code, count] for (reward, code), count in self.failed.items()]
        told = {"tail": self.tail.as_dict(), "curves": curves, "evaluations": evaluations, "sums": self.sums}
        return told | {"failed": failed, "row": self.row, "evaluated": self.evaluated}, arrays | more

    @classmethod
    def from_arrays(cls, told: Mapping[str, Any], arrays: Mapping[str, Any]) -> Reading:
        """The opposite of `as_arrays`. Raises TypeError, ValueError or LookupError for anything else."""
        found = cls()
        found.tail = Tail.from_dict(told["tail"])
        found.curves = Curves.from_arrays(told["curves"], arrays["steps"], arrays["kept"])
        found.evaluations = Evaluations.from_arrays(told["evaluations"], arrays["evaluated"], arrays["values"])
        found.sums = {key: float(told["sums"][key]) for key in SUMMED}
        found.failed = Counter({(str(reward), str(code)): int(count) for reward, code, count in told["failed"]})
        found.row, found.evaluated = dict(told["row"]), dict(told["evaluated"])
        found._reader = ColumnReader(key for key in found.curves if key != IMAGES)
        return found

    def _take(self, columns: Columns) -> None:
        numbers = dict(columns.numbers)
        if (rate := numbers.get("images_per_s")) is not None and (time := numbers.get("time/total")) is not None:
            numbers[IMAGES] = rate * time
        trained = columns.steps > 0  # row 0 is the evaluation before training, and no step's
        self.curves.add(columns.steps[trained], {key: values[trained] for key, values in numbers.items()})
        for key in SUMMED:
            if key in numbers:
                self.sums[key] += float(np.nansum(numbers[key]))
        for key, values in numbers.items():
            if key.startswith("failed/") and (told := keys.failed_of(key)):
                self.failed[told] += int(np.nansum(values))
        rewarded = columns.places_of("eval/")
        for place in sorted({*rewarded, *columns.places_of("heldout/")}):
            row = columns.row(place)
            if place in rewarded:  # losses on held-out rows are no rewards: such a row has nothing for the table
                self.evaluated = row
            found = {key: value for key, value in row.items() if is_of_evaluation(key)}
            # Losses on held-out rows are of the row's own step; what rewards say may come from the background, later.
            losses = {key: value for key, value in found.items() if key.startswith("heldout/")}
            if losses and evaluated_step(row) != row["step"]:
                self.evaluations.add(row["step"], losses)
                found = {key: value for key, value in found.items() if key not in losses}
            self.evaluations.add(evaluated_step(row), found)
        self.row = columns.row(len(columns.steps) - 1)


def evaluated_step(row: Row) -> int:
    """The step whose weights the evaluation in this row was of."""
    step = number(row.get("eval/step"))
    return int(step) if math.isfinite(step) else int(row["step"])


def line_of(curve: Curve | None) -> Line:
    """A curve as charts take it: with the least and the largest of what a point stands for, so that no spike is lost."""
    if curve is None:
        return Line([], [])
    low, high = (curve.low.tolist(), curve.high.tolist()) if curve.joined else ([], [])
    return Line(curve.steps.tolist(), curve.mean.tolist(), low, high)
