"""Constants of a Python file: read from its syntax tree, so that nothing in it is run."""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.paths import nearest_path
from trainer.data.prompts.checks import DataError

_LONGEST = 1 << 16  # characters of a text: a few lines of sums could make one that fills the memory
# What a method does to the list or dictionary it is called on, where it is called for that alone.
_CHANGING = {
    "update",
    "setdefault",
    "pop",
    "popitem",
    "clear",
    "append",
    "extend",
    "insert",
    "remove",
    "sort",
    "reverse",
}


@dataclass(frozen=True)
class Named:
    """A name that the file does not assign a constant to: an imported class, say."""

    name: str


@dataclass(frozen=True)
class Code:
    """What only running the file would tell: a function's result, or something that code changes afterwards.

    Attributes:
        line: where.
    """

    line: int

    def sentence(self, path: Path, what: str) -> str:
        """What is said of it where it is needed."""
        return (
            f"{path}:{self.line}: {what} is made or changed by code there, and nothing of the file is run; write it as constants, or "
            "the same tables as YAML"
        )


def python_tables(path: Path) -> dict[str, Any]:
    """What the file assigns at its top level, by name: texts, numbers, None, True and False, lists, tuples and dictionaries of them,
    names of earlier ones, joined texts, os.path.join, and what it puts into a dictionary of these afterwards (X["a"] = ...). Anything
    else is `Code`, also inside a list or a dictionary.

    Raises:
        DataError: no such file, no Python in UTF-8, a key of a dictionary that comes twice, or a text that is too long.
    """
    reading = _Reading(path, {})
    for statement in _parsed(path).body:
        try:
            reading.statement(statement)
        except RecursionError:
            reading.found |= dict.fromkeys(_stored(statement), Code(statement.lineno))
    return reading.found


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
    if not os.path.isfile(path):
        raise DataError(f"no file at {path.absolute()}; {nearest_path(path)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in its texts, which are the author's
            return ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(
            f"{path}: cannot be read as Python ({error}); correct it, or write the same tables as YAML"
        ) from error


@dataclass
class _Reading:
    """The names of a file as its statements come.

    Attributes:
        found: values by name.
    """

    path: Path
    found: dict[str, Any]

    def statement(self, statement: ast.stmt) -> None:
        self.found |= {
            (node.asname or node.name).partition(".")[0]: Named(node.name)
            for node in ast.walk(statement)
            if isinstance(node, ast.alias)
        }
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                self.found[name] = Named(name)  # what stands in it is its own
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                pass  # not run where the file is imported
            case ast.Assign(targets=targets, value=value):
                self._assign(targets, self._constant(value), statement)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self._assign([target], self._constant(value), statement)
            case _:
                changed = {*_stored(statement), *_changed(statement)}
                if _changes_through_others(statement):
                    named = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
                    changed |= {name for name in named if isinstance(self.found.get(name), list | dict)}
                self.found |= dict.fromkeys(changed, Code(statement.lineno))

    def _assign(self, targets: list[ast.expr], value: Any, statement: ast.stmt) -> None:
        for target in targets:
            if isinstance(target, ast.Name):
                self.found[target.id] = value
            elif not (isinstance(target, ast.Subscript) and self._put(target, value)):
                self.found |= dict.fromkeys(_stored(target), Code(statement.lineno))

    def _put(self, target: ast.Subscript, value: Any) -> bool:
        """X["a"]["b"] = value; whether X["a"] is a dictionary that is known."""
        holder, key = self._held(target.value), self._constant(target.slice)
        if not isinstance(holder, dict) or isinstance(key, list | dict | Code | Named):
            return False
        holder[key] = value
        return True

    def _held(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self.found.get(node.id)
        if isinstance(node, ast.Subscript):
            holder, key = self._held(node.value), self._constant(node.slice)
            return holder.get(key) if isinstance(holder, dict) and isinstance(key, str | int) else None
        return None

    def _constant(self, node: ast.expr) -> Any:
        """The value of an expression; Code where it is more than constants."""
        match node:
            case ast.Constant():
                found: Any = node.value
            case ast.Name():
                found = self.found.get(node.id, Named(node.id))
            case ast.Attribute():
                found = Named(node.attr)
            case ast.List() | ast.Tuple():
                found = [self._constant(each) for each in node.elts]
            case ast.Dict():
                found = self._dictionary(node)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                found = -number
            case _:
                found = self._joined(node)
        return found

    def _joined(self, node: ast.expr) -> Any:
        """A text made of texts; Code where it is something else."""
        parts = [] if (nodes := _parts(node)) is None else [self._text(each) for each in nodes]
        if not parts or None in parts:
            return Code(node.lineno)
        texts = [part for part in parts if part is not None]
        if sum(map(len, texts)) > _LONGEST:
            raise DataError(f"{self.path}:{node.lineno}: a text of more than {_LONGEST} characters; shorten it")
        return os.path.join(*texts) if isinstance(node, ast.Call) else "".join(texts)

    def _dictionary(self, node: ast.Dict) -> Any:
        found: dict[Any, Any] = {}
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            value = self._constant(value_node)
            if key_node is None:  # {**another}
                if not isinstance(value, dict):
                    return Code(value_node.lineno)
                found.update(value)
                continue
            key = self._constant(key_node)
            if isinstance(key, list | dict | Code | Named):
                return Code(key_node.lineno)
            if key in found:
                raise DataError(f"{self.path}:{key_node.lineno}: the key {key!r} comes twice; keep one of them")
            found[key] = value
        return found

    def _text(self, node: ast.expr) -> str | None:
        """A text, or a number as an f-string writes it; None where it is something else."""
        if isinstance(node, ast.FormattedValue):
            if node.conversion != -1 or node.format_spec is not None:
                return None
            value = self._constant(node.value)
            return str(value) if isinstance(value, str | int) else None
        value = self._constant(node)
        return value if isinstance(value, str) else None


def _parts(node: ast.expr) -> list[ast.expr] | None:
    """What a joined text is made of: an f-string, a sum, os.path.join; None where it is no such thing."""
    match node:
        case ast.JoinedStr():
            return node.values
        case ast.BinOp(op=ast.Add()):
            return [node.left, node.right]
        case ast.Call() if not node.keywords and _dotted(node.func) in ("os.path.join", "path.join", "join"):
            return node.args
    return None


def _dotted(node: ast.expr) -> str:
    """a.b.c; empty where it is no such name."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join(reversed([*names, node.id])) if isinstance(node, ast.Name) else ""


def _root(node: ast.AST) -> str | None:
    """The name that X["a"].b begins with."""
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _stored(statement: ast.AST) -> Iterator[str]:
    """Names that it assigns or deletes, or into whose values it assigns."""
    for node in ast.walk(statement):
        stores = isinstance(node, ast.Name | ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load)
        if stores and (name := _root(node)) is not None:
            yield name


def _changed(statement: ast.AST) -> Iterator[str]:
    """Names whose lists or dictionaries it changes by a method."""
    for node in ast.walk(statement):
        method = node.func if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
        if method is not None and method.attr in _CHANGING and (name := _root(method.value)) is not None:
            yield name


def _changes_through_others(statement: ast.stmt) -> bool:
    """Whether it may change values by other names than their own: in a loop over them, or by a function that is called with them."""
    return any(
        (isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load))
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _dotted(node.value.func) != "print")
        for node in ast.walk(statement)
    )
