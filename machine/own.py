"""Things of a user's own: what a recipe or a command names as FILE.py:NAME or module:NAME, found and loaded.

One door for all of them, so that syntax and errors are the same: rewards, prompt sets, policies, objectives, alarms. A file is
run with the rights of this process, and only ever because the user named it. It is run once for each content, needs no place on
Python's path, and gets none: what it imports must be installed, or lie on PYTHONPATH. Only the standard library is imported here.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.abc import SourceLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_CODE = re.compile(r"(?:.*\.py|[A-Za-z_]\w*(?:\.\w+)*)(?::[\w, ]*)?")
SYNTAX = "write FILE.py:NAME, or module:NAME for what is installed"


class OwnError(ValueError):
    """What was named cannot be used; the message names the field, the file and the remedy."""


@dataclass(frozen=True)
class Named:
    """What a text names, before anything is opened.

    Attributes:
        field: of the recipe, or the flag, that holds the text.
        source: a path that ends in .py, or the dotted name of a module.
        names: what is meant of it; none where the text has no colon.
    """

    field: str
    text: str
    source: str
    names: tuple[str, ...]

    @property
    def is_file(self) -> bool:
        return self.source.endswith(".py")

    def error(self, problem: str) -> OwnError:
        return OwnError(f"{self.field} = {self.text}: {problem}")


@dataclass(frozen=True)
class Source:
    """A module of the user's, run, with the bytes that were run."""

    named: Named
    module: ModuleType
    path: Path
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Own:
    """The one thing that a text names."""

    source: Source
    name: str
    value: Any

    def error(self, problem: str) -> OwnError:
        return self.source.named.error(problem)


def is_code(text: str) -> bool:
    """Whether a text names a file or module of code, and not a program of ours or a file of data."""
    return _CODE.fullmatch(text) is not None and (text.endswith(".py") or ":" in text)


def named(text: str, field: str, *, needs_name: bool = True) -> Named:
    """Read the text. Raises OwnError where it has another form, or no name where one is needed."""
    source, colon, listed = text.rpartition(":")
    if not colon and text.endswith(".py"):
        source, listed = text, ""
    found = Named(field, text, source, tuple(name.strip() for name in listed.split(",")) if listed else ())
    is_module = all(part.isidentifier() for part in source.split("."))
    if not (found.is_file or is_module) or not all(name.isidentifier() for name in found.names):
        raise OwnError(f"{field} = {text} names no file and no module; {SYNTAX}")
    if needs_name and len(found.names) != 1:
        raise OwnError(
            f"{field} = {text} names {len(found.names) or 'nothing'} of the file, and one is needed; {SYNTAX}"
        )
    return found


def load(wanted: Named) -> Source:
    """Run the file, or import the module. Raises OwnError: it is not there, or raised."""
    path, content = read(wanted)
    if not wanted.is_file:
        return Source(wanted, import_module(wanted.source), path, content)
    # The path is in the name: two equal files at two places are two modules. So is the content: a changed file is run again.
    place = hashlib.sha256(str(path.resolve()).encode() + content).hexdigest()[:16]
    name = f"own_{path.stem}_{place}"
    if name not in sys.modules:
        _run(wanted, name, path, content)
    return Source(wanted, sys.modules[name], path, content)


def read(wanted: Named) -> tuple[Path, bytes]:
    """The file of what is named, and its bytes, without running it. Raises OwnError where there is none."""
    path = Path(wanted.source) if wanted.is_file else _file_of(wanted)
    try:
        return path, path.read_bytes()
    except OSError as error:
        near = difflib.get_close_matches(path.name, [each.name for each in path.absolute().parent.glob("*.py")], n=1)
        remedy = f"did you mean {path.with_name(near[0])}?" if near else "correct the path; it counts from here"
        raise wanted.error(f"no file at {path.absolute()} ({error.strerror}); {remedy}") from error


def names_in(content: bytes) -> list[str]:
    """The functions and classes that a file defines at its top, found without running it; none where it is no Python."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def find(text: str, field: str) -> Own:
    """The one thing that `text`, the value of `field`, names. Raises OwnError."""
    source = load(named(text, field))
    return pick(source, source.named.names[0])


def pick(source: Source, name: str) -> Own:
    """What a file calls `name`. Raises OwnError with the nearest name that it has."""
    if not hasattr(source.module, name):
        there = names_in(source.content)
        near = difflib.get_close_matches(name, there, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"it has {', '.join(there) or 'neither function nor class'}"
        raise source.named.error(f"{source.path} has no {name}; {remedy}")
    return Own(source, name, getattr(source.module, name))


def function(
    own: Own, offered: Sequence[str], returns: str, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """The function, which is called by name with those of `offered` that it takes, and with the options of the recipe.

    Args:
        returns: what it gives, for the message.
        options: values for parameters of its own, which must have a default to be left out. None: it may have no others.

    Raises:
        OwnError: it is no plain function, takes what nobody gives, or lacks an option; both signatures are in the message.
    """
    call, given = own.value, options or {}
    wanted = f"def {own.name}({', '.join(offered)}) -> {returns}"
    if not callable(call) or inspect.isclass(call):
        raise own.error(f"{own.name} is a {type(call).__name__}, not a function; write {wanted}")
    shown = f"{own.name}{inspect.signature(call)}"
    if inspect.iscoroutinefunction(call) or (inspect.isgeneratorfunction(call) and "Iterable" not in returns):
        raise own.error(f"{shown} is async or a generator; write a plain function, {wanted}")
    parameters = inspect.signature(call).parameters
    if any(each.kind is each.POSITIONAL_ONLY for each in parameters.values()):
        raise own.error(
            f"{shown} has a parameter without a name (before the /), and all are given by name; write {wanted}"
        )
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    plain = [name for name, each in parameters.items() if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    own_names = [name for name in plain if name not in offered]
    if missing := [
        name for name in own_names if name not in given and parameters[name].default is inspect.Parameter.empty
    ]:
        near = did_you_mean(missing[0], offered)
        more = "" if options is None else ", or give it in the recipe's options or by a default"
        raise own.error(f"{shown} takes {missing[0]}, which nobody gives{near}; write {wanted}{more}")
    if unknown := [name for name in given if name not in own_names and not takes_all]:
        raise own.error(
            f"options.{unknown[0]} is no parameter of {shown}{did_you_mean(unknown[0], own_names)}; take it out of options"
        )
    takes = [name for name in offered if takes_all or name in plain]

    def called(**arguments: Any) -> Any:
        return call(**{name: arguments[name] for name in takes}, **given)

    return called


def subclass(own: Own, base: type, example: str) -> type[Any]:
    """The class. Raises OwnError where it is none, or not made from `base`."""
    if not inspect.isclass(own.value) or not issubclass(own.value, base):
        shown = f"the class {own.name}({', '.join(each.__name__ for each in own.value.__bases__)})"
        what = shown if inspect.isclass(own.value) else f"{own.name} is a {type(own.value).__name__}: it"
        raise own.error(f"{what} is no {base.__name__}; write {example}")
    found: type[Any] = own.value
    return found


def raised(own: Own, error: BaseException, when: str) -> OwnError:
    """The user's code raised: an error with the line in it."""
    return own.error(f"{own.name} raised {_told(error, own.source.path)} {when}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _file_of(wanted: Named) -> Path:
    """The file of an installed module. Its packages are imported on the way, as Python does."""
    try:
        spec = importlib.util.find_spec(wanted.source)
    except ImportError as error:
        raise wanted.error(f"cannot be imported ({error}); install it, or put its folder on PYTHONPATH") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise wanted.error(
            f"no module {wanted.source} is installed; install it, put its folder on PYTHONPATH, or {SYNTAX}"
        )
    return Path(spec.origin)


class _Read(SourceLoader):
    """Runs bytes that were read, so that what was hashed is what runs; nothing is written beside the file."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path, self._content = path, content

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_data(self, path: bytes | str) -> bytes:
        return self._content


def _run(wanted: Named, name: str, path: Path, content: bytes) -> None:
    loader = _Read(path, content)
    spec = importlib.util.spec_from_loader(name, loader, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up there
    try:
        loader.exec_module(module)
    except Exception as error:  # the file is a program; whatever it raises is the user's to read
        del sys.modules[name]
        beside = isinstance(error, ModuleNotFoundError) and path.with_name(f"{error.name}.py").is_file()
        remedy = f"; what lies beside it is found with PYTHONPATH={path.absolute().parent}" if beside else ""
        raise wanted.error(f"{path} does not run: {_told(error, path)}{remedy}") from error


def _told(error: BaseException, path: Path) -> str:
    lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == str(path)]
    at = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{at}"
