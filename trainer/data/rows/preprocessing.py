"""A user's Python file whose functions change rows before they are read: one after the other, in the order of the file.

A function gets a row as a dict of columns and gives the columns that it sets; `batch_...` gets a dict of lists and gives lists
as long. An image that the row holds comes as a Pillow image. The file is run with this process's rights, so it is only ever
one that the recipe names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.config.paths import nearest_path
from trainer.data.prompts.checks import DataError, shown
from trainer.data.rows.files import Placed
from trainer.data.rows.pictures import opened

BATCH = 256  # rows that a batch_ function gets at once
_PREFIX = "batch_"


class _Letters(str):
    """A text that remembers whether someone went through its letters."""

    was_read: bool

    def __new__(cls, text: str) -> _Letters:
        made = super().__new__(cls, text)
        made.was_read = False
        return made

    def __iter__(self) -> Iterator[str]:
        self.was_read = True
        return super().__iter__()


@dataclass(frozen=True)
class Step:
    """One function of the file.

    Attributes:
        batched: it gets columns as lists, because its name begins with batch_.
        lists_of_one: it was written for batches without being called so; it gets lists of one row.
    """

    name: str
    call: Callable[[Any], Any]
    batched: bool = False
    lists_of_one: bool = False


@dataclass(frozen=True)
class Preprocessing:
    """A file's functions, and the hash of the file for the run's records."""

    path: Path
    sha256: str
    steps: tuple[Step, ...]

    def apply(self, rows: Sequence[Placed]) -> list[Placed]:
        """Rows as the functions leave them, at their old places.

        Raises:
            DataError: a function raised, or gave something else than columns; it names function, row and remedy.
        """
        done = [(where, _shown_images(where, row)) for where, row in rows]
        for step in self.steps:
            if step.batched:
                done = [row for n in range(0, len(done), BATCH) for row in self._batch(step, done[n : n + BATCH])]
            else:
                done = [(where, self._row(step, where, row)) for where, row in done]
        return done

    def _row(self, step: Step, where: str, row: dict[str, Any]) -> dict[str, Any]:
        given = {name: [value] for name, value in row.items()} if step.lists_of_one else dict(row)
        made = self._columns(step, where, _call(step, self.path, where, given))
        if not step.lists_of_one:
            return {**row, **made}
        return {**row, **{name: _out_of_list(value) for name, value in made.items()}}

    def _batch(self, step: Step, rows: Sequence[Placed]) -> list[Placed]:
        where = f"{rows[0][0]} to {rows[-1][0]}" if len(rows) > 1 else rows[0][0]
        names = list(dict.fromkeys(name for _, row in rows for name in row))
        given = {name: [row.get(name) for _, row in rows] for name in names}
        made = self._columns(step, where, _call(step, self.path, where, given))
        for name, values in made.items():
            if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__") or len(values) != len(rows):
                count = f"{len(values)} entries" if hasattr(values, "__len__") else f"a {type(values).__name__}"
                raise DataError(
                    f"{where}: {step.name} of {self.path} gives {count} for the column {name}, but {len(rows)} rows went in; "
                    "give a list with one entry for each row"
                )
        return [(place, {**row, **{name: made[name][i] for name in made}}) for i, (place, row) in enumerate(rows)]

    def _columns(self, step: Step, where: str, made: Any) -> Mapping[str, Any]:
        if made is None:
            return {}
        if not isinstance(made, Mapping):
            raise DataError(
                f"{where}: {step.name} of {self.path} gives a {type(made).__name__} ({shown(made)}), not a dict of columns; a "
                "helper's name begins with an underscore, so that it is not run on rows"
            )
        return made


def load_preprocessing(file: str, first: Sequence[Placed]) -> Preprocessing:
    """The functions of a file that rows are changed by.

    Those are the functions defined in it, imported ones not, without names that begin with an underscore.

    Args:
        first: a few rows. A function without batch_ in its name that goes through the letters of their texts and makes a list
            as long was written for batches: it gets lists of one row, and its lists of one text give that text.

    Raises:
        DataError: no such file, it raised, or it defines no function.
    """
    path = Path(file)
    if not path.is_file():
        raise DataError(f"preprocessing = {file}: no file at {path.absolute()}; {nearest_path(path)}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    spec = importlib.util.spec_from_file_location(f"preprocessing_{digest[:8]}", path)
    if spec is None or spec.loader is None:
        raise DataError(f"preprocessing = {file} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses and the like look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises: it is said with the file's name
        raise DataError(f"preprocessing = {file} cannot be run: {type(error).__name__}: {error}") from error
    found = [
        Step(name, function, batched=name.startswith(_PREFIX))
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    ]
    if not found:
        raise DataError(f"preprocessing = {file} defines no function that could change a row")
    return Preprocessing(path, digest, _with_lists(path, found, first))


def _with_lists(path: Path, steps: Sequence[Step], first: Sequence[Placed]) -> tuple[Step, ...]:
    """The steps, those among them marked that take a row for a batch."""
    rows, marked = list(first), []
    for step in steps:
        for_batches = not step.batched and any(_reads_letters(step, path, where, row) for where, row in rows)
        marked.append(replace(step, lists_of_one=for_batches))
        rows = Preprocessing(path, "", (marked[-1],)).apply(rows)
    return tuple(marked)


def _reads_letters(step: Step, path: Path, where: str, row: Mapping[str, Any]) -> bool:
    """Whether a function goes through texts of a row letter by letter, and makes a list with an entry for each.

    It is shown a text of one letter as one of two: a list of one entry says nothing, and an answer is often one letter.
    """
    shown_row = {
        name: _Letters(value if len(value) > 1 else (value or "-") * 2) if isinstance(value, str) else value
        for name, value in _shown_images(where, row).items()
    }
    texts = [value for value in shown_row.values() if isinstance(value, _Letters)]
    try:
        made = step.call(dict(shown_row))
    except Exception:  # whatever it raises is raised again, and said, when the row is really changed
        return False
    lengths = [len(text) for text in texts if text.was_read]
    if not lengths or not isinstance(made, Mapping):
        return False
    return any(
        isinstance(value, list) and 1 < len(value) == min(lengths) and value is not row.get(name)
        for name, value in made.items()
    )


def _call(step: Step, path: Path, where: str, given: dict[str, Any]) -> Any:
    try:
        return step.call(given)
    except Exception as error:  # whatever a user's function raises: it is said with its name and the row
        line = next(
            (f" (line {tb.tb_lineno})" for tb in _tracebacks(error) if tb.tb_frame.f_code.co_filename == str(path)), ""
        )
        columns = ", ".join(given) or "none"
        raise DataError(
            f"{where}: {step.name} of {path}{line} raised {type(error).__name__}: {error}; the row has the columns {columns}"
        ) from error


def _tracebacks(error: Exception) -> list[types.TracebackType]:
    """From the innermost to the outermost."""
    found, at = [], error.__traceback__
    while at is not None:
        found.append(at)
        at = at.tb_next
    return found[::-1]


def _out_of_list(value: Any) -> Any:
    """The text or number in a list of one; records stay in theirs, as a conversation is a list of them."""
    return value[0] if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], list | dict) else value


def _shown_images(where: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose images are Pillow images, as `datasets` shows them; a row that has been changed already has them."""
    return {name: _shown_image(f"{where}: {name}", value) for name, value in row.items()}


def _shown_image(where: str, value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], Mapping) and "bytes" in value[0]:
        return [_shown_image(f"{where}[{i}]", each) for i, each in enumerate(value)]
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return opened(where, value["bytes"])
    return value
