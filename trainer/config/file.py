"""Reads and writes configuration files: YAML, command-line overrides, and errors that name the field and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from rewards.shipped import FOLDER, recipes
from trainer.config.base import ConfigError, Section, nearest
from trainer.config.errors import explain
from trainer.config.old_keys import refuse_old_keys

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(path: str | Path, model: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, apply overrides, check everything.

    Types are strict: a number in quotes is no number, true is not 1, and 8.0 is no integer.

    This reads our own fields alone. What a user brings from another trainer is translated into them before the check, by
    `trainer.migration.load_recipe`, which every command calls.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown or comes twice, a value is wrong, or two values
            contradict; all that was found is listed.
    """
    raw = read_recipe(path)
    refuse_old_keys(path, raw, overrides)
    return checked(path, model, apply_overrides(raw, overrides))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The fields of a recipe as they are written, unchecked. Raises ConfigError as `read_yaml` does; a recipe that is not
    there is answered with the nearest name beside it."""
    path = Path(path)
    return read_yaml(path, hint=_recipes_beside(path))


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set single fields of `raw`, in place, and return it.

    An override is `key.sub=value`. The value is YAML, so `x=null`, `x=[1, 2]` and `x={a: 1}` work, and replaces what was
    there. A number steps into a list (`data.train.0.path=other.txt`); the list's length adds an entry to it.

    Raises:
        ConfigError: an override has another form, its value is not YAML, or it steps into something without fields.
    """
    for override in overrides:
        _apply_override(raw, override)
    return raw


def checked(path: str | Path, model: type[ConfigT], raw: dict[str, Any]) -> ConfigT:
    """`raw` as a configuration of the kind `model`. Raises ConfigError with all that is wrong; `path` is named in it."""
    raw = model.with_types(raw) if issubclass(model, Section) else raw
    try:
        return model.model_validate(_lists_to_tuples(raw), strict=True)
    except ValidationError as error:
        path = Path(path)
        raise ConfigError(_of_another_kind(path, raw) or explain(path, model, raw, error)) from error


def _recipes_beside(path: Path) -> str:
    """What to do about a recipe that is not there: the nearest name in its folder or among the shipped ones, if there is one."""
    if len(path.parts) == 1 and not path.suffix:
        return nearest(path.name, recipes())
    near = difflib.get_close_matches(path.name, [each.name for each in path.parent.glob("*.yaml")], n=1)
    return f"did you mean {path.parent / near[0]}?" if near else f"the recipes are in {FOLDER / 'configs'}"


def _of_another_kind(path: Path, raw: dict[str, Any]) -> str | None:
    """What the file is instead of a recipe; None where it may be one."""
    if isinstance(raw.get("datasets"), tuple | list):
        return (
            f"{path} is a list of data sets as DeepGen-RL has them, not a recipe; name it in a recipe's "
            "data.dataset_config (training) or evaluation.dataset_config"
        )
    return None


def dump_config(config: BaseModel) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number, as YAML 1.2 does, and refuses a key that comes twice."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._looked_at: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called before a mapping is built, and before it is merged (`<<`) into another, which puts keys of others beside its own: it is
        looked at once, before that."""
        if id(node) not in self._looked_at:
            self._looked_at.add(id(node))
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} comes twice; keep one of them", key.start_mark
                    )
                seen.add(key.value)
        super().flatten_mapping(node)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """What a YAML text holds. Raises yaml.YAMLError; a key that comes twice is one."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_yaml(path: Path, hint: str = "correct the path") -> dict[str, Any]:
    """The mapping that a YAML file holds, unchecked. Raises ConfigError: no file, not UTF-8, not YAML, no mapping."""
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"no file at {path.absolute()}; {hint}") from error
    except OSError as error:
        raise ConfigError(f"{path.absolute()} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, not a mapping of settings such as `run_name: first`")
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise ConfigError(f"override {override!r} is not of the form key.sub=value, as in optim.lr=1e-4")
    try:
        parsed = parse_yaml(value)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error
    node: Any = raw
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth]) or "config"
        last = depth == len(parts) - 1
        if isinstance(node, list):
            index = _list_index(node, part, where, override)
            if index == len(node):
                node.append({})
            if last:
                node[index] = parsed
            node = node[index]
        elif isinstance(node, dict):
            if last:
                node[part] = parsed
            elif node.get(part) is None:
                node[part] = [] if parts[depth + 1] == "0" else {}
            node = node[part]
        else:
            raise ConfigError(f"override {override!r}: {where} is {node!r}, which has no field {part!r}")


def _list_index(node: list[Any], part: str, where: str, override: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", part):
        raise ConfigError(
            f"override {override!r}: {where} is a list; give a number from 0 to {len(node)}, not {part!r}"
        )
    if int(part) > len(node):
        raise ConfigError(
            f"override {override!r}: {where} has {len(node)} entries, so the index {part} is too large; {len(node)} adds "
            "one"
        )
    return int(part)


def _lists_to_tuples(value: Any) -> Any:
    """Sequences in a frozen configuration are tuples, and strict checks take nothing else for one."""
    if isinstance(value, dict):
        return {key: _lists_to_tuples(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_lists_to_tuples(inner) for inner in value)
    return value
