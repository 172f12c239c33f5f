"""Prompts in tables: CSV, with UniGenBench's columns understood, and Parquet.

Published tables have damaged rows. A CSV row that cannot be used is passed over and named; the UniGenBench service passes
over the same rows, so both see the same prompts.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config.paths import nearest_path
from trainer.data.prompts.checks import DataError, check_text, shown
from trainer.data.prompts.fields import TEXTS, split_row, text_column
from trainer.data.prompts.lines import Rows, check_utf8, read_text, split_at

_DELIMITERS = (",", "\t", ";", "|")
_DIMS_COLUMNS = ("sub_dims", "sub_dims_en", "sub_dims_zh")
_DIMS_KEYS = (("Testpoints", "Testpoint Description"), ("考点", "考点对应描述"))
_MORE = "\0more"  # a column name no file has


def find_delimiter(path: Path, prompt_column: str | None) -> str:
    """The character between the columns: the first that makes one of the header's names known as that of prompts.

    A comma where none does. Raises DataError: not UTF-8, or two columns could be the prompts.
    """
    header = next((line for line in re.split("[\r\n]", read_text(path)) if line.strip()), "")
    for delimiter in _DELIMITERS:
        try:
            names = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            continue  # longer than the module reads; whoever reads the table says so
        if prompt_column in names if prompt_column is not None else _column(path, names) is not None:
            return delimiter
    return ","


def header_between(path: Path, delimiters: str) -> str | None:
    """The first of these characters by which a file of text lines is a table after all; None where none is.

    It is one when a column of the first line is called `prompt` or the like and every line has as many columns as the
    first. A prompt that begins "prompt, " alone does not make one.
    """
    check_utf8(path)
    return next((delimiter for delimiter in delimiters if _has_columns(path, delimiter)), None)


def _has_columns(path: Path, delimiter: str) -> bool:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = (row for row in csv.reader(file, delimiter=delimiter, strict=True) if row)
        try:
            header = next(rows, [])
            if len(header) < 2 or not any(name.strip().lower() in TEXTS[0] for name in header):
                return False
            count = 0
            for row in rows:
                if len(row) != len(header):
                    return False
                count += 1
        except csv.Error:
            return False  # not a table with this delimiter
    return count > 0


def _column(path: Path, names: Sequence[str]) -> str | None:
    try:
        return text_column(names)
    except DataError as error:
        raise DataError(f"{path}: the columns are {', '.join(names)}: {error}") from error


def read_csv(
    path: Path, dataset: str, problems: list[str], *, delimiter: str = ",", prompt_column: str | None = None
) -> Rows:
    """Rows by the line they begin on. `index` makes the id, `sub_dims` the metadata `testpoints` and `descriptions`.

    Images of an edit and a negative prompt are known by their columns' names; every other column is metadata. What is
    wrong with a row is added to `problems`, a sentence each.

    Raises:
        DataError: not UTF-8, not CSV, no column of prompts or several.
    """
    text = read_text(path)
    try:
        header, rows = _tabbed(text) if delimiter == "\t" else _quoted(text, delimiter)
        column = _prompt_column(path, header, delimiter, prompt_column)
        seen: dict[str, int] = {}
        for line, row in rows:
            try:
                yield line, _read_row(row, column, dataset, line, seen)
            except DataError as error:
                problems.append(f"{path}:{line}: {error}")
    except csv.Error as error:
        raise DataError(f"{path}: not CSV ({error}); is a quote missing?") from error


def _quoted(text: str, delimiter: str) -> tuple[Sequence[str], Iterator[tuple[int, dict[str, Any]]]]:
    """Header and numbered rows of a table whose fields may be in quotes."""
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey=_MORE, delimiter=delimiter)
    header = reader.fieldnames or []
    return header, _numbered(reader, text, delimiter)


def _numbered(reader: csv.DictReader[str], text: str, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Raises csv.Error when a quote is not closed before the file ends: the last field would be all that follows it."""
    start = line = reader.line_num + 1
    for row in reader:
        start = line
        yield line, row
        line = reader.line_num + 1
    if _is_open(text, start, delimiter):
        raise csv.Error(f"a field of the row that begins on line {start} opens a quote that nothing closes")


def _is_open(text: str, start: int, delimiter: str) -> bool:
    """Whether what begins on line `start` ends inside a quote."""
    rest = io.StringIO(text, newline="")
    for _ in range(start - 1):
        rest.readline()
    try:
        for _ in csv.reader(rest, delimiter=delimiter, strict=True):
            pass
    except csv.Error as error:
        return "unexpected end of data" in str(error)
    return False


def _tabbed(text: str) -> tuple[Sequence[str], Iterator[tuple[int, dict[str, Any]]]]:
    """Header and numbered rows of a table with tabs, where a quote is mostly but a character of the text.

    Published ones are not written as CSV: a prompt may begin with a quote that nothing closes. Only where lines do not
    have the header's fields are quotes read as CSV has them.
    """
    lines = [(n, line.rstrip("\r").split("\t")) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    header = [_unquoted(name) for name in lines[0][1]] if lines else []
    if any(len(fields) != len(header) for _, fields in lines):
        return _quoted(text, "\t")
    return header, ((n, dict(zip(header, map(_unquoted, fields), strict=True))) for n, fields in lines[1:])


def _unquoted(field: str) -> str:
    """A field without the quotes that CSV puts around it."""
    inner = field[1:-1]
    whole = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else field


def _prompt_column(path: Path, header: Sequence[str], delimiter: str, asked: str | None) -> str:
    columns = ", ".join(header) or "(none)"
    if asked is not None:
        if asked not in header:
            raise DataError(f"{path}: prompt_column = {asked}, but the columns are {columns}")
        return asked
    found = _column(path, header)
    if found is None:
        apart = {",": "commas", "\t": "tabs"}.get(delimiter, delimiter)
        raise DataError(
            f"{path}: the columns are {columns}, with {apart} between them; exactly one must be {' or '.join(TEXTS[0])}: name "
            "it by `prompt_column`, and what stands between columns by `delimiter`"
        )
    return found


def _read_row(row: Mapping[str, Any], column: str, dataset: str, line: int, seen: dict[str, int]) -> Mapping[str, Any]:
    if _MORE in row:
        raise DataError("more fields than the header has; is a quote missing?")
    if not (row[column] or "").strip():
        raise DataError(f"{column}: empty")
    text = check_text(column, row[column])
    parts = split_row({key: value for key, value in row.items() if key not in ("index", *_DIMS_COLUMNS)}, column)
    for dims in (row[name] for name in _DIMS_COLUMNS if name in row):
        parts["metadata"] |= _read_dims(dims)
    index = (row.get("index") or "").strip()
    if not index:
        return {**parts, "prompt": text}
    if index in seen:
        raise DataError(f"index: {index} is already on line {seen[index]}, whose row is kept")
    seen[index] = line
    return {**parts, "id": f"{dataset}-{index}", "prompt": text}


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


def read_parquet(path: Path, prompt_column: str | None = None) -> Rows:
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
        raise DataError(f"no prompt file at {path.absolute()}; {nearest_path(path)}") from error
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise DataError(f"{path}: not Parquet ({error})") from error
    return ((n, split_at(f"{path}:{n}", row, prompt_column)) for n, row in enumerate(rows, start=1))
