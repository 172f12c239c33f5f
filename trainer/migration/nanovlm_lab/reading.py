"""Reads a YAML of NanoVLM-Lab: every key known by name, every value of its kind, what is left out by its default there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.base import ConfigError, nearest
from trainer.migration.nanovlm_lab.keys import LORA, REQUIRED, SECTIONS, TYPES, Key, TrainingType

_TOP = ("training_type", *SECTIONS)


@dataclass(frozen=True)
class Lab:
    """A YAML of theirs.

    Attributes:
        training: which of the three trainings it asks for.
        values: by section and key, defaults included.
        given: what the file itself names, as (section, key).
        folder: the YAML's own, where its relative paths are looked for.
    """

    training: TrainingType
    values: Mapping[str, Mapping[str, Any]]
    given: frozenset[tuple[str, str]]
    folder: Path

    def get(self, section: str, key: str) -> Any:
        """A value, or its default there."""
        return self.values[section][key]

    def lora(self, key: str) -> Any:
        """A value of model.lora_config, or its default there."""
        return self.values["lora_config"][key]

    @property
    def uses_lora(self) -> bool:
        return bool(self.get("model", "use_lora"))

    @property
    def initializes(self) -> bool:
        """Whether the model is made from a configuration in place of a checkpoint."""
        name = str(self.get("model", "model_name_or_path") or "")
        return name.lower() == "initialize" or bool(self.get("model", "initialize_from_config"))


def is_lab(raw: Mapping[str, Any]) -> bool:
    """Whether a YAML is one of theirs: no recipe of ours has this key."""
    return "training_type" in raw


def read_lab(path: str | Path, raw: Mapping[str, Any]) -> Lab:
    """Check a YAML's fields.

    Args:
        raw: the file, parsed.

    Raises:
        ConfigError: naming every key that is not known, with the nearest one, and every value of another kind.
    """
    problems = [*_missing(raw), *_unknown(raw)]
    training = str(raw.get("training_type") or "").lower()
    if training not in TYPES:
        problems.append(f"training_type = {raw.get('training_type')!r} is none of {', '.join(TYPES)}")
        _refuse(path, problems)
    values: dict[str, dict[str, Any]] = {}
    given: set[tuple[str, str]] = set()
    lora = raw.get("model", {}).get("lora_config") if isinstance(raw.get("model"), Mapping) else None
    for section, keys, written in [
        *((name, keys, raw.get(name)) for name, keys in SECTIONS.items()),
        ("lora_config", LORA, lora),
    ]:
        fields = written if isinstance(written, Mapping) else {}
        values[section] = {}
        for name, key in keys.items():
            default = key.default_of(training)  # type: ignore[arg-type]  # one of TYPES, as was checked
            value = fields.get(name, default)
            values[section][name] = default if value is None else _of_kind(f"{section}.{name}", key, value, problems)
        given |= {(section, name) for name in fields if name in keys}
    _refuse(path, problems)
    kind: TrainingType = next(each for each in TYPES if each == training)
    return Lab(kind, values, frozenset(given), Path(path).resolve().parent)


def _refuse(path: str | Path, problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n  ".join([f"{path} of NanoVLM-Lab cannot be used:", *problems]))


def _missing(raw: Mapping[str, Any]) -> Iterator[str]:
    for name in REQUIRED:
        if name not in raw:
            yield f"{name} is missing"
    for section, key in (("model", "model_name_or_path"), ("dataset", "train_data_path")):
        fields = raw.get(section)
        makes_one = section == "model" and isinstance(fields, Mapping) and fields.get("initialize_from_config")
        if isinstance(fields, Mapping) and not fields.get(key) and not makes_one:
            yield f"{section}.{key} is missing"


def _unknown(raw: Mapping[str, Any]) -> Iterator[str]:
    for name, fields in raw.items():
        if name not in _TOP:
            yield f"{name} is no section: {nearest(str(name), _TOP)}"
            continue
        if name == "training_type" or fields is None:
            continue
        if not isinstance(fields, Mapping):
            yield f"{name} = {fields!r} must be a section with fields"
            continue
        for key in fields:
            if key not in SECTIONS[name]:
                yield f"{name}.{key} is unknown: {_nearest_key(str(key), name)}"
        lora = fields.get("lora_config") if name == "model" else None
        for key in lora if isinstance(lora, Mapping) else ():
            if key not in LORA:
                yield f"model.lora_config.{key} is unknown: {nearest(str(key), LORA)}"


def _nearest_key(key: str, section: str) -> str:
    """The nearest key of the section, or the section that has this key."""
    elsewhere = [name for name, keys in SECTIONS.items() if key in keys]
    return f"it belongs under {' or '.join(elsewhere)}" if elsewhere else nearest(key, SECTIONS[section])


def _of_kind(name: str, key: Key, value: Any, problems: list[str]) -> Any:
    """The value as its kind; what cannot be is named in `problems`."""
    wanted = {
        "text": "a text",
        "whole": "a whole number",
        "number": "a number",
        "flag": "true or false",
        "mapping": "a section with fields",
        "list": "a list",
    }[key.kind]
    found = _converted(key, value)
    if found is None:
        problems.append(f"{name} = {value!r} must be {wanted}")
    return found


def _converted(key: Key, value: Any) -> Any:
    """None where it cannot be. A number may be a text: YAML reads 5e-6, without a point, as one, and theirs converts it."""
    if key.kind == "list":
        return value if isinstance(value, list) else [value] if isinstance(value, str) and value else None
    if key.kind in ("mapping", "text", "flag"):
        kinds: dict[str, type] = {"mapping": dict, "text": str, "flag": bool}
        return value if isinstance(value, kinds[key.kind]) else None
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if key.kind == "whole":
        return int(number) if number.is_integer() else None
    return number
