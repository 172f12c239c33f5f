"""DeepGen-RL's data-set file for the supervised loss: a Python file as MMEngine has them, read as text and never run.

What is plain is understood: assignments of texts, numbers, lists and `dict(...)`, names of earlier ones, f-strings, `+`,
`os.path.join` and `os.environ`. What else stands there is unknown, which matters only where an image set needs it.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.base import ConfigError

_UNKNOWN = object()
_STORED = ("ceph_folder", "image_tokens_folder", "image_latents_folder", "latents_ceph_folder")  # no images


@dataclass(frozen=True)
class PictureSet:
    """One file of images and texts; relative paths count from the working directory, as there."""

    path: str
    image_folder: str | None
    weight: float


def read_picture_sets(path: Path, environment: Mapping[str, str] = os.environ) -> list[PictureSet]:
    """The sets of `train_dataloader`, in order, with their weights.

    Raises:
        ConfigError: no such file, no Python, or a path, folder or weight that is not plain; the message names it.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} is no Python file: {error}") from error
    names = _Reader(environment).names(tree)
    loader = names.get("train_dataloader")
    dataset = loader.get("dataset") if isinstance(loader, dict) else None
    if not isinstance(dataset, dict):
        raise ConfigError(f"{path}: train_dataloader has no plain `dataset`")
    entries = dataset.get("datasets", [dataset])
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: train_dataloader.dataset.datasets is not a plain list")
    sampler = loader.get("sampler") if isinstance(loader, dict) else None
    weights = sampler.get("sample_weights") if isinstance(sampler, dict) else None
    if weights is not None and not (isinstance(weights, list) and len(weights) == len(entries)):
        raise ConfigError(f"{path}: the sampler's sample_weights are not a plain list of {len(entries)} numbers")
    sets = [_entry(f"{path}: picture set {i}", entry) for i, entry in enumerate(entries)]
    if weights is None:
        return sets
    return [
        PictureSet(s.path, s.image_folder, _weight(f"{path}: sample_weights", w))
        for s, w in zip(sets, weights, strict=True)
    ]


def _entry(where: str, entry: Any) -> PictureSet:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is not a plain dict(...)")
    path, folder = entry.get("data_path"), entry.get("image_folder")
    if not isinstance(path, str):
        raise ConfigError(f"{where}: data_path is not a plain text")
    if folder is not None and not isinstance(folder, str):
        raise ConfigError(f"{where}: image_folder is not a plain text")
    for name in _STORED:
        if entry.get(name) is not None:
            raise ConfigError(f"{where}: {name} is given; only picture files are read here")
    return PictureSet(path, folder, _weight(f"{where}: sample_weight", entry.get("sample_weight", 1.0)))


def _weight(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{where} is not a plain number above 0")
    return float(value)


class _Reader:
    """Values of expressions, _UNKNOWN where they are not plain."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._names: dict[str, Any] = {}

    def names(self, tree: ast.Module) -> dict[str, Any]:
        """The module's names after its last line. What is assigned under a condition or in a loop is unknown."""
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and all(isinstance(t, ast.Name) for t in statement.targets):
                value = self._value(statement.value)
                for target in statement.targets:
                    self._names[target.id] = value  # type: ignore[attr-defined]
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
                self._names[statement.target.id] = self._value(statement.value)
            else:
                self._forget(statement)
        return self._names

    def _forget(self, statement: ast.stmt) -> None:
        for node in ast.walk(statement):
            if isinstance(node, ast.alias):
                self._names[node.asname or node.name.partition(".")[0]] = _UNKNOWN
            elif isinstance(node, ast.Name):  # assigned, or changed by a method or an index: `names.append(...)`
                self._names[node.id] = _UNKNOWN

    def _value(self, node: ast.expr) -> Any:
        value = _UNKNOWN
        match node:
            case ast.Constant():
                value = node.value
            case ast.Name():
                value = self._names.get(node.id, _UNKNOWN)
            case ast.List() | ast.Tuple():
                value = self._list(node.elts)
            case ast.Dict():
                pairs = zip(node.keys, node.values, strict=True)
                value = self._dict([(None if key is None else self._value(key), each) for key, each in pairs])
            case ast.JoinedStr():
                value = self._text(node.values)
            case ast.BinOp(op=ast.Add()):
                left, right = self._value(node.left), self._value(node.right)
                if type(left) is type(right) and isinstance(left, str | list | int | float):
                    value = left + right
            case ast.Subscript(slice=ast.Constant(value=str(name))) if ast.unparse(node.value) == "os.environ":
                value = self._environment.get(name, _UNKNOWN)
            case ast.Call():
                value = self._call(node)
        return value

    def _list(self, nodes: list[ast.expr]) -> Any:
        found: list[Any] = []
        for node in nodes:
            value = self._value(node.value if isinstance(node, ast.Starred) else node)
            if not isinstance(node, ast.Starred):
                found.append(value)
            elif isinstance(value, list):
                found += value
            else:
                return _UNKNOWN
        return found

    def _dict(self, pairs: list[tuple[Any, ast.expr]]) -> Any:
        found: dict[Any, Any] = {}
        for key, node in pairs:
            value = self._value(node)
            if isinstance(key, str):
                found[key] = value
            elif key is None and isinstance(value, dict):
                found |= value
            else:
                return _UNKNOWN
        return found

    def _text(self, parts: list[ast.expr]) -> Any:
        values = []
        for part in parts:
            plain = isinstance(part, ast.FormattedValue) and part.conversion == -1 and part.format_spec is None
            values.append(self._value(part.value if plain and isinstance(part, ast.FormattedValue) else part))
        return "".join(map(str, values)) if all(isinstance(v, str | int) for v in values) else _UNKNOWN

    def _call(self, node: ast.Call) -> Any:
        function, keywords = ast.unparse(node.func), [(word.arg, word.value) for word in node.keywords]
        if function == "dict" and not node.args:
            return self._dict(keywords)
        values = [self._value(argument) for argument in node.args]
        if keywords or not values or not all(isinstance(value, str) for value in values):
            return _UNKNOWN
        if function in ("os.environ.get", "os.getenv"):
            return self._environment.get(values[0], values[1] if len(values) > 1 else None)
        return os.path.join(*values) if function in ("os.path.join", "osp.join") else _UNKNOWN
