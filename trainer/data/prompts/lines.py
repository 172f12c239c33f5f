"""Files with a prompt a line: .txt, our own .jsonl and the .jsonl of other trainers."""

from __future__ import annotations

import codecs
import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from trainer.config.paths import nearest_path
from trainer.data.prompts.checks import DataError, shown
from trainer.data.prompts.fields import TEXTS, holds_input, split_row, text_column
from wire.quotes import quoted_texts

FIELDS = ("prompt", "id", "targets", "metadata", "source_images", "negative_prompt")
_FOREIGN_SHAPES = ({"caption"}, {"key"}, {"tag", "include"})  # fields of others that are no slip in ours
_OTHER_TEXTS = ("Prompt", "PROMPT", *TEXTS[0][1:], *TEXTS[1])
_PAIR = {"generate_ann", "understand_ann"}
_BLOCK = 1 << 18  # bytes
_LIKE = '{"prompt": "..."}'

Split = Literal["train", "test"]
SPLITS: Mapping[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "validation", "val", "eval", "dev")}
_ALL_SPLITS = {name for names in SPLITS.values() for name in names}

Rows = Iterator[tuple[int, Mapping[str, Any]]]  # line and unchecked values, under the names of FIELDS


def refuse_missing(path: Path) -> NoReturn:
    """Raises DataError about a file or folder of prompts that is not there."""
    raise DataError(
        f"no prompt file at {path.absolute()}; {nearest_path(path)} (`path` counts from the working "
        "directory, and in a file of DeepGen-RL's from that file)"
    )


def read_text(path: Path) -> str:
    """A whole UTF-8 file, without a byte-order mark. Raises DataError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        refuse_missing(path)
    except OSError as error:
        raise DataError(f"{path.absolute()} cannot be read: {error.strerror}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
        ) from error


def check_utf8(path: Path) -> None:
    """Raises DataError as `read_text` does, without holding the file."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except (OSError, UnicodeDecodeError):
        read_text(path)  # it names the place


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers. Only a line feed ends one. Raises DataError before the first, as `read_text` does."""
    check_utf8(path)
    return _lines(path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number, rest = 0, b""
    with path.open("rb") as file:
        file.seek(len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0)
        while block := file.read(_BLOCK):
            whole, end, rest = (rest + block).rpartition(b"\n")
            if end:
                for number, line in enumerate(whole.decode().split("\n"), start=number + 1):  # noqa: B020
                    if line := line.strip():
                        yield number, line
    if line := rest.decode().strip():
        yield number + 1, line


def first_line(path: Path) -> str:
    """The first line that is not blank; empty without one."""
    return next((line for _, line in lines(path)), "")


def read_txt(path: Path) -> Rows:
    """A prompt a line."""
    return ((number, {"prompt": line}) for number, line in lines(path))


def read_quoting_txt(path: Path) -> Rows:
    """A prompt a line; the texts it quotes are what OCR looks for, those in straight double quotes first, as in
    flow_grpo's `ocr` folder.
    """
    for number, line in lines(path):
        yield number, {"prompt": line, "targets": quoted_texts(line, straight_first=True) or None}


def read_jsonl(path: Path) -> Rows:
    """Our own rows: a field that is none of ours is refused."""
    for number, line in lines(path):
        row = _parse_object(f"{path}:{number}", line)
        check_fields(f"{path}:{number}", row)
        yield number, row


def check_fields(where: str, row: Mapping[str, Any]) -> None:
    """Raises DataError where a row of ours has a field that is none of FIELDS."""
    for key in row:
        if key not in FIELDS:
            raise DataError(f"{where}: {key}: unknown field; a row has {', '.join(FIELDS)}; {_hint(key, row)}")


def _hint(key: str, row: Mapping[str, Any]) -> str:
    """The remedy for a field that is none of ours."""
    if row.keys() & _PAIR:
        return "this is a pair, which `format: pairs` reads, in data.train or evaluation.sets"
    if near := difflib.get_close_matches(key, FIELDS, n=1):
        return f"did you mean {near[0]!r}?"
    return "anything for the rewards goes into `metadata`, and `format: rows` reads other projects' files"


def read_rows(path: Path, prompt_column: str | None = None) -> Rows:
    """Other projects' rows, a JSON object a line."""
    for number, line in lines(path):
        row = _parse_object(f"{path}:{number}", line)
        yield number, split_at(f"{path}:{number}", row, prompt_column)


def read_json(path: Path, prompt_column: str | None = None, split: Split = "train") -> Rows:
    """A JSON list of prompts or of objects, an object of either by name, an object with one such list, or one with a list
    for each split.

    Rows are numbered from 1. A file with an object a line is read as `rows`.
    """
    text = read_text(path)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and len(text.strip().splitlines()) > 1:
            yield from read_rows(path, prompt_column)
            return
        raise DataError(
            f"{path}: not JSON ({error}); it holds a list of prompts, or of objects like {_LIKE}"
        ) from error
    for number, entry in enumerate(_entries(path, tree, split), start=1):
        if isinstance(entry, dict):
            yield number, split_at(f"{path}:{number}", entry, prompt_column)
        else:
            yield number, {"prompt": entry}


def _entries(path: Path, tree: Any, split: Split) -> list[Any]:
    """The prompts of a parsed file, each a text or an object."""
    if isinstance(tree, dict):
        tree = _of_split(path, tree, split)
    if isinstance(tree, dict):
        values = list(tree.values())
        lists = [value for value in values if isinstance(value, list)]
        by_name = all(isinstance(value, dict) for value in values) or all(isinstance(value, str) for value in values)
        if text_column(tree) is not None and not lists:
            tree = [tree]
        elif len(lists) == 1:
            tree = lists[0]
        elif values and by_name:
            tree = values
    if not isinstance(tree, list) or not all(isinstance(entry, str | dict) for entry in tree):
        raise DataError(
            f"{path}: holds no list of prompts, or of objects like {_LIKE}; format: jsonl reads an object a line"
        )
    return tree


def _of_split(path: Path, tree: Mapping[str, Any], split: Split) -> Any:
    """What an object holds for this split, where it holds something for each; else the object itself."""
    parts = {
        name.lower(): value
        for name, value in tree.items()
        if name.lower() in _ALL_SPLITS and isinstance(value, list | dict)
    }
    lists = [value for value in tree.values() if isinstance(value, list)]
    if not parts or (len(parts) < len(tree) and len(lists) < 2):
        return tree
    for name in SPLITS[split]:
        if name in parts:
            return parts[name]
    if len(parts) == 1:
        return next(iter(parts.values()))
    raise DataError(f"{path}: holds prompts for {', '.join(parts)}, and none for {' or '.join(SPLITS[split])}")


def split_at(where: str, row: Mapping[str, Any], prompt_column: str | None) -> dict[str, Any]:
    """`split_row`, its errors with the row's place."""
    try:
        return split_row(row, prompt_column)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def is_foreign(path: Path) -> bool:
    """Whether the first row of a .jsonl file has the shape of another project's rather than a slip in one of ours."""
    try:
        row = json.loads(first_line(path) or "{}")
    except (ValueError, RecursionError):
        return False
    if not isinstance(row, dict):
        return False
    by_other_name = "prompt" not in row and any(name in row for name in _OTHER_TEXTS)
    with_inputs = any(holds_input(name, value) for name, value in row.items() if name not in FIELDS)
    return by_other_name or with_inputs or any(shape <= row.keys() for shape in _FOREIGN_SHAPES)


def _parse_object(where: str, line: str) -> dict[str, Any]:
    """A line's JSON object, whose values are still unchecked."""
    try:
        # A mark of the byte order inside a file has a message of its own there.
        row = json.loads(line) if line.startswith("\ufeff") else _UNIQUE.decode(line)
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


_UNIQUE = json.JSONDecoder(object_pairs_hook=_unique_keys)  # `json.loads` would make one for each line
