"""Rows as CSV or Parquet, of any length: twice through the rows, once for the columns and once to write them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import IO, Any

from trainer.records.rows import tail
from trainer.runs.folder import Folder
from trainer.runs.table import RunRow

KINDS = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
_PART = 2000  # rows in memory at once

Rows = Callable[[], Iterator[Mapping[str, Any]]]


def metrics(folder: Folder) -> Iterator[Mapping[str, Any]]:
    """The rows of a run."""
    with folder.open("metrics.jsonl") as file:
        for rows in tail.rows(file):
            yield from rows


def scores(folder: Folder, steps: Iterable[int]) -> Iterator[Mapping[str, Any]]:
    """The held-out scores by prompt of some evaluations, a row for each sample."""
    for step in steps:
        for line in folder.text("eval", f"step_{step:06d}", "scores.jsonl").splitlines():
            try:
                told = json.loads(line)
                named = {key: told[key] for key in ("set", "index", "duplicate", "prompt_id")}
                found = {f"score/{name}": score for name, score in told["scores"].items()}
                failed = {f"error/{name}": code for name, code in told["errors"].items()}
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                continue
            yield {"step": step, **named, **found, **failed}


def table(rows: Iterable[RunRow]) -> Iterator[Mapping[str, Any]]:
    """The table of runs, a column for each number."""
    for row in rows:
        told = asdict(row)
        held = told.pop("held")
        ends = {f"eval/{name}/{end}": value for name, each in held.items() for end, value in each.items()}
        yield told | {"alarms": " ".join(row.alarms)} | ends


def write(rows: Rows, kind: str, out: IO[bytes]) -> None:
    """Write rows. A column holds numbers where all its values are, else texts; what a row lacks is empty.

    Raises:
        OSError: the rows cannot be read.
    """
    columns: dict[str, bool] = {}
    for row in rows():
        for key, value in row.items():
            columns[key] = columns.get(key, True) and (value is None or _is_number(value))
    if kind == "csv":
        _write_csv(rows(), columns, out)
    else:
        _write_parquet(rows(), columns, out)


def _write_csv(rows: Iterator[Mapping[str, Any]], columns: Mapping[str, bool], out: IO[bytes]) -> None:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(key)) for key in columns])
    text.flush()
    text.detach()  # or it would close `out`


def _write_parquet(rows: Iterator[Mapping[str, Any]], columns: Mapping[str, bool], out: IO[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(key, pa.float64() if numbers else pa.string()) for key, numbers in columns.items()])
    with pq.ParquetWriter(out, schema) as writer:
        part: list[Mapping[str, Any]] = []
        for row in rows:
            part.append(row)
            if len(part) == _PART:
                writer.write_table(_part(part, columns, schema))
                part = []
        if part:
            writer.write_table(_part(part, columns, schema))


def _part(rows: list[Mapping[str, Any]], columns: Mapping[str, bool], schema: Any) -> Any:
    import pyarrow as pa

    data = {
        key: [None if (value := row.get(key)) is None else float(value) if numbers else str(value) for row in rows]
        for key, numbers in columns.items()
    }
    return pa.table(data, schema=schema)


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
