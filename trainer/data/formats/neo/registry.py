"""NEO's registry of data sets, and the list of those that a run uses.

The registry is a Python file that assigns dictionaries like {"annotation_path": "rows.jsonl", "data_path": "images"} to names, or
collects them in one by name; nothing in it is run. Or it is a YAML file: name: {annotation_path: ..., data_path: ...}.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.base import did_you_mean, nearest
from trainer.config.paths import nearest_path
from trainer.data.formats.tables import Code, python_tables
from trainer.data.formats.unireason.registry import read_yaml_table
from trainer.data.prompts.checks import DataError, shown

ROWS, IMAGES = "annotation_path", "data_path"


@dataclass(frozen=True)
class Used:
    """A data set of a run.

    Attributes:
        rows: its file.
        images: what its images' paths count from; empty for the working directory.
        share: of its rows, in [0, 1].
        asked: the percentage that was asked for; above 100 takes all rows.
    """

    name: str
    rows: str
    images: str
    share: float
    asked: float


def read_neo_registry(path: Path) -> dict[str, Mapping[str, Any]]:
    """The data sets of a registry, by name. Raises DataError: it cannot be read, or has none."""
    found, code = _read(path)
    if not found:
        raise DataError(f"{path}: no data set; each is a dictionary with {ROWS} and {IMAGES}{code}")
    return found


def _read(path: Path) -> tuple[dict[str, Mapping[str, Any]], str]:
    """The data sets by name, and the end of a sentence about one that is not among them: what the file makes by code."""
    if path.suffix != ".py":
        if not os.path.isfile(path):
            raise DataError(f"no file at {path.absolute()}; {nearest_path(path)}")
        return {str(name): place for name, place in read_yaml_table(path).items() if _is_place(place)}, ""
    tables = python_tables(path)
    found = {name: value for name, value in tables.items() if _is_place(value)}
    code = [f"{name} (line {value.line})" for name, value in tables.items() if isinstance(value, Code)]
    for table, value in tables.items():  # a dictionary of them, whose names are those that a run gives
        if isinstance(value, Mapping) and not _is_place(value):
            found |= {str(name): place for name, place in value.items() if _is_place(place)}
            code += [f"{table}[{name!r}] (line {each.line})" for name, each in value.items() if isinstance(each, Code)]
    if not code:
        return found, ""
    return (
        found,
        f"; {', '.join(code[:5])} is made or changed by code, which is not run: write constants, or the same as YAML",
    )


def used_sets(path: Path, use: str) -> list[Used]:
    """The data sets that `use` names, in its order: `one,another%25` takes all of the first and a quarter of the other.

    The percentage may be a fraction (`%12.5`). Which rows it takes is drawn for each data set by itself.

    Raises:
        DataError: an unknown data set, one that is named twice, a percentage below 0 or no number, or a place without a path.
    """
    known, (_, code) = read_neo_registry(path), _read(path)
    found: list[Used] = []
    for entry in (each.strip() for each in use.split(",")):
        name, sign, percent = entry.partition("%")
        where = f"dataset_use = {use}"
        if name not in known:
            raise DataError(f"{where}: no data set {name!r} in {path}; {nearest(name, known)}{code}")
        if any(name == each.name for each in found):
            raise DataError(f"{where}: {name} stands there twice; name it once")
        asked = _percent(f"{where}: {entry}", percent) if sign else 100.0
        place = known[name]
        for field in place:
            if field not in (ROWS, IMAGES) and (near := did_you_mean(str(field), (ROWS, IMAGES))):
                raise DataError(f"{path}: {name}: {field}: not known{near}")
        for field in (ROWS, IMAGES):
            if isinstance(value := place.get(field) or "", Code):
                raise DataError(value.sentence(path, f"{name}: {field}"))
            if not isinstance(value, str):
                raise DataError(f"{path}: {name}: {field}: {shown(value)} is no path; give one as a text")
        if not place[ROWS]:
            raise DataError(f"{path}: {name}: {ROWS} is empty; give the file with its rows")
        found.append(Used(name, place[ROWS], place.get(IMAGES) or "", min(asked / 100, 1.0), asked))
    return found


def _is_place(value: Any) -> bool:
    return isinstance(value, Mapping) and ROWS in value


def _percent(where: str, text: str) -> float:
    try:
        percent = float(text if text.isascii() and "_" not in text else "no number")
    except ValueError as error:
        raise DataError(
            f"{where}: {text!r} is no number; write {where.rpartition(' ')[2].partition('%')[0]}%25"
        ) from error
    if not 0 <= percent < float("inf"):
        raise DataError(f"{where}: {text} is no percentage; give one from 0 to 100")
    return percent
