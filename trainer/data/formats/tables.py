"""Constants of a Python file: read from its syntax tree, so that nothing in it is run."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.paths import nearest_path
from trainer.data.prompts.checks import DataError


@dataclass(frozen=True)
class Named:
    """A name that the file does not assign a constant to: an imported class, say."""

    name: str


def python_tables(path: Path) -> dict[str, Any]:
    """What the file assigns at its top level, by name: texts, numbers, None, True and False, lists, tuples and dictionaries of them,
    names of earlier ones, joined texts, and os.path.join. Any other value is left out.

    Raises:
        DataError: no such file, or no Python in UTF-8.
    """
    found: dict[str, Any] = {}
    for statement in _parsed(path).body:
        if isinstance(statement, ast.Assign) and all(isinstance(each, ast.Name) for each in statement.targets):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        try:
            constant = _constant(value, found)
        except ValueError:
            continue  # code: what needs it is missed by the name it had
        found |= {each.id: constant for each in targets if isinstance(each, ast.Name)}
    return found


def assigned_texts(path: Path, name: str) -> list[str]:
    """Texts that are assigned to `name` anywhere in the file, inside functions, too, in order. Raises DataError, likewise."""
    return [
        statement.value.value
        for statement in ast.walk(_parsed(path))
        if isinstance(statement, ast.Assign)
        and any(isinstance(each, ast.Name) and each.id == name for each in statement.targets)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    ]


def _parsed(path: Path) -> ast.Module:
    if not path.is_file():
        raise DataError(f"no file at {path.absolute()}; {nearest_path(path)}")
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(
            f"{path}: cannot be read as Python ({error}); correct it, or write the same tables as YAML"
        ) from error


def _constant(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """The value of an expression. Raises ValueError: it is more than constants."""
    match node:
        case ast.Constant():
            found: Any = node.value
        case ast.Name():
            found = known.get(node.id, Named(node.id))
        case ast.Attribute():
            found = Named(node.attr)
        case ast.List() | ast.Tuple():
            found = [_constant(each, known) for each in node.elts]
        case ast.Dict():
            keys = [_text(key, known) for key in node.keys if key is not None]
            if len(keys) != len(node.values):  # {**another}
                raise ValueError(f"line {node.lineno} is no constant")
            found = dict(zip(keys, (_constant(each, known) for each in node.values), strict=True))
        case _:
            found = _joined(node, known)
    return found


def _joined(node: ast.expr, known: Mapping[str, Any]) -> str:
    """A text made of texts: an f-string, a sum, os.path.join."""
    if isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.FormattedValue) else part for part in node.values)
        return "".join(_text(part, known) for part in parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, known) + _text(node.right, known)
    if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in ("os.path.join", "path.join", "join"):
        return os.path.join(*(_text(each, known) for each in node.args))
    raise ValueError(f"line {node.lineno} is no constant")


def _text(node: ast.expr, known: Mapping[str, Any]) -> str:
    value = _constant(node, known)
    if not isinstance(value, str):
        raise ValueError(f"line {node.lineno} is no text")
    return value
