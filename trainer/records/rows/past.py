"""The rows of earlier starts: which of them a resumed run keeps, and which it goes on from."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from trainer.records.rows.tail import row_in

_BLOCK = 1 << 20  # bytes that are read at once
_NEWEST = 4096  # rows that a resumed run looks back on, at least


def cut_rows(path: Path, last: int) -> None:
    """Remove the rows after step `last`, and a torn line at the end, by one rename. A missing file becomes an empty one.

    Steps rise along the file, so the last row that stays is looked for from the end: only what goes is parsed.
    """
    end, is_ended = 0, True
    if last >= 0 and path.exists():
        with path.open("rb") as file:
            end = next((end for end, row in _backwards(file) if row["step"] <= last), 0)
            is_ended = end == 0 or _ends_a_line(file, end)
    if path.exists() and path.stat().st_size == end and is_ended:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        with temporary.open("wb") as new:
            if end:
                with path.open("rb") as old:
                    _copy(old, new, end)
            new.write(b"" if is_ended else b"\n")
            new.flush()
            os.fsync(new.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Past:
    """What a run that goes on remembers of its rows, in order.

    Attributes:
        first: the first rows, where rows between them and `newest` are left out; else none.
        newest: the newest rows, before them the last that holds an evaluation where none of them does.
    """

    first: list[dict[str, Any]]
    newest: list[dict[str, Any]]


def remembered(path: Path, *, first: int, newest: int | None = None) -> Past:
    """The `newest` rows of a file (by default 4096, or twice `first`), or all that there are; of a longer one also the `first`.

    A run of 100,000 steps so goes on as soon as one of 4,000.
    """
    newest = max(_NEWEST, 2 * first) if newest is None else newest
    found: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for end, row in _backwards(file):
            if len(found) < newest:
                found.append(row)
                continue
            if not _has_evaluation(found):
                found += _last_evaluated(file, end)
            return Past(_first(file, first, before=found[-1]["step"]), found[::-1])
    return Past([], found[::-1])


def _has_evaluation(rows: list[dict[str, Any]]) -> bool:
    return any(key.startswith("eval/") for row in rows for key in row)


def _last_evaluated(file: BinaryIO, end: int) -> list[dict[str, Any]]:
    """The last row before byte `end` that holds an evaluation, if there is one. Only lines that may be it are parsed."""
    rows = (row_in(line) for _, line in _lines_backwards(file, end) if b'"eval/' in line)
    return [row for row in [next(filter(None, rows), None)] if row is not None]


def _first(file: BinaryIO, count: int, *, before: int) -> list[dict[str, Any]]:
    file.seek(0)
    found: list[dict[str, Any]] = []
    for line in file:
        row = row_in(line)
        if len(found) == count or (row is not None and row["step"] >= before):
            break
        if row is not None:
            found.append(row)
    return found


def _backwards(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows from the last to the first, each with the place behind its line's end; what is no row is passed over."""
    for end, line in _lines_backwards(file, file.seek(0, os.SEEK_END)):
        if (row := row_in(line)) is not None:
            yield end, row


def _lines_backwards(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """Lines before byte `end` from the last to the first, their newline with them, and where each ends."""
    begun = b""  # what is known of a line whose beginning lies in an earlier block
    place = end
    while place:
        size = min(_BLOCK, place)
        place -= size
        file.seek(place)
        # Not splitlines: JSON may hold other characters that it takes for the end of a line.
        begun, *lines = io.BytesIO(file.read(size) + begun).readlines()
        for line in reversed(lines):
            yield end, line
            end -= len(line)
    if begun:
        yield end, begun


def _ends_a_line(file: BinaryIO, end: int) -> bool:
    file.seek(end - 1)
    return file.read(1) == b"\n"


def _copy(old: BinaryIO, new: BinaryIO, size: int) -> None:
    """The first `size` bytes."""
    while size:
        size -= new.write(old.read(min(size, _BLOCK)))
