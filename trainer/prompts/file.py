"""Reads a prompt file or folder of any format into prompts with stable ids."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.config.data import PromptFormat
from trainer.prompts.checks import (
    MAX_ID_LENGTH,
    DataError,
    check_images,
    check_metadata,
    check_targets,
    check_text,
)
from trainer.prompts.lines import Rows, is_foreign, read_jsonl, read_quoting_txt, read_rows, read_txt
from trainer.prompts.tables import read_csv, read_parquet
from trainer.types import Prompt

Split = Literal["train", "test"]

logger = logging.getLogger(__name__)

_SHOWN_WARNINGS = 3
_FOLDERS: dict[PromptFormat, str] = {"flow_grpo_text": "{}.txt", "flow_grpo_metadata": "{}_metadata.jsonl"}


@dataclass(frozen=True)
class PromptFile:
    """A prompt file as read.

    Attributes:
        path: the file; of a folder, the one that was read.
        prompts: with ids that are unique in the file.
        lines: `lines[i]` is the 1-based line of `prompts[i]` (in Parquet: its row).
        repeated: rows that say nothing new and were dropped.
        skipped: a sentence for each row of a table that could not be used.
    """

    path: Path
    prompts: tuple[Prompt, ...]
    lines: tuple[int, ...]
    repeated: int = 0
    skipped: tuple[str, ...] = ()


def read_prompt_file(
    path: str | Path,
    *,
    dataset: str,
    weights: Mapping[str, float] | None = None,
    format: PromptFormat = "auto",
    split: Split = "train",
) -> PromptFile:
    """Read and check a whole prompt file; what the formats hold is said in trainer/prompts/__init__.py.

    A prompt without an id is called `<data set>-<hash of what it says>`, so it keeps its id when the file is sorted or
    grows. Our own .jsonl may not say the same twice; in all other files a repetition is dropped with a warning.

    Args:
        split: which file of a folder.

    Raises:
        DataError: no such file, of no known format, not UTF-8, without a prompt, a row that is not what it should be, a
            value of the wrong type, a control character, an image that is not there, or an id that comes twice.
    """
    path, format = _resolve(Path(path), format, split)
    skipped: list[str] = []
    prompts: dict[str, Prompt] = {}
    lines: dict[str, int] = {}
    repeats: list[str] = []
    for line, row in _rows(path, format, dataset, skipped):
        prompt = _make_prompt(f"{path}:{line}", row, path.parent, dataset, weights or {}, closed=format == "jsonl")
        if prompt.id not in prompts:
            prompts[prompt.id], lines[prompt.id] = prompt, line
        elif format == "jsonl":
            raise _twice(f"{path}:{line}", lines[prompt.id], prompt.id, explicit=row.get("id") is not None)
        else:
            repeats.append(f"{path}:{line}: the prompt of line {lines[prompt.id]} again; it is drawn once an epoch")
    _warn(repeats)
    _warn([f"{problem}; the row is left out" for problem in skipped])
    if not prompts:
        first = (
            f"; its {len(skipped)} rows cannot be used, the first: {skipped[0]}" if skipped else ": write one a line"
        )
        raise DataError(f"{path} holds no prompt{first}")
    return PromptFile(path, tuple(prompts.values()), tuple(lines.values()), len(repeats), tuple(skipped))


def is_own(path: str | Path, format: PromptFormat, split: Split) -> bool:
    """Whether a file is of a format of our own, with a prompt a line, rather than another project's. Raises DataError."""
    return _resolve(Path(path), format, split)[1] in ("txt", "jsonl")


def _resolve(path: Path, format: PromptFormat, split: Split) -> tuple[Path, PromptFormat]:
    """The file that is read and its format."""
    if format in _FOLDERS:
        return path / _FOLDERS[format].format(split), format
    if format != "auto":
        return path, format
    by_suffix: dict[str, PromptFormat] = {".txt": "txt", ".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
    known = by_suffix.get(path.suffix.lower())
    if known is None and path.is_dir():
        found = [name for name, pattern in _FOLDERS.items() if (path / pattern.format(split)).is_file()]
        if len(found) != 1:
            files = " or ".join(pattern.format(split) for pattern in _FOLDERS.values())
            both = "; it holds both: choose one by `format`" if found else ""
            raise DataError(f"{path.absolute()} is a folder, and a folder of prompts holds {files}{both}")
        return path / _FOLDERS[found[0]].format(split), found[0]
    if known is None:
        raise DataError(
            f"{path}: a prompt file ends in .txt (a prompt a line), .jsonl (a JSON object a line), .csv or .parquet; if "
            "it is one of these, say so by `format`"
        )
    return path, "rows" if known == "jsonl" and is_foreign(path) else known


def _rows(path: Path, format: PromptFormat, dataset: str, skipped: list[str]) -> Rows:
    if format == "csv":
        return read_csv(path, dataset, skipped)
    readers = {
        "txt": read_txt,
        "jsonl": read_jsonl,
        "rows": read_rows,
        "parquet": read_parquet,
        "flow_grpo_text": read_quoting_txt,
        "flow_grpo_metadata": read_rows,
    }
    return readers[format](path)


def _make_prompt(
    where: str, row: Mapping[str, Any], folder: Path, dataset: str, weights: Mapping[str, float], *, closed: bool
) -> Prompt:
    """A checked row as a prompt. In a closed format, equal texts are the same prompt whatever their metadata says."""
    if row.get("prompt") is None:
        raise DataError(f"{where}: prompt: missing; every row needs one")
    text = check_text(f"{where}: prompt", row["prompt"])
    images = check_images(f"{where}: source_images", row.get("source_images"), folder)
    metadata = check_metadata(f"{where}: metadata", row.get("metadata"))
    if row.get("id") is not None:
        name = check_text(f"{where}: id", row["id"], MAX_ID_LENGTH)
    else:
        more = [row.get("source_images") or [], {} if closed else metadata]
        whole = json.dumps([text, *more], sort_keys=True) if any(more) else text
        name = f"{dataset}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"
    targets = check_targets(f"{where}: targets", row.get("targets"))
    return Prompt(name, text, dataset, weights, targets, metadata, images)


def _twice(where: str, first: int, name: str, *, explicit: bool) -> DataError:
    if explicit:
        return DataError(f"{where}: id: {name!r} is already on line {first}; give each row an id of its own")
    return DataError(
        f"{where}: prompt: the same text without an id is on line {first}; drop one of them, or give each an `id`"
    )


def _warn(sentences: Sequence[str]) -> None:
    for sentence in sentences[:_SHOWN_WARNINGS]:
        logger.warning("%s", sentence)
    if len(sentences) > _SHOWN_WARNINGS:
        logger.warning("%d more like the last one", len(sentences) - _SHOWN_WARNINGS)
