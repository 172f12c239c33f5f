"""Rows of JSON, JSON lines, Parquet and saved data sets, read as they are asked for: what is not taken is never parsed."""

from __future__ import annotations

import bisect
import itertools
import json
import mmap
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.config.paths import nearest_path
from trainer.data.prompts.checks import DataError, shown

Placed = tuple[str, dict[str, Any]]  # a row after where it stands, such as `data.jsonl:7`
Found = tuple[str, dict[str, Any] | DataError]  # likewise; what is no row says why
_SPLIT_NAMES = frozenset(("train", "test", "validation", "val", "eval", "dev"))


class RowFile(Protocol):
    """A file of rows, counted when it is opened."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> Iterator[Found]:
        """These rows, in this order. Raises DataError: the file can no longer be read."""
        ...


class JsonRows:
    """A JSON array of objects, or an object that holds one: alone, or one for each split."""

    def __init__(self, path: Path, split: str) -> None:
        self.path = path
        try:
            tree = json.loads(_text(path.read_bytes(), str(path)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not JSON ({error}); a file with an object a line ends in .jsonl") from error
        self._rows = _array(path, tree, split)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Sequence[int]) -> Iterator[Found]:
        for n in rows:
            where = f"{self.path}:{n + 1}"
            yield where, _object(where, self._rows[n])


class JsonlRows:
    """JSON lines. Only the lines' places and numbers are kept, eight bytes each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._lines, start = array("q"), array("q"), 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._starts.append(start)
                    self._lines.append(number)
                start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, rows: Sequence[int]) -> Iterator[Found]:
        with self.path.open("rb") as file:
            for n in rows:
                file.seek(self._starts[n])
                where = f"{self.path}:{self._lines[n]}"
                yield where, _parsed(where, file.readline())


class ParquetRows:
    """A Parquet file, of which a row group at a time is in memory."""

    def __init__(self, path: Path) -> None:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        self.path = path
        try:
            self._file = ParquetFile(path)
        except (OSError, ArrowException) as error:
            raise DataError(f"{path}: not Parquet ({error})") from error
        groups = range(self._file.num_row_groups)
        sizes = [self._file.metadata.row_group(group).num_rows for group in groups]
        self._ends = list(itertools.accumulate(sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, rows: Sequence[int]) -> Iterator[Found]:
        from pyarrow import ArrowException

        loaded, table = -1, None
        for n in rows:
            group = bisect.bisect_right(self._ends, n)
            if group != loaded:
                try:
                    loaded, table = group, self._file.read_row_group(group)
                except (OSError, ArrowException) as error:
                    raise DataError(f"{self.path}: row group {group + 1} cannot be read ({error})") from error
            assert table is not None
            first = self._ends[group] - table.num_rows
            (row,) = table.slice(n - first, 1).to_pylist()
            yield f"{self.path}:{n + 1}", row


class ArrowRows:
    """An Arrow file as `save_to_disk` of `datasets` writes it, mapped into memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        try:
            with path.open("rb") as file:
                whole = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self._table = pa.ipc.open_stream(whole).read_all()
        except (OSError, ValueError) as error:  # pyarrow's own errors are among these
            raise DataError(f"{path}: not an Arrow stream ({error})") from error

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def read(self, rows: Sequence[int]) -> Iterator[Found]:
        for n in rows:
            (row,) = self._table.slice(n, 1).to_pylist()
            yield f"{self.path}:{n + 1}", row


class JoinedRows:
    """Several files, one after the other."""

    def __init__(self, files: Sequence[RowFile]) -> None:
        self.files = files
        self._ends = list(itertools.accumulate(map(len, files)))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, rows: Sequence[int]) -> Iterator[Found]:
        """These rows, in this order; those that stand in one file one after the other are read together."""
        for file, group in itertools.groupby(rows, key=lambda n: bisect.bisect_right(self._ends, n)):
            first = self._ends[file] - len(self.files[file])
            yield from self.files[file].read([n - first for n in group])


def open_file(path: Path, format: str, split: str) -> RowFile:
    """The rows of a file.

    Args:
        format: json, jsonl or parquet; auto goes by the ending.
        split: which list of a JSON object that has one for each.

    Raises:
        DataError: not there, of no known format, or not of the one that is named.
    """
    if not path.is_file():
        raise DataError(f"no file at {path.absolute()}; {nearest_path(path)}")
    kind = path.suffix.lower().removeprefix(".") if format == "auto" else format
    try:
        if kind == "json" and not _is_lines(path):
            return JsonRows(path, split)
        if kind in ("json", "jsonl"):
            return JsonlRows(path)
        if kind == "parquet":
            return ParquetRows(path)
        if kind == "arrow":
            return ArrowRows(path)
    except OSError as error:
        raise DataError(f"{path.absolute()} cannot be read: {error.strerror}") from error
    raise DataError(
        f"{path}: rows are read from .json (a list of objects), .jsonl (an object a line) and .parquet; if it is one of these, "
        "say so by `format`"
    )


def _is_lines(path: Path) -> bool:
    """Whether a file called .json has an object a line: its first line is one, and there are others."""
    with path.open("rb") as file:
        first, more = file.readline(), file.readline()
    if not (first.strip().startswith(b"{") and more.strip()):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _array(path: Path, tree: Any, split: str) -> list[Any]:
    if isinstance(tree, Mapping):
        lists = {name: value for name, value in tree.items() if isinstance(value, list)}
        if split in lists:
            return list(lists[split])
        if _SPLIT_NAMES & lists.keys():
            raise DataError(
                f"{path}: holds the splits {', '.join(lists)}, and none called {split}; give one as `split`"
            )
        if len(lists) == 1:
            return list(next(iter(lists.values())))
    if not isinstance(tree, list):
        raise DataError(f"{path}: {shown(tree)} is no list of objects")
    return tree


def _parsed(where: str, line: bytes) -> dict[str, Any] | DataError:
    try:
        return _object(where, json.loads(_text(line, where)))
    except DataError as error:
        return error
    except (ValueError, RecursionError) as error:
        return DataError(f"{where}: not a JSON object ({error}); each line is one")


def _object(where: str, value: Any) -> dict[str, Any] | DataError:
    if not isinstance(value, dict):
        return DataError(f"{where}: {shown(value)} is a {type(value).__name__}, not an object of columns")
    return value


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte 0x{raw[error.start]:02x}); save the file as UTF-8") from error
