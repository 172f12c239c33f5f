"""Files with a prompt a line: .txt, our own .jsonl and the .jsonl of other trainers."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.prompts.checks import DataError, shown
from wire.quotes import quoted_texts

FIELDS = ("prompt", "id", "targets", "metadata", "source_images")
_FOREIGN_SHAPES = ({"caption"}, {"key"}, {"image"}, {"tag", "include"})  # fields of others that are no slip in ours

Rows = Iterator[tuple[int, Mapping[str, Any]]]  # line and unchecked values, under the names of FIELDS


def read_text(path: Path) -> str:
    """A whole UTF-8 file, without a byte-order mark. Raises DataError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"no prompt file at {path.absolute()}; correct `path`: it counts from the working directory, and in a file of "
            "DeepGen-RL's from that file"
        ) from error
    except OSError as error:
        raise DataError(f"{path.absolute()} cannot be read: {error.strerror}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers. Only a line feed ends one."""
    return ((n, line.strip()) for n, line in enumerate(read_text(path).split("\n"), start=1) if line.strip())


def read_txt(path: Path) -> Rows:
    """A prompt a line."""
    return ((number, {"prompt": line}) for number, line in _lines(path))


def read_quoting_txt(path: Path) -> Rows:
    """A prompt a line; the texts it quotes are what OCR looks for, those in straight double quotes first, as in
    flow_grpo's `ocr` folder.
    """
    for number, line in _lines(path):
        yield number, {"prompt": line, "targets": quoted_texts(line, straight_first=True) or None}


def read_jsonl(path: Path) -> Rows:
    """Our own rows: a field that is none of ours is refused."""
    for number, line in _lines(path):
        row = _parse_object(f"{path}:{number}", line)
        for key in row:
            if key not in FIELDS:
                near = difflib.get_close_matches(key, FIELDS, n=1)
                hint = (
                    f"did you mean {near[0]!r}?"
                    if near
                    else "anything for the rewards goes into `metadata`, and `format: rows` reads other projects' files"
                )
                raise DataError(f"{path}:{number}: {key}: unknown field; a row has {', '.join(FIELDS)}; {hint}")
        yield number, row


def read_rows(path: Path) -> Rows:
    """Other trainers' rows: `prompt` or `caption`, `image` (what an edit starts from); everything else is metadata."""
    for number, line in _lines(path):
        row = _parse_object(f"{path}:{number}", line)
        yield number, split_row(row)


def split_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Another trainer's row under our names: the text, the image of an edit, and all the rest as metadata."""
    text = "prompt" if row.get("prompt") is not None else "caption"
    image = row.get("image")
    rest = {key: value for key, value in row.items() if key not in ("prompt", "caption", "image")}
    return {"prompt": row.get(text), "metadata": rest, "source_images": None if image is None else [image]}


def is_foreign(path: Path) -> bool:
    """Whether the first row of a .jsonl file has the shape of another trainer's rather than a slip in one of ours."""
    _, line = next(_lines(path), (0, "{}"))
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and any(shape <= row.keys() for shape in _FOREIGN_SHAPES)


def _parse_object(where: str, line: str) -> dict[str, Any]:
    """A line's JSON object, whose values are still unchecked."""
    try:
        row = json.loads(line, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not a JSON object ({error}); each line is {{'prompt': ...}}, in double quotes"
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f'{where}: a JSON {type(row).__name__} where an object like {{"prompt": "..."}} belongs: {shown(row)}'
        )
    return row


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} comes twice")
    return row
