"""Rows of JSON files of any size: only where each begins is kept, and a row is parsed when it is asked for."""

from __future__ import annotations

import bisect
import codecs
import io
import json
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from trainer.config.paths import nearest_path
from trainer.data.prompts.checks import DataError, shown

_WINDOW = 1 << 18  # bytes that are looked through at once
_DEEPEST = 6  # lists and objects inside a row
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_SPACE = re.compile(rb"[ \t\r\n]*+")


def _value() -> re.Pattern[bytes]:
    """A JSON value by its brackets and quotes alone: whether what is between them is JSON is seen when it is parsed."""
    plain = rb'[^"\[\]{}]++|' + _STRING
    body = rb"(?:" + plain + rb")*+"
    for _ in range(_DEEPEST):
        body = rb"(?:" + plain + rb"|\{" + body + rb"\}|\[" + body + rb"\])*+"
    return re.compile(rb"\{" + body + rb"\}|\[" + body + rb"\]|" + _STRING + rb'|[^"\[\]{},\s]++', re.DOTALL)


_VALUE = _value()
_ROW = re.compile(rb"[ \t\r\n]*+(" + _VALUE.pattern + rb")[ \t\r\n]*+,", re.DOTALL)  # and the comma, as mostly


class OffsetRows:
    """The rows of a file: a JSON array of objects, or JSON lines, told apart by the first character.

    16 bytes a row are kept. An array of 1 000 000 rows is looked through once, at about the speed at which it would be parsed.

    Args:
        path: the file, in UTF-8.
        lists: whether a row may itself be a list of rows, each of which is a row then. A file that ends in .jsonl and whose
            first line is a whole list is JSON lines then, not an array.

    Raises:
        DataError: no file, no row, or an array with a row that has no end: what stands behind it cannot be found.
    """

    def __init__(self, path: Path, *, lists: bool = False) -> None:
        if os.path.isdir(path):
            raise DataError(f"{path.absolute()} is a folder; name the file with the rows in it")
        if not os.path.isfile(path):  # also where the name is longer than the system allows
            raise DataError(f"no file at {path.absolute()}; {nearest_path(path)}")
        self.path = path
        self._lists = lists
        self._between = b" \t\r\n"  # what may stand behind a row, before the next one begins
        self._starts = array("q")  # bytes; one more than there are rows: where the last one ends
        self._numbers = array("q")  # from 1, of the row in the array, or of its line
        try:
            with path.open("rb") as file:
                self._find(file)
        except OSError as error:
            raise DataError(f"{path.absolute()} cannot be read: {error.strerror}") from error
        if not len(self):
            raise DataError(f"{path}: holds no row")

    def __len__(self) -> int:
        return max(len(self._starts) - 1, 0)

    def where(self, number: int) -> str:
        """The place of row `number`, from 0, for messages: data.json:7 is the array's row 7, or line 7; data.json:7[0] the first
        of the list that stands there."""
        own = self._numbers[number]
        first, last = bisect.bisect_left(self._numbers, own), bisect.bisect_right(self._numbers, own)
        return f"{self.path}:{own}" + (f"[{number - first}]" if last - first > 1 else "")

    def row(self, number: int) -> dict[str, Any]:
        """Row `number`, from 0, parsed anew each time. Raises DataError: it is no JSON object, or the file cannot be read."""
        where = self.where(number)
        try:
            with self.path.open("rb") as file:
                file.seek(self._starts[number])
                raw = file.read(self._starts[number + 1] - self._starts[number])
        except OSError as error:
            raise DataError(f"{self.path.absolute()} cannot be read: {error.strerror}") from error
        found = _VALUE.match(raw)
        # What else stands there makes the row wrong, so that the parser is to see it.
        text = raw.strip() if found is None or raw[found.end() :].strip(self._between) else found.group()
        try:
            value = json.loads(text.decode(), object_pairs_hook=_once)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: not UTF-8 text (byte 0x{text[error.start]:02x}); save the file as UTF-8"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not a JSON object ({error}); correct the row or leave it out") from error
        if not isinstance(value, dict):
            raise DataError(f"{where}: {shown(value)} is a {type(value).__name__}, not an object of fields")
        return value

    def _find(self, file: BinaryIO) -> None:
        head = file.read(_WINDOW)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{self.path}: not UTF-8 text but UTF-16; save the file as UTF-8")
        mark = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        first = _SPACE.match(head, mark).end()  # type: ignore[union-attr]  # it matches no space, too
        is_array = head[first : first + 1] == b"[" and not self._is_lines(head[first:])
        self._between += b",]" * (is_array or self._lists) + b"[" * self._lists
        if is_array:
            self._keep_all(str(self.path), file, first)
        else:
            self._refuse_spread(head[first:])
            file.seek(mark)
            self._keep_lines(file, mark)

    def _is_lines(self, head: bytes) -> bool:
        """Whether a file that begins with a bracket has a list a line."""
        if not self._lists or self.path.suffix.lower() != ".jsonl":
            return False
        try:
            return isinstance(json.loads(head.split(b"\n", 1)[0]), list)
        except ValueError:
            return False

    def _refuse_spread(self, head: bytes) -> None:
        """Raises DataError where an object goes over several lines, each of which would be a broken row."""
        whole = head if len(head) < _WINDOW else head[: head.rfind(b"\n") + 1]  # the last line may go on
        first = [line.strip() for line in whole.split(b"\n") if line.strip()][:2]
        if len(first) == 2 and first[0].startswith(b"{") and not any(map(_is_json, first)):
            raise DataError(
                f"{self.path}: begins with an object over several lines, {shown(first[0].decode(errors='replace'))}; a file is an array of "
                "rows, or one row a line. Where the rows are in a field of it, save that list alone"
            )

    def _keep_lines(self, file: BinaryIO, start: int) -> None:
        for number, line in enumerate(file, start=1):
            if line.strip():
                inner = self._inside(line) if self._lists and line.lstrip().startswith(b"[") else [0]
                self._starts.extend(start + each for each in inner)
                self._numbers.extend([number] * len(inner))
            start += len(line)
        self._starts.append(start)

    def _keep_all(self, where: str, file: BinaryIO, start: int) -> None:
        end = start
        for number, (place, text) in enumerate(_elements(where, file, start), start=1):
            inner = self._inside(text) if self._lists and text.startswith(b"[") else [0]
            self._starts.extend(place + each for each in inner)
            self._numbers.extend([number] * len(inner))
            end = place + len(text)
        self._starts.append(end)

    def _inside(self, text: bytes) -> list[int]:
        """Where the rows of a list begin; the list's own beginning where it is no list of rows, so that the row is named."""
        try:
            places = [place for place, _ in _elements("", io.BytesIO(text), text.index(b"["))]
        except DataError:
            return [0]
        return places or [0]


def _elements(where: str, file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
    """Each element of the array that begins at byte `start`, with its place. Raises DataError: the array has no end."""
    file.seek(start + 1)
    base, window, at, count = start + 1, b"", 0, 0
    wanted = b"value]"  # what may come next: a value, a comma, the bracket that ends the array
    while True:
        while wanted != b",]" and (row := _ROW.match(window, at)) is not None:
            count += 1
            yield base + row.start(1), row[1]
            at, wanted = row.end(), b"value"
        at = _SPACE.match(window, at).end()  # type: ignore[union-attr]
        sign = window[at : at + 1]
        found = _VALUE.match(window, at) if sign and sign not in b",]" else None
        whole = sign in (b",", b"]") or (found is not None and found.end() < len(window))
        if not whole:  # what is looked for may end beyond the window
            more = file.read(max(_WINDOW, len(window) - at))
            base, window, at = base + at, window[at:] + more, 0
            if more:
                continue
        if sign and sign in b",]" and sign in wanted:
            at += 1
            if sign == b"]":
                break
            wanted = b"value"
        elif found is not None and wanted != b",]":
            count += 1
            yield base + at, found.group()
            at, wanted = at + len(found.group()), b",]"
        else:
            what = f"{shown(window[at : at + 20].decode(errors='replace'))} stands" if window[at:] else "the file ends"
            raise DataError(
                f"{where}: {what} at byte {base + at}, behind row {count}, where {'a comma or ]' if wanted == b',]' else 'a row'} "
                f"belongs: a quote or bracket before it may have no end, or lists lie in lists more than {_DEEPEST} deep. Correct it, or "
                "save one object a line, where only a broken line is lost"
            )
    rest = window[at:] + file.read()
    if rest.strip():
        raise DataError(
            f"{where}: {len(rest.strip())} bytes stand behind the array's end; leave them out, or, where each line is a list of rows, end "
            "the file's name in .jsonl"
        )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Raises ValueError: a field comes twice, of which one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} comes twice")
    return found
