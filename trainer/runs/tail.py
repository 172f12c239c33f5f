"""The rows of a `metrics.jsonl` that have come since one looked last, without reading the others again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

_CHUNK = 1024 * 1024  # bytes read at once; a line that is longer is no row
_MARK = 64  # bytes before the place that was reached, by which it is known again
_END = 256 * 1024  # bytes of a file's end that `last_rows` looks at

Row = dict[str, Any]


class Tail:
    """How far a file of rows was read. A start that goes back to a checkpoint cuts the file: then all is read anew."""

    def __init__(self) -> None:
        self.offset = 0
        self._file: tuple[int, int] | None = None
        self._mark = b""

    def is_another(self, file: BinaryIO) -> bool:
        """Whether `file` is not the one that was read so far, or its beginning has changed. If so, call `restart`."""
        about = os.fstat(file.fileno())
        if self._file is None:
            return False
        if self._file != (about.st_dev, about.st_ino) or about.st_size < self.offset:
            return True
        file.seek(self.offset - len(self._mark))
        return file.read(len(self._mark)) != self._mark

    def restart(self) -> None:
        self.offset, self._file, self._mark = 0, None, b""

    def rows(self, file: BinaryIO) -> Iterator[list[Row]]:
        """The whole lines beyond the place that was reached, in portions of at most 1 MiB. A line that is still being
        written is left for the next time; one that is no row is passed over."""
        about = os.fstat(file.fileno())
        self._file = (about.st_dev, about.st_ino)
        while True:
            file.seek(self.offset)
            data = file.read(_CHUNK)
            end = data.rfind(b"\n") + 1
            if not end:
                if len(data) < _CHUNK:
                    return
                end = len(data)
            self.offset += end
            self._mark = data[max(0, end - _MARK) : end]
            yield parse(data[:end])


def parse(data: bytes) -> list[Row]:
    """The rows in some lines."""
    found = []
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # JSON's and UTF-8's errors are ValueErrors
            continue
        if isinstance(row, dict) and type(row.get("step")) is int and row["step"] >= 0:
            found.append(row)
    return found


def last_rows(file: BinaryIO) -> list[Row]:
    """The rows in the last 256 KiB of a file: what can be said of a long run before it is read."""
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _END))
    data = file.read(_END)
    if size > _END:
        data = data.partition(b"\n")[2]
    return parse(data[: data.rfind(b"\n") + 1])
