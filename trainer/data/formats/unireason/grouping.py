"""UniReason's table of groups: which data sets are drawn from together, how often, and how their images are scaled."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.config.base import nearest
from trainer.config.packed import PackGroupConfig
from trainer.config.paths import nearest_path
from trainer.data.formats.unireason.registry import Registry, read_registry, read_yaml_table
from trainer.data.prompts.checks import DataError, shown

_FIELDS = (
    "dataset_names",
    "num_used_data",
    "image_transform_args",
    "vit_image_transform_args",
    "weight",
    "is_mandatory",
    "shuffle_lines",
    "shuffle_seed",
    "resume_data_status",
    "frame_sampler_args",
)
# Fields without an effect here, and why.
_IDLE = {
    "shuffle_lines": "rows are always dealt in an order that the run's seed decides",
    "shuffle_seed": "rows are dealt in an order that the run's seed decides",
    "resume_data_status": "a run that goes on goes on with its rows, too",
    "frame_sampler_args": "no rows with videos are read from this table",
}
# Their names of our fields, for messages.
_THEIRS = {
    "mandatory": "is_mandatory",
    **{
        f"{ours}.{field}": f"{theirs}.{name}"
        for ours, theirs in (("image_size", "image_transform_args"), ("seen_size", "vit_image_transform_args"))
        for field, name in (("stride", "image_stride"), ("longest", "max_image_size"), ("shortest", "min_image_size"))
    },
}
_SCALING = {"image_stride": "stride", "max_image_size": "longest", "min_image_size": "shortest"}


def read_grouping(path: Path, registry: Path) -> tuple[tuple[PackGroupConfig, ...], tuple[str, ...]]:
    """The groups of the table, in its order, and a sentence for every field that does not act here.

    Args:
        path: the YAML file of groups.
        registry: dataset_info.py, or a YAML file of its two tables.

    Raises:
        DataError: a file, a group, a data set or a field that is not known, or a value that cannot be used.
    """
    if not os.path.isfile(path):
        raise DataError(f"no file at {path.absolute()}; {nearest_path(path)}")
    table = read_yaml_table(path)
    known = read_registry(registry)
    if not table:
        raise DataError(f"{path}: has no group")
    groups = tuple(_group(f"{path}: {name}", str(name), fields, known) for name, fields in table.items())
    idle = {field: [str(name) for name, fields in table.items() if field in fields] for field in _IDLE}
    return groups, tuple(
        f"{path}: {field} of {', '.join(names)} does nothing: {_IDLE[field]}" for field, names in idle.items() if names
    )


def _group(where: str, name: str, fields: Any, known: Registry) -> PackGroupConfig:
    if not isinstance(fields, Mapping):
        raise DataError(f"{where}: {shown(fields)} is no table of fields; they are {', '.join(_FIELDS)}")
    for field in fields:
        if field not in _FIELDS:
            raise DataError(f"{where}: {field}: not known; {nearest(str(field), _FIELDS)}")
    weight = fields.get("weight", 0.0)
    if weight == 0 and not isinstance(weight, bool):
        raise DataError(
            f"{where}: weight: {'missing, which is 0 there' if 'weight' not in fields else '0'}: no row of it would be drawn but "
            "where it is mandatory; give one above 0, or leave the group out"
        )
    tree = {
        "name": name,
        "sets": tuple(_sets(where, name, fields, known)),
        "weight": weight,
        "mandatory": fields.get("is_mandatory", False),
        "image_size": _scaling(f"{where}: image_transform_args", fields.get("image_transform_args")),
        "seen_size": _scaling(f"{where}: vit_image_transform_args", fields.get("vit_image_transform_args")),
    }
    try:
        return PackGroupConfig.model_validate(tree, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        said = first["msg"].replace("Input should", "must")
        raise DataError(f"{where}: {_THEIRS.get(field, field)}: {said} (given: {shown(first['input'])})") from error


def _sets(where: str, name: str, fields: Mapping[str, Any], known: Registry) -> list[dict[str, Any]]:
    names = fields.get("dataset_names")
    if not isinstance(names, list) or not names:
        raise DataError(f"{where}: dataset_names: {shown(names)} is no list of data sets")
    used = fields.get("num_used_data")
    counts = used if isinstance(used, list) else [used] * len(names)
    if len(counts) != len(names):
        raise DataError(f"{where}: num_used_data: {len(counts)} numbers for {len(names)} data sets; give one for each")
    kind = known.kind(name)
    sets = []
    for data_set, count in zip(names, counts, strict=True):
        place = known.place(name, str(data_set))
        sets.append(
            {
                "name": str(data_set),
                "path": place.rows,
                "format": kind,
                "image_folder": place.images or ".",  # what its images' paths count from where no prefix is given
                "max_rows": _count(f"{where}: num_used_data", count),
            }
        )
    return sets


def _count(where: str, value: Any) -> int | None:
    """How many rows are used; None for all, which is written None, 0 or a number below."""
    if value is None or value in ("None", "null"):
        return None
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"[-+]?\d{1,18}", text, re.ASCII):
        raise DataError(
            f"{where}: {shown(value)} is neither a whole number of rows nor None, for all; write one of them"
        )
    return int(text) if int(text) > 0 else None


def _scaling(where: str, fields: Any) -> dict[str, Any] | None:
    if fields is None:
        return None
    if not isinstance(fields, Mapping):
        raise DataError(f"{where}: {shown(fields)} is no table of {', '.join(_SCALING)}")
    for field in fields:
        if field not in _SCALING:
            raise DataError(f"{where}: {field}: not known; {nearest(str(field), _SCALING)}")
    if missing := [field for field in _SCALING if field not in fields]:
        raise DataError(f"{where}: {missing[0]}: missing; give a number of pixels")
    return {ours: fields[theirs] for theirs, ours in _SCALING.items()}
