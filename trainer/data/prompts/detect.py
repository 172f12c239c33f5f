"""Which files a path means and what is in them, where `format` leaves it open."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from machine.own import is_code
from trainer.config.data import PromptFormat
from trainer.data.prompts.checks import DataError
from trainer.data.prompts.lines import SPLITS, Split, first_line, is_foreign, lines, read_text, refuse_missing
from trainer.data.prompts.tables import find_delimiter, header_between

logger = logging.getLogger(__name__)

_FOLDERS: dict[PromptFormat, str] = {"flow_grpo_text": "{}.txt", "flow_grpo_metadata": "{}_metadata.jsonl"}
_SUFFIXES: dict[str, PromptFormat] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # beside the images of a Hugging Face image folder


@dataclass(frozen=True)
class Found:
    """Files of one format.

    Attributes:
        path: the file; of a folder of text files, the folder.
        files: what is read, in this order.
        delimiter: of a table.
    """

    path: Path
    files: tuple[Path, ...]
    format: PromptFormat
    delimiter: str = ","


def detect(
    path: Path, format: PromptFormat, split: Split, *, prompt_column: str | None = None, delimiter: str | None = None
) -> Found:
    """Raises DataError: nothing that can be read is there, or an option does not fit what is."""
    path, format = _resolve(path, format, split, prompt_column=prompt_column, delimiter=delimiter)
    if format not in ("csv",) and delimiter is not None:
        raise DataError(f"{path}: `delimiter` is for tables, and this is {format}; leave it out, or say `format: csv`")
    if format in ("txt", "txt_folder", "flow_grpo_text", "python") and prompt_column is not None:
        raise DataError(f"{path}: `prompt_column` = {prompt_column}, but {format} has a prompt a line; leave it out")
    if format == "txt_folder":
        return Found(path, _text_files(path, split), format)
    if format == "csv":
        delimiter = "\t" if delimiter == "tab" else delimiter
        return Found(path, (path,), format, delimiter or find_delimiter(path, prompt_column))
    return Found(path, (path,), format)


def _resolve(
    path: Path, format: PromptFormat, split: Split, *, prompt_column: str | None, delimiter: str | None
) -> tuple[Path, PromptFormat]:
    """The file that is read and its format."""
    if format in _FOLDERS:
        return path / _FOLDERS[format].format(split), format
    if format != "auto" or is_code(str(path)):
        return path, format if format != "auto" else "python"
    known = _SUFFIXES.get(path.suffix.lower())
    if known is None and path.is_dir():
        return _in_folder(path, split, prompt_column=prompt_column, delimiter=delimiter)
    if known is None and not path.exists():
        refuse_missing(path)
    if known is None:
        raise DataError(
            f"{path}: a prompt file ends in .txt (a prompt a line), .jsonl (a JSON object a line), .json (a list), .tsv, .csv "
            "or .parquet; if it is one of these, say so by `format`"
        )
    if known == "txt":
        return path, _of_text(path, prompt_column, delimiter)
    if known == "jsonl" and (prompt_column is not None or is_foreign(path)):
        return path, "rows"
    return path, known


def _in_folder(
    path: Path, split: Split, *, prompt_column: str | None, delimiter: str | None
) -> tuple[Path, PromptFormat]:
    """A split's file in a folder, else a folder of text files."""
    for name in SPLITS[split]:
        found: list[tuple[Path, PromptFormat]] = [
            (path / pattern.format(name), format) for format, pattern in _FOLDERS.items()
        ]
        found += [(path / f"{name}{suffix}", "auto") for suffix in _SUFFIXES if suffix != ".txt"]
        found = [(file, format) for file, format in found if file.is_file()]
        if len(found) > 1:
            files = " and ".join(file.name for file, _ in found)
            raise DataError(
                f"{path.absolute()} is a folder with {files}; it holds both: choose one by `format`, or give the file as `path`"
            )
        if found:
            file, format = found[0]
            return (
                _resolve(file, format, split, prompt_column=prompt_column, delimiter=delimiter)
                if format == "auto"
                else found[0]
            )
    if (beside := _beside_pictures(path, split)) is not None:
        return beside, "rows" if beside.suffix == ".jsonl" else _SUFFIXES[beside.suffix]
    other: Split = "train" if split == "test" else "test"
    if _beside_pictures(path, other) is not None or any(
        (path / f"{name}{suffix}").is_file() for name in SPLITS[other] for suffix in (*_SUFFIXES, "_metadata.jsonl")
    ):
        raise DataError(
            f"{path.absolute()} is a folder, and a folder of prompts holds {split}.txt or {split}_metadata.jsonl, or {split}.jsonl; "
            f"this one has but the prompts of {other}: name a file as `path`"
        )
    if any(path.glob("*.txt")):
        return path, "txt_folder"
    raise DataError(
        f"{path.absolute()} is a folder, and a folder of prompts holds {split}.txt or {split}_metadata.jsonl (flow_grpo's), "
        f"{split}.jsonl, .json, .csv, .tsv or .parquet, metadata.jsonl, or text files"
    )


def _beside_pictures(folder: Path, split: Split) -> Path | None:
    """The texts of an image folder: metadata.jsonl in the split's folder, else in the folder itself."""
    for place in (*(folder / name for name in SPLITS[split]), folder):
        for name in _METADATA:
            if (place / name).is_file():
                return place / name
    return None


def _text_files(folder: Path, split: Split) -> tuple[Path, ...]:
    """The text files of a folder; where their names end in a split's, as in color_train.txt, those of this one."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise DataError(f"{folder.absolute()} holds no .txt file")
    marked = {
        name: [f for f in files if f.stem.lower().endswith(tuple(f"_{end}" for end in ends))]
        for name, ends in SPLITS.items()
    }
    if any(marked.values()):
        if not marked[split]:
            raise DataError(f"{folder.absolute()} holds text files of other splits, and none ending in _{split}.txt")
        return tuple(marked[split])
    return tuple(files)


def _of_text(path: Path, prompt_column: str | None, delimiter: str | None) -> PromptFormat:
    """What is in a .txt file: prompts, or a table or JSON under a wrong name."""
    if delimiter is not None or prompt_column is not None:
        return "csv"
    line = first_line(path)
    if line.startswith(("{", "[")) and (_is_json(line, dict) or _is_json(read_text(path), dict, list)):
        raise DataError(
            f"{path}: it holds JSON, not a prompt a line; say `format: json`, or `format: rows` (or jsonl) where each line is an "
            "object, or `format: txt` if its lines are meant as they are"
        )
    if "\t" not in line:
        if header_between(path, ",;|") is None:
            return "txt"
        logger.warning("%s is a table, as its first line shows: read as such (`format: txt` takes its lines)", path)
        return "csv"
    if find_delimiter(path, None) == "\t":
        logger.warning(
            "%s is a table, its columns set apart by tabs: read as such (`format: txt` takes its lines)", path
        )
        return "csv"
    tabs = {each.count("\t") for _, each in lines(path)}
    if len(tabs) > 1:
        return "txt"  # a tab here and there is part of a prompt
    raise DataError(
        f"{path}: its lines have {tabs.pop()} tabs each, as a table has, and none of its columns is known as the prompts': name "
        "it by `prompt_column`, or say `format: txt` if each line is a prompt"
    )


def _is_json(text: str, *kinds: type) -> bool:
    try:
        return isinstance(json.loads(text), kinds)
    except (ValueError, RecursionError):
        return False
