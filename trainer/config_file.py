"""Reads and writes configuration files: YAML, command-line overrides, and errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from trainer.config import ConfigError

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(path: str | Path, model: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, apply `key.sub=value` overrides (values are YAML), check everything.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value is wrong, or two values contradict.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no config file at {path}; the recipes are in configs/") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, not a mapping of settings")
    for override in overrides:
        _apply_override(raw, override)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from error


def dump_config(config: BaseModel) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} is not of the form key.sub=value")
    parts = key.split(".")
    node: Any = raw
    for part in parts[:-1]:
        node = node[int(part)] if isinstance(node, list) and part.isdigit() else _child(node, part, override)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error
    if isinstance(node, list):
        node[int(parts[-1])] = parsed
    else:
        node[parts[-1]] = parsed


def _child(node: Any, part: str, override: str) -> Any:
    if not isinstance(node, dict):
        raise ConfigError(f"override {override!r}: {part!r} is below a value that has no fields")
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _explain(path: Path, error: ValidationError) -> str:
    lines = [f"{path} cannot be used:"]
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "config"
        given = "" if isinstance(problem["input"], Mapping) else f" (given: {problem['input']!r})"
        message = (
            "unknown key; see the fields in trainer/config.py"
            if problem["type"] == "extra_forbidden"
            else problem["msg"]
        )
        lines.append(f"  {where}: {message.removeprefix('Value error, ')}{given}")
    return "\n".join(lines)
