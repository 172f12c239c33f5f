"""Prompts in tables: CSV, with UniGenBench's columns understood, and Parquet.

Published tables have damaged rows. A CSV row that cannot be used is passed over and named; the UniGenBench service passes
over the same rows, so both see the same prompts.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.prompts.checks import DataError, check_text, shown
from trainer.prompts.lines import Rows, read_text, split_row

_PROMPT_COLUMNS = ("prompt", "prompt_en", "prompt_zh", "caption")
_DIMS_COLUMNS = ("sub_dims", "sub_dims_en", "sub_dims_zh")
_DIMS_KEYS = (("Testpoints", "Testpoint Description"), ("考点", "考点对应描述"))
_MORE = "\0more"  # a column name no file has


def read_csv(path: Path, dataset: str, problems: list[str]) -> Rows:
    """Rows by the line they begin on. `index` makes the id, `sub_dims` the metadata `testpoints` and `descriptions`.

    Every other column is metadata. What is wrong with a row is added to `problems`, a sentence each.

    Raises:
        DataError: not UTF-8, not CSV, no column of prompts or several.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restkey=_MORE)
    try:
        column = _prompt_column(path, reader.fieldnames or [])
        seen: dict[str, int] = {}
        for line, row in _numbered(reader):
            try:
                yield line, _read_row(row, column, dataset, line, seen)
            except DataError as error:
                problems.append(f"{path}:{line}: {error}")
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({error}); is a quote missing?") from error


def _numbered(reader: csv.DictReader[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    line = reader.line_num + 1
    for row in reader:
        yield line, row
        line = reader.line_num + 1


def _prompt_column(path: Path, header: Sequence[str]) -> str:
    found = [name for name in _PROMPT_COLUMNS if name in header]
    if len(found) != 1:
        columns = ", ".join(header) or "(none)"
        raise DataError(f"{path}: the columns are {columns}; exactly one must be {' or '.join(_PROMPT_COLUMNS)}")
    return found[0]


def _read_row(row: Mapping[str, Any], column: str, dataset: str, line: int, seen: dict[str, int]) -> Mapping[str, Any]:
    if _MORE in row:
        raise DataError("more fields than the header has; is a quote missing?")
    if not (row[column] or "").strip():
        raise DataError(f"{column}: empty")
    text = check_text(column, row[column])
    metadata = {key: value for key, value in row.items() if key not in (column, "index", *_DIMS_COLUMNS)}
    for dims in (row[name] for name in _DIMS_COLUMNS if name in row):
        metadata |= _read_dims(dims)
    index = (row.get("index") or "").strip()
    if not index:
        return {"prompt": text, "metadata": metadata}
    if index in seen:
        raise DataError(f"index: {index} is already on line {seen[index]}, whose row is kept")
    seen[index] = line
    return {"id": f"{dataset}-{index}", "prompt": text, "metadata": metadata}


def _read_dims(text: str | None) -> dict[str, Any]:
    """The test points of UniGenBench and their descriptions, under the names that its reward service reads."""
    try:
        tree = json.loads(text or "")
    except (ValueError, RecursionError) as error:
        raise DataError(f"sub_dims: not JSON ({error})") from error
    for names_key, descriptions_key in _DIMS_KEYS if isinstance(tree, dict) else ():
        if names_key in tree:
            names, descriptions = tree[names_key], tree.get(descriptions_key)
            for key, values in ((names_key, names), (descriptions_key, descriptions)):
                if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
                    raise DataError(f"sub_dims.{key}: {shown(values)} is not a list of texts")
            if len(names) != len(descriptions):
                raise DataError(f"sub_dims: {len(descriptions)} descriptions for {len(names)} test points")
            return {"testpoints": names, "descriptions": descriptions}
    raise DataError(f"sub_dims: {shown(tree)} has no list of test points")


def read_parquet(path: Path) -> Rows:
    """Rows by number, from 1. Raises DataError: pyarrow is not installed, no Parquet file, no column of prompts."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow, which is not installed; install it, or save the prompts as .jsonl"
        ) from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except FileNotFoundError as error:
        raise DataError(f"no prompt file at {path.absolute()}; correct `path`") from error
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise DataError(f"{path}: not Parquet ({error})") from error
    return ((number, split_row(row)) for number, row in enumerate(rows, start=1))
