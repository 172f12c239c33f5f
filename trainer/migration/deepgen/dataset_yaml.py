"""DeepGen-RL's training file: prompt files, how often each is drawn from, and its mixture of rewards."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.config.base import ConfigError, say
from trainer.config.file import read_yaml
from trainer.migration.deepgen.names import fitting_name, renamed

SAMPLING_MODES = ("sample_proportional", "weight_only")
_FIELDS = ("name", "path", "sample_weight", "rewards")


def read_dataset_yaml(path: str | Path, *, tell: bool = True) -> dict[str, Any]:
    """Read DeepGen-RL's data-set YAML as it is, as the fields `sampling_mode` and `train` of our `data` section.

    A set's share of the draws is its `sample_weight` times its number of prompts (`sample_proportional`, the default),
    or its `sample_weight` alone (`weight_only`). Paths count from the YAML file. A name that cannot be one
    of ours is changed.

    Args:
        tell: say which names were changed.

    Raises:
        ConfigError: what DeepGen-RL would have passed over or crashed on later: rewards that are no list of mappings, a
            reward that comes twice, an unknown key, a weight that is no number above 0. The message names entry and field.
    """
    path = Path(path)
    raw = read_yaml(path)
    for key in raw:
        if key not in ("sampling_mode", "datasets"):
            raise ConfigError(f"{path}: {key}: unknown key; the keys are sampling_mode and datasets")
    mode = raw.get("sampling_mode", SAMPLING_MODES[0])
    if mode not in SAMPLING_MODES:
        raise ConfigError(f"{path}: sampling_mode: {mode!r} is neither of {' and '.join(SAMPLING_MODES)}")
    entries = raw.get("datasets")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: datasets: must be a list of entries with path and rewards, at least one")
    train = [_read_entry(f"{path}: datasets.{i}", entry, path.parent) for i, entry in enumerate(entries)]
    return {"sampling_mode": mode, "train": tuple(_with_fitting_names(path, train, tell))}


def prompt_format(path: str) -> dict[str, str]:
    """The `format` of a prompt file of theirs, where it does not go without saying: no row of a .jsonl is ours."""
    return {"format": "rows"} if path.lower().endswith(".jsonl") else {}


def _with_fitting_names(path: Path, train: list[dict[str, Any]], tell: bool) -> Iterator[dict[str, Any]]:
    taken = {each.get("name") or Path(each["path"]).stem for each in train}
    for i, each in enumerate(train):
        fit = fitting_name(each["name"], taken) if "name" in each else None
        if fit is not None and fit != each["name"]:
            taken.add(fit)
            if tell:
                say(renamed(f"{path}: datasets.{i}.name", each["name"], fit))
        yield each if fit is None else {**each, "name": fit}


def _read_entry(where: str, entry: Any, folder: Path) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: {entry!r} is not an entry like {{name: ..., path: ..., rewards: [...]}}")
    for key in entry:
        if key not in _FIELDS:
            raise ConfigError(f"{where}.{key}: unknown key; an entry has {', '.join(_FIELDS)}")
    name, path = entry.get("name"), entry.get("path")
    if not isinstance(path, str) or not path.strip():
        raise ConfigError(f"{where}.path: {path!r} is no path; name a prompt file")
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"{where}.name: {name!r} is no text; put it in quotes")
    train = {
        "path": os.path.normpath(folder / path),
        "rewards": _rewards(f"{where}.rewards", entry.get("rewards")),
        "weight": _weight(f"{where}.sample_weight", entry.get("sample_weight", 1.0)),
    }
    if name is not None:
        train["name"] = name
    return train | prompt_format(path)


def _rewards(where: str, value: Any) -> dict[str, float]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where}: {value!r} is not a list; write a line `- ocr: 0.7` for each reward")
    rewards: dict[str, float] = {}
    for entry in value:
        if not isinstance(entry, dict) or not entry:
            raise ConfigError(f"{where}: {entry!r} has no weight; write `- {entry}: 1.0`")
        for name, weight in entry.items():
            if not isinstance(name, str) or not _is_number(weight):
                raise ConfigError(f"{where}: {name}: {weight!r} is no number; write `- {name}: 1.0`")
            if name in rewards:
                raise ConfigError(f"{where}: {name} comes twice, with {rewards[name]:g} and {weight:g}; keep one")
            rewards[name] = float(weight)
    return rewards


def _weight(where: str, value: Any) -> float:
    if not _is_number(value) or value <= 0:
        raise ConfigError(f"{where}: must be a number above 0; given: {value!r}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
