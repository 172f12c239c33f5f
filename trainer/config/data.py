"""Where prompts come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trainer.config.base import FilePath, Name, Positive, Section, Text, refuse_untranslated, say
from trainer.config.texts import RowsConfig

# What a prompt file is; trainer/data/prompts says what each holds.
PromptFormat = Literal[
    "auto",
    "txt",
    "jsonl",
    "rows",
    "csv",
    "parquet",
    "flow_grpo_text",
    "flow_grpo_metadata",
    "json",
    "txt_folder",
    "python",
    "questions",
    "pairs",
]
Delimiter = Annotated[str, Field(pattern=r"^(tab|[^\w\s\"']|\t)$")]


class PromptFileConfig(RowsConfig):
    """How a prompt file is read."""

    format: PromptFormat = Field(
        "auto",
        description="What the file is; auto goes by its ending and first row. rows: another trainer's .jsonl. questions: what a "
        "policy that writes is asked, from JSON, JSON lines, Parquet, a folder or a hub id; it is the default of such a policy. "
        "pairs: a question about an image and a prompt to draw in each row, for a policy with tasks (docs/pairs.md). python: a function "
        "of your own, FILE.py:NAME or module:NAME (docs/tutorials/prompt_set.md).",
    )
    prompt_column: Text | None = Field(
        None,
        description="The column or field of the prompts; null: the one whose name is known, such as prompt or text.",
    )
    image_dir: FilePath | None = Field(
        None,
        description="Relative paths of source images start in this folder; null takes the prompt file's own, or `images` in it.",
    )
    delimiter: Delimiter | None = Field(
        None,
        description="What stands between the columns of a table: a character, or tab; null: what its header shows.",
    )

    def row_fields(self) -> list[str]:
        """The fields about rows that say something."""
        defaults = {name: f.get_default(call_default_factory=True) for name, f in RowsConfig.model_fields.items()}
        return [name for name, default in defaults.items() if getattr(self, name) != default]

    @model_validator(mode="after")
    def _rows_are_questions(self) -> PromptFileConfig:
        idle = self.row_fields()
        if idle and self.format not in ("questions", "pairs"):
            raise ValueError(
                f"{idle[0]} acts with format: questions and pairs, but format is {self.format}; leave {idle[0]} out, or set the "
                "format"
            )
        named = [name for name in ("prompt_column", "delimiter") if getattr(self, name) is not None]
        if named and self.format == "pairs":
            raise ValueError(f"{named[0]} acts on files of prompts, but format is pairs; leave {named[0]} out")
        return self


class DatasetConfig(PromptFileConfig):
    """One prompt file with its mixture of rewards."""

    path: FilePath = Field(
        description="A .txt file (a prompt a line), .jsonl (id, prompt, targets, metadata, source_images), .json, .csv, .tsv, "
        ".parquet, or a folder with a split's file or with text files; or a function of your own, FILE.py:NAME."
    )
    name: Name | None = Field(None, description="Shown in metrics; the file's stem otherwise.")
    rewards: dict[str, float] = Field(
        default_factory=dict,
        description="Reward name to weight; only these are asked for. A policy with tasks has them in sampling.tasks.",
    )
    weight: Positive = Field(1.0, description="How often this set is drawn from, relative to the others.")

    @property
    def dataset_name(self) -> str:
        """`name`, or the file's stem."""
        return self.name or Path(self.path).stem


class DataConfig(Section):
    """Where prompts come from: `train`, or a file of DeepGen-RL's that says the same."""

    train: tuple[DatasetConfig, ...] = Field((), description="The training sets.")
    dataset_config: FilePath | None = Field(
        None, description="DeepGen-RL's data-set YAML, read in place of train and sampling_mode."
    )
    sampling_mode: Literal["weight_only", "sample_proportional"] = Field(
        "weight_only",
        description="A set's share of the draws goes by its weight, or by its weight times its number of prompts.",
    )
    overlap: Literal["auto", "drop", "refuse", "allow"] = Field(
        "auto",
        description="Training prompts that are also held out: drop leaves them out and says so, refuse ends the start, allow "
        "trains on them. auto drops where one of the two files is another project's, and refuses between our own .txt and "
        ".jsonl.",
    )
    ignore_rewards: tuple[Name, ...] = Field(
        (), description="Rewards that data sets name and this run does without; said at the start."
    )

    @model_validator(mode="before")
    @classmethod
    def _ignored_are_gone(cls, raw: Any) -> Any:
        """The ignored rewards are taken out before a missing service could be noticed."""
        if not isinstance(raw, dict):
            return raw
        return _without_ignored(raw)

    @model_validator(mode="after")
    def _file_is_translated(self) -> DataConfig:
        refuse_untranslated("data.dataset_config", self.dataset_config)
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> DataConfig:
        names = [dataset.dataset_name for dataset in self.train]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(
                    f"train.{names.index(name)} and train.{i} are both called {name!r}; give one of them another `name`"
                )
        return self


def _without_ignored(raw: dict[str, Any]) -> dict[str, Any]:
    """`raw` with the ignored rewards taken out of its training sets, each said."""
    ignored, train = raw.get("ignore_rewards"), raw.get("train")
    if not isinstance(ignored, tuple) or not isinstance(train, tuple):
        return raw
    return raw | {"train": tuple(_without(f"data.train.{i}", entry, ignored) for i, entry in enumerate(train))}


def _without(where: str, entry: Any, ignored: tuple[Any, ...]) -> Any:
    if not isinstance(entry, dict) or not isinstance(rewards := entry.get("rewards"), dict):
        return entry
    dropped = [name for name in rewards if name in ignored]
    if not dropped:
        return entry
    name = entry.get("name") or entry.get("path")
    say(f"{where} ({name}) does without {', '.join(dropped)}, as data.ignore_rewards says")
    return entry | {"rewards": {key: weight for key, weight in rewards.items() if key not in dropped}}
