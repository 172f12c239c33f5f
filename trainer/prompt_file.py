"""Reads prompt files, and refuses what is wrong in one with the line, the field and the remedy.

A `.txt` file has a prompt a line; blank lines are skipped and a line that comes again is dropped with a warning. A
`.jsonl` file has a JSON object a line: `prompt`, and if wanted `id`, `targets` (texts OCR looks for) and `metadata` (an
object, handed to the rewards). Both are UTF-8; a byte-order mark, CRLF and blank lines do no harm. Paths count from the
working directory. A prompt without an id is called `<data set>-<hash of its text>`, so it keeps its id when the file is
sorted or grows.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.types import Prompt

logger = logging.getLogger(__name__)

MAX_ID_LENGTH = 200  # a sample's id is the prompt's and a number, and the wire carries 256 characters
MAX_PROMPT_LENGTH = 65_536
MAX_METADATA_DEPTH = 32
_ROW_FIELDS = ("prompt", "id", "targets", "metadata")


class DataError(ValueError):
    """Prompts cannot be used; the message names the file, the line, the field and the remedy."""


@dataclass(frozen=True)
class PromptFile:
    """A prompt file as read: `lines[i]` is the 1-based line of `prompts[i]`; `repeated` counts dropped .txt lines."""

    path: Path
    prompts: tuple[Prompt, ...]
    lines: tuple[int, ...]
    repeated: int = 0


def read_prompt_file(path: str | Path, *, dataset: str, weights: Mapping[str, float] | None = None) -> PromptFile:
    """Read and check a whole prompt file.

    Raises:
        DataError: no such file, neither .txt nor .jsonl, not UTF-8, without a prompt, a line that is not a JSON object,
            an unknown or missing field, a value of the wrong type, a control character, or an id that comes twice.
    """
    path = Path(path)
    is_text = path.suffix.lower() == ".txt"
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise DataError(f"{path}: a prompt file ends in .txt (a prompt a line) or .jsonl (a JSON object a line)")
    lines = [(n, line) for n, line in enumerate(_read_text(path).split("\n"), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{path} holds no prompt: write one a line")
    prompts: dict[str, Prompt] = {}
    places: dict[str, int] = {}
    repeated = 0
    for number, line in lines:
        where = f"{path}:{number}"
        row = {"prompt": line.strip()} if is_text else _parse_row(where, line.strip())
        prompt = _make_prompt(where, row, dataset, weights or {})
        if prompt.id not in prompts:
            prompts[prompt.id], places[prompt.id] = prompt, number
        elif is_text:
            repeated += 1
            logger.warning("%s: the prompt of line %d again; it is drawn once an epoch", where, places[prompt.id])
        else:
            raise _twice(where, places[prompt.id], prompt.id, explicit=row.get("id") is not None)
    return PromptFile(path, tuple(prompts.values()), tuple(places.values()), repeated)


def _twice(where: str, first: int, name: str, *, explicit: bool) -> DataError:
    if explicit:
        return DataError(f"{where}: id: {name!r} is already on line {first}; give each row an id of its own")
    return DataError(
        f"{where}: prompt: the same text without an id is on line {first}; drop one of them, or give each an `id`"
    )


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            f"no prompt file at {path.absolute()}; paths count from the working directory: correct `path`"
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


def _parse_row(where: str, line: str) -> dict[str, Any]:
    """A line's JSON object, whose values are still unchecked."""
    try:
        row = json.loads(line, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not a JSON object ({error}); each line is {{'prompt': ...}}, in double quotes"
        ) from error
    if not isinstance(row, dict):
        raise DataError(f'{where}: a JSON {type(row).__name__} where an object like {{"prompt": "..."}} belongs')
    for key in row:
        if key not in _ROW_FIELDS:
            near = difflib.get_close_matches(key, _ROW_FIELDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "anything for the rewards goes into `metadata`"
            raise DataError(f"{where}: {key}: unknown field; a row has {', '.join(_ROW_FIELDS)}; {hint}")
    return row


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} comes twice")
    return row


def _make_prompt(where: str, row: Mapping[str, Any], dataset: str, weights: Mapping[str, float]) -> Prompt:
    if row.get("prompt") is None:
        raise DataError(f"{where}: prompt: missing; every row needs one")
    text = _text(f"{where}: prompt", row["prompt"], MAX_PROMPT_LENGTH)
    if row.get("id") is None:
        name = f"{dataset}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    else:
        name = _text(f"{where}: id", row["id"], MAX_ID_LENGTH)
    targets = row.get("targets")
    if targets is not None:
        if not isinstance(targets, list) or not targets:
            raise DataError(
                f'{where}: targets: {_shown(targets)} is not a list of texts like ["SALE"]; leave it out for none'
            )
        targets = tuple(_text(f"{where}: targets[{i}]", t, MAX_PROMPT_LENGTH) for i, t in enumerate(targets))
    metadata = row.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise DataError(f'{where}: metadata: {_shown(metadata)} is not an object like {{"color": "red"}}')
    _check_metadata(f"{where}: metadata", metadata)
    return Prompt(name, text, dataset, weights, targets, metadata or {})


def _text(where: str, value: Any, longest: int) -> str:
    """`value`, if it is a text that can be drawn, logged and sent."""
    if not isinstance(value, str):
        raise DataError(f"{where}: {_shown(value)} is a {type(value).__name__}, not a text; put it in double quotes")
    if not value.strip():
        raise DataError(f"{where}: the text is empty; write one or leave the row out")
    if len(value) > longest:
        raise DataError(f"{where}: {len(value)} characters are more than {longest}; shorten it")
    for character in value:
        if character not in "\t\n" and unicodedata.category(character) in ("Cc", "Cs"):
            raise DataError(
                f"{where}: the character U+{ord(character):04X} does not belong in a text; is this a prompt file in UTF-8?"
            )
    return value


def _check_metadata(where: str, value: Any, depth: int = 0) -> None:
    """Metadata travels as JSON, which has no infinity and no half characters."""
    if depth > MAX_METADATA_DEPTH:
        raise DataError(f"{where}: nested deeper than {MAX_METADATA_DEPTH} levels; make it flatter")
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_metadata(where, key, depth)
            _check_metadata(f"{where}.{key}", inner, depth + 1)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _check_metadata(f"{where}[{i}]", inner, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where}: {value} is not a finite number; use null or leave it out")
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: half a surrogate pair is not text; save the file as UTF-8")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
