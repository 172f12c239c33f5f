"""UniReason's registry: of what kind each group's rows are, and where its data sets lie.

It is dataset_info.py, of which two dictionaries are read and nothing is run, or a YAML file with the same two tables:

    DATASET_REGISTRY: {my_images: t2i}
    DATASET_INFO: {my_images: {my_images: {jsonl_path: data/rows.json, image_prefix_dir: data}}}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from trainer.config.base import did_you_mean, nearest
from trainer.config.file import parse_yaml
from trainer.config.packed import PackFormat
from trainer.config.paths import nearest_path
from trainer.data.formats.tables import Code, Named, python_tables
from trainer.data.prompts.checks import DataError, shown

# The classes of its data sets, by what their rows are.
CLASSES = {
    "T2ISFTIterableDataset": "t2i",
    "TI2ISFTIterableDataset": "edit",
    "ThinkT2IIterableDataset": "t2i_reason",
    "ThinkEditIterableDataset": "edit_reason",
    "ThinkRefineT2IIterableDataset": "t2i_refine",
    "ThinkRefineEditIterableDataset": "edit_refine",
    "SftJSONLIterableDataset": "conversations",
}
_KINDS: tuple[str, ...] = get_args(PackFormat)
_TABLES = ("DATASET_REGISTRY", "DATASET_INFO")
_FIELDS = (
    "jsonl_path",
    "image_prefix_dir",
    "data_dir",
    "parquet_info_path",
    "json_dir",
    "num_files",
    "num_total_samples",
)
_PLACEHOLDER = "your_data_path"


@dataclass(frozen=True)
class Place:
    """Where a data set lies: its rows, and what its images' paths count from (empty: the working directory)."""

    rows: str
    images: str


@dataclass(frozen=True)
class Registry:
    """Both tables.

    Attributes:
        path: the file, for messages.
        kinds: what a group's rows are, by the group's name.
        places: by the group's name and the data set's.
    """

    path: Path
    kinds: Mapping[str, Any]
    places: Mapping[str, Any]

    def kind(self, group: str) -> str:
        """What the group's rows are. Raises DataError: it is not in the table, or of a class that is not known."""
        value = self._of(_TABLES[0], self.kinds, group)
        self._check_constant(value, f"{_TABLES[0]}: {group}")
        name = value.name if isinstance(value, Named) else value
        kind = CLASSES.get(name, name) if isinstance(name, str) else None
        if kind not in _KINDS:
            raise DataError(
                f"{self.path}: {_TABLES[0]}: {group}: {shown(name)} is not read here; {nearest(str(name), (*CLASSES, *_KINDS))}"
            )
        return kind

    def place(self, group: str, data_set: str) -> Place:
        """Where a data set of the group lies. Raises DataError: it is not in the table, or without a path."""
        sets = self._of(_TABLES[1], self.places, group)
        where = f"{self.path}: {_TABLES[1]}: {group}"
        self._check_constant(sets, f"{_TABLES[1]}: {group}")
        if not isinstance(sets, Mapping):
            raise DataError(f"{where}: {shown(sets)} is no table of data sets")
        if data_set not in sets:
            raise DataError(f"{where}: no data set {data_set}; {nearest(data_set, map(str, sets))}")
        about, where = sets[data_set], f"{where}: {data_set}"
        self._check_constant(about, f"{_TABLES[1]}: {group}: {data_set}")
        if not isinstance(about, Mapping) or not about.get("jsonl_path"):
            raise DataError(f"{where}: no jsonl_path, the file with its rows; give one (rows in Parquet are not read)")
        for name in about:
            if name not in _FIELDS and (near := did_you_mean(str(name), _FIELDS[:2])):
                raise DataError(f"{where}: {name}: not known{near}")
        images = about.get("image_prefix_dir") or ""
        for field, value in (("jsonl_path", about["jsonl_path"]), ("image_prefix_dir", images)):
            self._check_constant(value, f"{_TABLES[1]}: {group}: {data_set}: {field}")
            if not isinstance(value, str):
                raise DataError(f"{where}: {field}: {shown(value)} is no path; give one as a text")
            if _PLACEHOLDER in value:
                raise DataError(
                    f"{where}: {field}: {value} still has {_PLACEHOLDER}, which stands for the folder with your data; replace it"
                )
        return Place(about["jsonl_path"], images)

    def _of(self, table: str, rows: Mapping[str, Any], group: str) -> Any:
        if group not in rows:
            raise DataError(f"{self.path}: {table}: no group {group}; {nearest(group, map(str, rows))}")
        return rows[group]

    def _check_constant(self, value: Any, what: str) -> None:
        if isinstance(value, Code):
            raise DataError(value.sentence(self.path, what))


def read_registry(path: Path) -> Registry:
    """Both tables of a file. Raises DataError: it cannot be read, or one of them is not there."""
    tables = python_tables(path) if path.suffix == ".py" else _yaml_tables(path)
    for name in _TABLES:
        value = tables.get(name)
        if isinstance(value, Code):
            raise DataError(value.sentence(path, name))
        if not isinstance(value, Mapping):
            there = [str(each) for each, table in tables.items() if isinstance(table, Mapping)]
            raise DataError(
                f"{path}: no table {name}, a dictionary of constants; {nearest(name, there)}. A YAML file with "
                f"{' and '.join(_TABLES)} does, too"
            )
    return Registry(path, tables[_TABLES[0]], tables[_TABLES[1]])


def _yaml_tables(path: Path) -> Mapping[str, Any]:
    if not os.path.isfile(path):
        raise DataError(f"no file at {path.absolute()}; {nearest_path(path)}")
    return read_yaml_table(path)


def read_yaml_table(path: Path) -> Mapping[str, Any]:
    """The mapping that a YAML file holds. Raises DataError: it cannot be read, has a name twice, or holds something else."""
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # a date that is none is a ValueError
        raise DataError(f"{path}: cannot be read as YAML ({error}); correct it") from error
    if not isinstance(tree, Mapping):
        raise DataError(f"{path}: {shown(tree)} is no table of names; write a name, a colon and what it stands for")
    return tree
