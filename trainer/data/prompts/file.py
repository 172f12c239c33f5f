"""Reads a prompt file or folder of any format into prompts with stable ids."""

from __future__ import annotations

import bisect
import hashlib
import json
import logging
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from trainer.data.prompts.shelf import is_large, shelved
from trainer.data.prompts.stored import PromptFolder, PromptWriter, StoredPrompts
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
    prompts: Sequence[Prompt]
    lines: Sequence[int]
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
    cache: Path | None = None,
) -> PromptFile:
    """Read and check a whole prompt file; what the formats hold is said in trainer/data/prompts/__init__.py.

    A prompt without an id is called `<data set>-<hash of what it says>`, so it keeps its id when the file is sorted or
    grows. Our own .jsonl may not say the same twice; in all other files a repetition is dropped with a warning.

    Args:
        split: which file of a folder.
        prompt_column: the field or column of the prompts, where it has another name than the known ones.
        image_dir: where relative names of images count from; None: the file's folder, or `images` in it.
        delimiter: what stands between the columns of a table; None: what its header shows.
        cache: a folder for the prompts of large files, which are stored there by the first who reads them and then read one by
            one (`shelf`); None: all are held in memory.

    Raises:
        DataError: no such file, of no known format, not UTF-8, without a prompt, a row that is not what it should be, a
            value of the wrong type, a control character, an image that is not there, or an id that comes twice.
    """
    found = detect(Path(path), format, split, prompt_column=prompt_column, delimiter=delimiter)
    reading = _Reading(found, dataset, split, prompt_column, Path(image_dir) if image_dir is not None else None)
    if cache is not None and is_large(found):
        folder = shelved(cache, found, reading.options(), reading.store)
        if folder is not None:
            return reading.opened(folder, weights or {})
    prompts: list[Prompt] = []
    lines, _, said = reading.read(prompts.append, weights or {})
    return said.file(found, tuple(prompts), tuple(lines))


@dataclass
class _Said:
    """What is said of the rows of a file that make no prompt."""

    repeats: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def file(self, found: Found, prompts: Sequence[Prompt], lines: Sequence[int]) -> PromptFile:
        """Say it, and give the file."""
        _warn(self.repeats)
        _warn([f"{problem}; the row is left out" for problem in self.skipped])
        return PromptFile(found.path, prompts, lines, len(self.repeats), tuple(self.skipped))


@dataclass(frozen=True)
class _Reading:
    """How files are read, for prompts that are held and for such that are stored."""

    found: Found
    dataset: str
    split: Split
    prompt_column: str | None
    image_dir: Path | None

    def options(self) -> list[object]:
        """What decides, besides the files' content and the code, what prompts come out; JSON."""
        found = self.found
        return [found.format, found.delimiter, self.dataset, self.split, self.prompt_column, str(self.image_dir)]

    def store(self, writer: PromptWriter) -> None:
        """Raises DataError, and UnstorableError where prompts name images."""
        lines, numbers, said = self.read(writer.append, {})
        writer.finish(numbers, lines, asdict(said))

    def opened(self, folder: PromptFolder, weights: Mapping[str, float]) -> PromptFile:
        """The file that was stored, with what was said of it."""
        said = _Said(folder.about["repeats"], folder.about["skipped"])
        return said.file(self.found, StoredPrompts(folder, self.dataset, weights), folder.lines)

    def read(
        self, keep: Callable[[Prompt], None], weights: Mapping[str, float]
    ) -> tuple[Sequence[int], Mapping[str, int], _Said]:
        """Check all rows and hand each new prompt to `keep`. Returns their lines, their numbers from 0 by id, and the rest. Raises DataError."""
        found, said = self.found, _Said()
        closed = found.format in ("jsonl", "python")
        numbers: dict[str, int] = {}
        lines, ends = array("q"), array("q")  # ends[i]: how many prompts there are up to the end of file i
        for file, rows in _rows(found, self.dataset, self.prompt_column, self.split, said.skipped):
            folders = (self.image_dir,) if self.image_dir is not None else (file.parent, file.parent / "images")
            name = str(file)
            for line, row in rows:
                prompt = _make_prompt(f"{name}:{line}", row, folders, self.dataset, weights, closed=closed)
                first = numbers.setdefault(prompt.id, len(lines))
                if first == len(lines):
                    keep(prompt)
                    lines.append(line)
                    continue
                if closed:
                    raise _twice(f"{name}:{line}", lines[first], prompt.id, explicit=row.get("id") is not None)
                at = bisect.bisect_right(ends, first)
                of = "" if at == len(ends) else f" of {found.files[at].name}"
                said.repeats.append(
                    f"{name}:{line}: the prompt of line {lines[first]}{of} again; it is drawn once an epoch"
                )
            ends.append(len(lines))
        if not lines:
            skipped = said.skipped
            what = (
                f"; its {len(skipped)} rows cannot be used, the first: {skipped[0]}"
                if skipped
                else ": write one a line"
            )
            raise DataError(f"{found.path} holds no prompt{what}")
        return lines, numbers, said


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
) -> Iterator[tuple[Path, Rows]]:
    """The files, each with its unchecked rows."""
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
        yield file, readers[found.format](file)


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
