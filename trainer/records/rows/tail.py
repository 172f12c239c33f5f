"""The rows of a `metrics.jsonl` that have come since one looked last, without reading the others again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Self

_CHUNK = 1024 * 1024  # bytes read at once; a line that is longer is no row
_MARK = 4096  # bytes at the beginning, and before the place that was reached, by which a file is known again
_END = 256 * 1024  # bytes of a file's end that `newest` looks at
_MAX_STEP = 2**53  # beyond it a float cannot tell two steps apart

Row = dict[str, Any]


class Tail:
    """How far a file of rows was read. A start that goes back to a checkpoint cuts the file: then all is read anew.

    A file is known again by its inode, and by the bytes of its beginning and of its end at that time, of which hashes are kept.

    Attributes:
        offset: bytes that were read.
    """

    def __init__(self) -> None:
        self.offset = 0
        self._file: tuple[int, int] | None = None
        self._head = self._mark = (0, "")  # how many bytes, and their hash

    def as_dict(self) -> dict[str, Any]:
        """All of it, for a file."""
        return {"offset": self.offset, "file": self._file, "head": self._head, "mark": self._mark}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """The opposite of `as_dict`. Raises TypeError, ValueError or LookupError for anything else."""
        tail = cls()
        tail.offset = int(told["offset"])
        device, inode = told["file"]
        tail._file = (int(device), int(inode))
        (head, head_hash), (mark, mark_hash) = told["head"], told["mark"]
        tail._head, tail._mark = (int(head), str(head_hash)), (int(mark), str(mark_hash))
        return tail

    def is_another(self, file: BinaryIO) -> bool:
        """Whether `file` is not the one that was read so far, or has changed before the place that was reached."""
        if self._file is None:
            return False
        about = os.fstat(file.fileno())
        if self._file != (about.st_dev, about.st_ino) or about.st_size < self.offset:
            return True
        places = ((0, self._head), (self.offset - self._mark[0], self._mark))
        return any(_hash_at(file, place, length) != (length, known) for place, (length, known) in places)

    def pieces(self, file: BinaryIO) -> Iterator[bytes]:
        """The whole lines beyond the place that was reached, at most 1 MiB at a time. A line that is still being written is
        left for the next time."""
        about = os.fstat(file.fileno())
        self._file = (about.st_dev, about.st_ino)
        while True:
            file.seek(self.offset)
            data = file.read(_CHUNK)
            end = data.rfind(b"\n") + 1
            if not end:
                if len(data) < _CHUNK:
                    break
                end = len(data)
            self.offset += end
            yield data[:end]
        self._head = _hash_at(file, 0, min(_MARK, self.offset))
        self._mark = _hash_at(file, max(0, self.offset - _MARK), min(_MARK, self.offset))


def _hash_at(file: BinaryIO, place: int, length: int) -> tuple[int, str]:
    file.seek(place)
    data = file.read(length)
    return len(data), hashlib.blake2b(data, digest_size=16).hexdigest()


def rows(file: BinaryIO) -> Iterator[list[Row]]:
    """All rows of a file, in portions."""
    for piece in Tail().pieces(file):
        yield parse(piece)


def parse(data: bytes) -> list[Row]:
    """The rows in some lines; one that is no row is passed over."""
    return [row for line in data.split(b"\n") if (row := row_in(line)) is not None]


def row_in(line: bytes) -> Row | None:
    """The row in a line; None where it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # JSON's and UTF-8's errors are ValueErrors
        return None
    whole = isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < _MAX_STEP
    return row if whole else None


def newest(file: BinaryIO) -> tuple[Row | None, Row | None]:
    """The last row, and the last with an evaluation, of a file's last 256 KiB: what can be said before it is read."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _END))
    data = file.read(_END)
    if size > _END:
        data = data.partition(b"\n")[2]
    lines = data[: data.rfind(b"\n") + 1].split(b"\n")
    last = next((row for line in reversed(lines) if (row := row_in(line)) is not None), None)
    # Few lines have one; the others need not be taken apart.
    marked = (line for line in reversed(lines) if b'"eval/' in line)
    return last, next((row for line in marked if (row := row_in(line)) is not None and is_evaluation(row)), None)


def is_evaluation(row: Mapping[str, Any]) -> bool:
    """Whether a row holds what an evaluation found."""
    return any(key.startswith("eval/") for key in row)
