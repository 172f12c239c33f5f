"""The rows of a section: a split's, renamed, changed by the user's file; each made into what is trained on, or named."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from trainer.config.texts import RowsConfig
from trainer.data.prompts.checks import DataError, shown
from trainer.data.rows.files import Found, JoinedRows, Placed
from trainer.data.rows.folders import open_split
from trainer.data.rows.pictures import PictureStore
from trainer.data.rows.preprocessing import BATCH, Preprocessing, load_preprocessing
from trainer.data.rows.splits import held_out_rows, parse_split

Made = TypeVar("Made")

_FIRST = 3  # rows by which a preprocessing file is looked at
_SHOWN = 3
_LONGEST_VALUE = 300


@dataclass(frozen=True)
class Table:
    """The rows of one section of the configuration, which are read when they are asked for.

    Attributes:
        path: the file, folder or hub id.
        folders: where relative paths of images count from.
        preprocessing: None where the section names no file.
        notes: what is to be said before training: what the preprocessing file makes of the first row.
        rows: which of the files' rows are the section's, in order.
    """

    config: RowsConfig
    path: Path
    files: JoinedRows
    rows: Sequence[int]
    preprocessing: Preprocessing | None
    folders: Callable[[str], Sequence[Path]]
    store: PictureStore
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def read(self) -> Iterator[Found]:
        """All rows, with their places, in order; for what is no row, why.

        Raises:
            DataError: a file that is broken, or a preprocessing function that raised or gave no columns.
        """
        for n in range(0, len(self.rows), BATCH):
            found = [
                (where, row if isinstance(row, DataError) else _renamed(where, row, self.config.rename_columns))
                for where, row in self.files.read(self.rows[n : n + BATCH])
            ]
            if self.preprocessing is None:
                yield from found
                continue
            whole = [(where, row) for where, row in found if not isinstance(row, DataError)]
            changed = iter(self.preprocessing.apply(whole))
            yield from (each if isinstance(each[1], DataError) else next(changed) for each in found)

    def make(
        self, field: str, made_of: Callable[[str, dict[str, Any]], Made]
    ) -> tuple[list[tuple[int, str, Made]], list[str]]:
        """What a function makes of each row, with the row's number and place; and a sentence for each that cannot be used.

        Raises:
            DataError: some cannot, and `bad_rows` is refuse; or none can.
        """
        made: list[tuple[int, str, Made]] = []
        problems: list[str] = []
        for number, (where, row) in enumerate(self.read()):
            try:
                if isinstance(row, DataError):
                    raise row
                made.append((number, where, made_of(where, row)))
            except DataError as error:
                problems.append(str(error))
        if problems and self.config.bad_rows == "refuse":
            listed = "\n  ".join(problems[:_SHOWN])
            raise DataError(
                f"{field}: {len(problems)} of {len(self)} rows cannot be used; correct them, or set {field}.bad_rows: leave_out. "
                f"The first:\n  {listed}"
            )
        if not made:
            what = f"; the first that cannot be used: {problems[0]}" if problems else ""
            raise DataError(f"{field}: {self.path} holds no row{what}")
        return made, problems

    def parts(self, share: float | None) -> tuple[frozenset[int], frozenset[int]]:
        """Numbers of the rows to train on and of those to hold out. Raises DataError: nothing is left of one of them."""
        if share is None:
            return frozenset(range(len(self))), frozenset()
        trained, held = held_out_rows(len(self), share)
        return frozenset(trained), frozenset(held)


def open_table(
    config: RowsConfig,
    *,
    field: str,
    path: str,
    format: str = "auto",
    split: str = "train",
    image_dir: str | None = None,
) -> Table:
    """Find a section's rows. With a preprocessing file its functions are looked at, and what they make of the first row is said.

    Args:
        field: the section's name, for messages.
        split: what is read where the section names none.

    Raises:
        DataError: nothing is there, the split is not, or the preprocessing file cannot be used.
    """
    parts = parse_split(f"{field}.split", config.split or split)
    opened = [open_split(Path(path), format, part.name) for part in parts]
    files = JoinedRows(opened)
    rows: list[int] = []
    first = 0
    for part, each in zip(parts, opened, strict=True):
        rows += [first + n for n in part.rows(len(each))]
        first += len(each)
    rows = rows[: config.max_samples]
    if not rows:
        raise DataError(f"{field}: {path} has {len(files)} rows, and split {config.split or split} takes none of them")
    table = Table(config, Path(path), files, rows, None, _folders(path, image_dir), PictureStore(config.image_cache))
    if config.preprocessing is None:
        return table
    beginning = replace(table, rows=rows[:_FIRST]).read()
    first_rows = [(where, row) for where, row in beginning if not isinstance(row, DataError)]
    if not first_rows:
        raise DataError(
            f"{field}: none of the first {_FIRST} rows of {path} can be read, so preprocessing cannot be shown on one"
        )
    preprocessing = load_preprocessing(config.preprocessing, first_rows)
    said = _what_it_makes(field, preprocessing, first_rows[0], preprocessing.apply(first_rows[:1])[0])
    return replace(table, preprocessing=preprocessing, notes=(said,))


def _folders(path: str, image_dir: str | None) -> Callable[[str], Sequence[Path]]:
    """Where images of a row count from, by the row's place."""
    if image_dir is not None:
        return lambda _: (Path(image_dir),)
    whole = Path(path)

    def beside(where: str) -> Sequence[Path]:
        own = Path(where.rpartition(":")[0]).parent
        return tuple(dict.fromkeys((own, own / "images", *((whole,) if whole.is_dir() else ()))))

    return beside


def _renamed(where: str, row: Mapping[str, Any], names: Mapping[str, str | None]) -> dict[str, Any] | DataError:
    for old, new in names.items():
        if old not in row:
            near = difflib.get_close_matches(old, list(row), n=1)
            hint = f"did you mean {near[0]}?" if near else f"the columns are {', '.join(row) or 'none'}"
            return DataError(f"{where}: rename_columns: there is no column {old}; {hint}")
        if new is not None and new in row and new not in names:
            return DataError(
                f"{where}: rename_columns: {old} is to be called {new}, but there is a column of that name; leave it out by "
                f"`{new}: null`"
            )
    return {str(names.get(name, name)): value for name, value in row.items() if names.get(name, name) is not None}


def left_out(field: str, total: int, problems: Sequence[str]) -> tuple[str, ...]:
    """What is said of rows that are left out; nothing where none is."""
    if not problems:
        return ()
    more = f", and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return (f"{field}: {len(problems)} of {total} rows are left out: {'; '.join(problems[:_SHOWN])}{more}",)


def _what_it_makes(field: str, preprocessing: Preprocessing, before: Placed, after: Placed) -> str:
    """What the file makes of the first row is shown before anything is trained on it."""
    steps = ", ".join(
        f"{step.name} (goes through a text letter by letter, so it was written for batches: it gets lists of one row)"
        if step.lists_of_one
        else f"{step.name} (in batches of {BATCH})"
        if step.batched
        else step.name
        for step in preprocessing.steps
    )
    changed = {name: value for name, value in after[1].items() if name not in before[1] or before[1][name] is not value}
    shown_columns = "; ".join(f"{name} = {_cut(value)}" for name, value in changed.items()) or "nothing"
    return (
        f"{field}.preprocessing = {preprocessing.path} (sha256 {preprocessing.sha256}) runs {steps}. Of the first row, "
        f"{before[0]}, it makes: {shown_columns}"
    )


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def text_of(where: str, value: Any) -> str:
    """A text that stands alone or as the only one of a list. Raises DataError."""
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if not isinstance(value, str):
        raise DataError(f"{where}: {shown(value)} is a {type(value).__name__}, not a text")
    return value
