"""What a row's values must be, whatever file they come from."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config.base import UserError
from wire.containers import media_type_of, other_type_of

MAX_ID_LENGTH = 200  # a sample's id is the prompt's and a number, and the wire carries 256 characters
MAX_PROMPT_LENGTH = 65_536
MAX_TARGETS = 256  # and below: what the reward services take
MAX_TARGET_LENGTH = 4096
MAX_METADATA_DEPTH = 32
MAX_SOURCE_IMAGES = 8
MAX_IMAGE_BYTES = 32 * 1024 * 1024
_MANY = 10_000
_FOLDERS_LOOKED_INTO = 100
_RULE = "relative paths count from the prompt file's folder or `images` in it, or from the data set's `image_dir`"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

_NO_TEXT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
)  # control characters but tab and line feed; half characters


_HALF = re.compile("[\ud800-\udfff]")


class DataError(UserError, ValueError):
    """Prompts cannot be used; the message names the file, the line, the field and the remedy."""


def check_text(where: str, value: Any, longest: int = MAX_PROMPT_LENGTH) -> str:
    """`value`, if it is a text that can be drawn, logged and sent."""
    if not isinstance(value, str):
        raise DataError(f"{where}: {shown(value)} is a {type(value).__name__}, not a text; put it in double quotes")
    text: str = value.replace("\r\n", "\n")  # a line end of Windows inside a text
    if not text.strip():
        raise DataError(f"{where}: the text is empty; write one or leave the row out")
    if len(text) > longest:
        raise DataError(f"{where}: {len(text)} characters are more than {longest}; shorten it")
    if (found := _NO_TEXT.search(text)) is not None:
        raise DataError(
            f"{where}: the character U+{ord(found[0]):04X} does not belong in a text; is this a prompt file in UTF-8?"
        )
    return text


def check_targets(where: str, value: Any) -> tuple[str, ...] | None:
    """The texts OCR looks for; None where none are given."""
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise DataError(f'{where}: {shown(value)} is not a list of texts like ["SALE"]; leave it out for none')
    if len(value) > MAX_TARGETS:
        raise DataError(f"{where}: {len(value)} texts are more than {MAX_TARGETS}; leave some out")
    return tuple(check_text(f"{where}[{i}]", target, MAX_TARGET_LENGTH) for i, target in enumerate(value))


def check_metadata(where: str, value: Any) -> dict[str, Any]:
    """An object that travels as JSON, which has no infinity and no half characters."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f'{where}: {shown(value)} is not an object like {{"color": "red"}}')
    _check_json(where, value, 0)
    return value


def _check_json(where: str, value: Any, depth: int) -> None:
    if depth > MAX_METADATA_DEPTH:
        raise DataError(f"{where}: nested deeper than {MAX_METADATA_DEPTH} levels; make it flatter")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not _is_plain(key):
                _check_json(where, key, depth)
            if depth == MAX_METADATA_DEPTH or not _is_plain(inner):
                _check_json(f"{where}.{key}", inner, depth + 1)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            if depth == MAX_METADATA_DEPTH or not _is_plain(inner):
                _check_json(f"{where}[{i}]", inner, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where}: {value} is not a finite number; use null or leave it out")
    elif isinstance(value, str) and _HALF.search(value):
        raise DataError(f"{where}: half a surrogate pair is not text; save the file as UTF-8")
    elif not isinstance(value, str | int | float | None):  # a date or bytes of a table
        raise DataError(
            f"{where}: {shown(value)} is a {type(value).__name__}, which JSON does not have; make it a text"
        )


def _is_plain(value: Any) -> bool:
    """Whether it is seen at once, and before its place is written out, that JSON has such a value."""
    return value is None or type(value) is int or type(value) is bool or (type(value) is str and value.isascii())


def check_images(where: str, value: Any, folders: Sequence[Path]) -> tuple[str, ...]:
    """The paths of an edit's source images, which are there; relative ones count from the first of `folders` with them."""
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        raise DataError(f'{where}: {shown(value)} is not a list of paths like ["cat.png"]; leave it out for none')
    if len(value) > MAX_SOURCE_IMAGES:
        raise DataError(f"{where}: {len(value)} images are more than {MAX_SOURCE_IMAGES}; leave some out")
    return tuple(check_image(f"{where}[{i}]", name, folders) for i, name in enumerate(value))


def check_image(
    where: str, name: Any, folders: Sequence[Path], *, rule: str = _RULE, setting: str = "the data set's `image_dir`"
) -> str:
    """The path of one image, likewise.

    Args:
        rule: what a message says of where relative paths count from.
        setting: the field that names the folder.
    """
    text = check_text(where, name)
    if Path(text).suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{where}: {shown(name)} ends in none of {', '.join(IMAGE_SUFFIXES)}")
    tried = list(dict.fromkeys(folder / text for folder in folders))
    for path in tried:
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise DataError(f"{where}: {path.absolute()} cannot be read: {error.strerror}") from error
        if size is None:
            continue
        if not 0 < size <= MAX_IMAGE_BYTES:
            raise DataError(f"{where}: {path} has {size} bytes; it must have 1 to {MAX_IMAGE_BYTES}")
        _check_type(where, path)
        return str(path)
    places = " or ".join(str(path.absolute()) for path in tried)
    remedy = rule
    if elsewhere := _near(text, folders[0]):
        remedy = f"it is in {elsewhere}: set {setting} to that"
    raise DataError(f"{where}: no image at {places}; {remedy}")


def _near(name: str, folder: Path) -> Path | None:
    """A folder inside `folder`, or beside it, that has a file of this name."""
    for above in (folder, folder.absolute().parent):
        try:
            inside = sorted(path for path in above.iterdir() if path.is_dir())
        except OSError:
            continue  # not ours to read: the hint is left out
        for path in inside[:_FOLDERS_LOOKED_INTO]:
            if (path / name).is_file():
                return path
    return None


def _check_type(where: str, path: Path) -> None:
    """By the first bytes: files are renamed more often than they are converted."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise DataError(f"{where}: {path.absolute()} cannot be read: {error.strerror}") from error
    if media_type_of(head) is None:
        kind = other_type_of(head)
        begins = "does not begin as an image does" if kind is None else f"begins as {kind} does"
        raise DataError(f"{where}: {path} {begins}; save it as PNG, JPEG or WebP, whatever the file is called")


def shown(value: Any) -> str:
    """A value as a message quotes it: cut when long, and not written out where it has very many parts."""
    if not _is_small(value):
        return f"{type(value).__name__} of {len(value)} entries"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_small(value: Any) -> bool:
    """Whether it has at most 10,000 parts: lists that share lists can say as many as would fill the memory."""
    left, count = [value], 0
    while left and count <= _MANY:
        each = left.pop()
        count += 1
        if isinstance(each, list | tuple | dict):
            left += each.values() if isinstance(each, dict) else each
    return not left
