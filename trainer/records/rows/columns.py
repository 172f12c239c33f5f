"""Rows as columns of numbers: what curves are made of.

The trainer writes flat rows of numbers, so that a reader of columns in C can take them in, ten times as fast as one that makes
an object of each. A piece in which a row is anything else is read row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.records.rows.tail import Row, parse, row_in

if TYPE_CHECKING:
    from pyarrow import Table

MAX_KEYS = 2000  # of a run; more are no metrics, and are left out
_EVALUATION = b'"eval/'

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """Rows in order.

    Attributes:
        steps: shape [rows].
        numbers: per key its values, shape [rows]; NaN where a row has none.
        row: the whole row at a place.
    """

    steps: Steps
    numbers: Mapping[str, Floats]
    row: Callable[[int], Row]

    def places_of(self, prefix: str) -> list[int]:
        """The places of the rows that have a number under a key that begins so."""
        found = np.zeros(len(self.steps), bool)
        for key, values in self.numbers.items():
            if key.startswith(prefix):
                found |= ~np.isnan(values)
        return [int(place) for place in np.flatnonzero(found)]


class ColumnReader:
    """Reads pieces of a file. What keys there are is learnt from the first rows, and from each piece that has others."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys = dict.fromkeys(keys)

    def read(self, data: bytes) -> Columns:
        """The rows of some whole lines."""
        self._learn(data)
        table = self._table(data)
        if table is None:
            return self._one_by_one(data)
        steps = table.column("step").to_numpy()
        kept = np.flatnonzero(steps >= 0)  # without a step (NaN), or with a negative one, a line is no row
        numbers = {key: values[kept] for key in self._keys if (values := _numbers(table, key)) is not None}
        breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))

        def row(place: int) -> Row:
            line = int(kept[place])
            found = row_in(data[int(breaks[line - 1]) + 1 if line else 0 : int(breaks[line])])
            assert found is not None, "it was read before"
            return found

        return Columns(steps[kept].astype(np.int64), numbers, row)

    def _learn(self, data: bytes) -> None:
        """Most keys are in the last row; those of evaluations are in few rows, and the first row may be one before training."""
        at = data.rfind(_EVALUATION)
        for place in (0, len(data) - 1, at if at >= 0 else 0):
            start = data.rfind(b"\n", 0, place) + 1
            self._add(row_in(data[start : data.find(b"\n", start)]) or {})

    def _add(self, row: Mapping[str, Any]) -> None:
        for key, value in row.items():
            if len(self._keys) < MAX_KEYS and key != "step" and _is_number_or_none(value):
                self._keys.setdefault(key)

    def _table(self, data: bytes) -> Table | None:
        """All columns by a reader in C; None where a row has other keys, or something that is no number."""
        if not self._keys or not _is_flat(data):
            return None
        import pyarrow as pa
        from pyarrow import json

        schema = pa.schema([("step", pa.int64()), *((key, pa.float64()) for key in self._keys)])
        try:
            return json.read_json(
                pa.BufferReader(data),
                # In one block and this thread: a piece is small, and threads have work of their own.
                read_options=json.ReadOptions(use_threads=False, block_size=len(data) + 1),
                parse_options=json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
            )
        except pa.ArrowInvalid:
            return None

    def _one_by_one(self, data: bytes) -> Columns:
        rows = parse(data)
        for row in rows:
            self._add(row)
        numbers = {key: np.array([_number(row.get(key)) for row in rows], np.float64) for key in self._keys}
        steps = np.array([row["step"] for row in rows], np.int64)
        return Columns(
            steps, {key: values for key, values in numbers.items() if not np.isnan(values).all()}, rows.__getitem__
        )


def _numbers(table: Table, key: str) -> Floats | None:
    """A column; None where it is empty. Infinities and what a curve cannot hold (float32) are no numbers either."""
    column = table.column(key)
    if column.null_count == len(column):
        return None
    values: Floats = column.to_numpy().copy()
    values[~(np.abs(values) < 1e38)] = np.nan
    return values


def _is_flat(data: bytes) -> bool:
    """Whether every line is one object without another in it: brackets that were nested deeply would exhaust the reader."""
    lines = data.count(b"\n")
    starts = data.startswith(b"{") + data.count(b"\n{")
    return lines == starts == data.count(b"{") == data.count(b"}") and b"[" not in data


def _is_number_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _number(value: Any) -> float:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38
    return float(value) if whole else np.nan
