"""Files of texts with images, for policies that write: which of their rows are read, and how they are changed first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trainer.config.base import FilePath, Section, Text

TextFormat = Literal["auto", "json", "jsonl", "parquet"]
HoldOut = Annotated[float, Field(gt=0, lt=1)]


class RowsConfig(Section):
    """Which rows of a file are taken, and what is done to them before they are looked at."""

    split: Text | None = Field(
        None,
        description="Which split of a folder or hub id, and how much of it: train, train[:5%], train[10:20], or several joined "
        "by +; null: train in training, test in an evaluation. A file is one split, whatever it is called.",
    )
    max_samples: int | None = Field(
        None, ge=1, description="At most so many rows, the first of the split; null is all."
    )
    rename_columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="Old name to new name of a column, before anything is looked for; null leaves the column out.",
    )
    preprocessing: FilePath | None = Field(
        None,
        description="A Python file that is run with this process's rights: each function defined in it changes every row, in "
        "the order of the file; one called batch_... gets columns as lists.",
    )
    bad_rows: Literal["refuse", "leave_out"] = Field(
        "refuse", description="A row that cannot be used ends the start, or is left out, counted and named."
    )
    image_cache: FilePath | None = Field(
        None,
        description="Images that the rows hold themselves are written here once, named by their content; null is "
        "rewards-as-services/images in $XDG_CACHE_HOME or ~/.cache.",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> RowsConfig:
        new = [name for name in self.rename_columns.values() if name is not None]
        if twice := next((name for name in new if new.count(name) > 1), None):
            olds = " and ".join(old for old, name in self.rename_columns.items() if name == twice)
            raise ValueError(f"rename_columns calls both {olds} {twice}; give them different names")
        return self


class TextFileConfig(RowsConfig):
    """A file, folder or hub id of texts that are given: conversations, or pairs of answers."""

    path: FilePath = Field(
        description="A .json, .jsonl or .parquet file, a folder of such files or of a saved data set, or a hub id."
    )
    format: TextFormat = Field("auto", description="What the file is; auto goes by its ending.")
    image_dir: FilePath | None = Field(
        None, description="Relative paths of images start in this folder; null takes the file's own, or `images` in it."
    )
    hold_out: HoldOut | None = Field(
        None,
        description="This share of the rows is kept from training for the evaluation, always the same by a fixed shuffle (seed 42); "
        "null is none.",
    )


def as_questions(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The unchecked fields of a policy that writes: its prompts are `questions` where no format is given."""
    changed = dict(raw)
    for section, entries in (("data", "train"), ("evaluation", "sets")):
        given = changed.get(section)
        if isinstance(given, Mapping) and isinstance(given.get(entries), tuple | list):
            read = tuple(
                {"format": "questions", **entry} if isinstance(entry, Mapping) else entry for entry in given[entries]
            )
            changed[section] = {**given, entries: read}
    return changed
