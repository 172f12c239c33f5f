"""Reads a prompt file or folder of any format into prompts with stable ids."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.data import PromptFormat
from trainer.data.prompts.checks import (
    MAX_ID_LENGTH,
    DataError,
    check_images,
    check_metadata,
    check_targets,
    check_text,
)
from trainer.data.prompts.code import read_code
from trainer.data.prompts.detect import Found, detect
from trainer.data.prompts.lines import Rows, Split, read_json, read_jsonl, read_quoting_txt, read_rows, read_txt
from trainer.data.prompts.tables import read_csv, read_parquet
from trainer.types import Prompt

logger = logging.getLogger(__name__)

_SHOWN_WARNINGS = 3


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
    prompt_column: str | None = None,
    image_dir: str | None = None,
    delimiter: str | None = None,
) -> PromptFile:
    """Read and check a whole prompt file; what the formats hold is said in trainer/data/prompts/__init__.py.

    A prompt without an id is called `<data set>-<hash of what it says>`, so it keeps its id when the file is sorted or
    grows. Our own .jsonl may not say the same twice; in all other files a repetition is dropped with a warning.

    Args:
        split: which file of a folder.
        prompt_column: the field or column of the prompts, where it has another name than the known ones.
        image_dir: where relative names of images count from; None: the file's folder, or `images` in it.
        delimiter: what stands between the columns of a table; None: what its header shows.

    Raises:
        DataError: no such file, of no known format, not UTF-8, without a prompt, a row that is not what it should be, a
            value of the wrong type, a control character, an image that is not there, or an id that comes twice.
    """
    found = detect(Path(path), format, split, prompt_column=prompt_column, delimiter=delimiter)
    skipped: list[str] = []
    prompts: dict[str, Prompt] = {}
    places: dict[str, tuple[Path, int]] = {}
    repeats: list[str] = []
    for file, line, row in _rows(found, dataset, prompt_column, split, skipped):
        folders = (Path(image_dir),) if image_dir is not None else (file.parent, file.parent / "images")
        closed = found.format in ("jsonl", "python")
        prompt = _make_prompt(f"{file}:{line}", row, folders, dataset, weights or {}, closed=closed)
        if prompt.id not in prompts:
            prompts[prompt.id], places[prompt.id] = prompt, (file, line)
            continue
        first_file, first = places[prompt.id]
        if closed:
            raise _twice(f"{file}:{line}", first, prompt.id, explicit=row.get("id") is not None)
        of = "" if first_file == file else f" of {first_file.name}"
        repeats.append(f"{file}:{line}: the prompt of line {first}{of} again; it is drawn once an epoch")
    _warn(repeats)
    _warn([f"{problem}; the row is left out" for problem in skipped])
    if not prompts:
        what = f"; its {len(skipped)} rows cannot be used, the first: {skipped[0]}" if skipped else ": write one a line"
        raise DataError(f"{found.path} holds no prompt{what}")
    lines = tuple(line for _, line in places.values())
    return PromptFile(found.path, tuple(prompts.values()), lines, len(repeats), tuple(skipped))


def is_own(
    path: str | Path,
    split: Split,
    *,
    format: PromptFormat = "auto",
    prompt_column: str | None = None,
    delimiter: str | None = None,
) -> bool:
    """Whether a file is of a format of our own, with a prompt a line, rather than another project's. Raises DataError."""
    found = detect(Path(path), format, split, prompt_column=prompt_column, delimiter=delimiter)
    return found.format in ("txt", "jsonl", "python")


def _rows(
    found: Found, dataset: str, prompt_column: str | None, split: Split, skipped: list[str]
) -> Iterator[tuple[Path, int, Mapping[str, Any]]]:
    """The unchecked rows of all files, each with its file and line."""
    readers: dict[PromptFormat, Callable[[Path], Rows]] = {
        "txt": read_txt,
        "txt_folder": read_txt,
        "jsonl": read_jsonl,
        "rows": lambda path: read_rows(path, prompt_column),
        "json": lambda path: read_json(path, prompt_column, split),
        "csv": lambda path: read_csv(path, dataset, skipped, delimiter=found.delimiter, prompt_column=prompt_column),
        "parquet": lambda path: read_parquet(path, prompt_column),
        "flow_grpo_text": read_quoting_txt,
        "flow_grpo_metadata": lambda path: read_rows(path, prompt_column),
        "python": lambda path: read_code(path, split),
    }
    for file in found.files:
        for line, row in readers[found.format](file):
            yield file, line, row


def _make_prompt(
    where: str,
    row: Mapping[str, Any],
    folders: Sequence[Path],
    dataset: str,
    weights: Mapping[str, float],
    *,
    closed: bool,
) -> Prompt:
    """A checked row as a prompt. In a closed format, equal texts are the same prompt whatever their metadata says."""
    if row.get("prompt") is None:
        raise DataError(f"{where}: prompt: missing; every row needs one")
    text = check_text(f"{where}: prompt", row["prompt"])
    images = check_images(f"{where}: source_images", row.get("source_images"), folders)
    metadata = check_metadata(f"{where}: metadata", row.get("metadata"))
    negative = None
    if row.get("negative_prompt") is not None and str(row["negative_prompt"]).strip():  # a blank one is none
        negative = check_text(f"{where}: negative_prompt", row["negative_prompt"])
    if row.get("id") is not None:
        name = check_text(f"{where}: id", row["id"], MAX_ID_LENGTH)
    else:
        more = [row.get("source_images") or [], {} if closed else metadata, *([negative] if negative else [])]
        whole = json.dumps([text, *more], sort_keys=True) if any(more) else text
        name = f"{dataset}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"
    targets = check_targets(f"{where}: targets", row.get("targets"))
    return Prompt(name, text, dataset, weights, targets, metadata, images, negative)


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
