"""The training and held-out prompts. What a prompt file holds: trainer/data/prompts. Which of them a step draws: sampler."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from machine.own import is_code
from trainer.config import Config, DataConfig, TaskSamplingConfig
from trainer.config.data import PromptFileConfig, PromptFormat
from trainer.data.joined import Joined
from trainer.data.overlap import check_disjoint
from trainer.data.pairs.file import read_pairs, sides_of
from trainer.data.prompts import MAX_SOURCE_IMAGES, DataError, PromptFile, Split, read_prompt_file
from trainer.data.prompts.shelf import NAME as SHELF
from trainer.data.prompts.stored import StoredPrompts, places_to_compare
from trainer.data.questions import QuestionFile, read_questions
from trainer.data.rows.table import left_out
from trainer.types import Prompt

__all__ = [
    "DataError",
    "Dataset",
    "check_disjoint",
    "load_datasets",
    "load_heldout",
    "load_prompts",
    "load_train_prompts",
    "sampled",
    "without",
]


logger = logging.getLogger(__name__)

_LINES = (".txt", ".csv", ".tsv")  # files of prompts alone, read as ever


@dataclass(frozen=True)
class Dataset:
    """One training set.

    Attributes:
        weight: how often it is drawn from, relative to the others.
        held_out: those of its prompts that make an evaluation set.
        notes: what is to be said of it before training.
    """

    name: str
    weight: float
    prompts: Sequence[Prompt]
    held_out: tuple[Prompt, ...] = ()
    notes: tuple[str, ...] = ()


def load_prompts(
    path: str | Path,
    *,
    dataset: str,
    weights: Mapping[str, float] | None = None,
    format: PromptFormat = "auto",
    split: Split = "train",
    prompt_column: str | None = None,
    image_dir: str | None = None,
    delimiter: str | None = None,
) -> list[Prompt]:
    """The prompts of a file, in its order, as members of `dataset` with its reward `weights`.

    Raises:
        DataError: see `read_prompt_file`.
    """
    file = read_prompt_file(
        path,
        dataset=dataset,
        weights=weights,
        format=format,
        split=split,
        prompt_column=prompt_column,
        image_dir=image_dir,
        delimiter=delimiter,
    )
    return list(file.prompts)


def load_heldout(
    how: PromptFileConfig, path: str, *, dataset: str, field: str, max_images: int, task: str = ""
) -> list[Prompt]:
    """The prompts of a held-out file, in its order, as members of `dataset`; of pairs the sides of one task, each once.

    Args:
        field: the section's name, for messages.
        max_images: how many images a question may have.
        task: what the prompts are for, of a policy with tasks.

    Raises:
        DataError: see `read_prompt_file`, `read_questions` and `read_pairs`; or pairs for a policy without tasks.
    """
    if how.format == "pairs" and not task:
        raise DataError(
            f"{field}.format = pairs holds prompts for two tasks, and this policy has none; name another file"
        )
    read = _read(how, path, dataset, {}, field=field, split="test", max_images=max_images)
    skipped = read.train.skipped if read.notes else ()  # a table's were said when it was read
    for note in left_out(field, len(read.train.prompts) + read.train.repeated + len(skipped), skipped):
        logger.warning("%s", note)
    return sides_of(read.train.prompts, task) if how.format == "pairs" else list(read.train.prompts)


def sampled(datasets: Sequence[Dataset]) -> Sequence[Prompt]:
    """What is sampled for: the prompts of all sets, and of a pair its sides that are trained."""
    return Joined(
        prompts if isinstance(prompts, StoredPrompts) else [side for each in prompts for side in each.sides or (each,)]
        for prompts in (dataset.prompts for dataset in datasets)
    )


def _read(
    how: PromptFileConfig,
    path: str,
    dataset: str,
    weights: Mapping[str, float],
    *,
    field: str,
    split: Split,
    max_images: int,
    hold_out: float | None = None,
    threshold: float = 0.0,
    cache: Path | None = None,
) -> QuestionFile:
    """The prompts of a section, by its format. Text files and tables are read as ever, whoever they are for."""
    own = {"prompt_column": how.prompt_column, "image_dir": how.image_dir}
    if how.format == "pairs":
        return read_pairs(
            how, path=path, field=field, dataset=dataset, split=split, image_dir=how.image_dir, threshold=threshold
        )
    has_lines = Path(path).suffix.lower() in _LINES or is_code(path)
    if how.format == "questions" and not has_lines:
        return read_questions(
            how,
            path=path,
            field=field,
            dataset=dataset,
            weights=weights,
            split=split,
            hold_out=hold_out,
            max_images=max_images,
            **own,
        )
    if how.format == "questions" and (idle := how.row_fields() or (["hold_out"] if hold_out else [])):
        raise DataError(
            f"{field}: {idle[0]} acts on rows with columns, of .json, .jsonl or .parquet, but {path} has a prompt a line; leave "
            "it out"
        )
    format: PromptFormat = "auto" if how.format == "questions" else how.format
    return QuestionFile(
        read_prompt_file(
            path,
            dataset=dataset,
            weights=weights,
            format=format,
            split=split,
            delimiter=how.delimiter,
            cache=cache,
            **own,
        )
    )


def load_datasets(config: Config) -> list[Dataset]:
    """The training sets of a run, with what `evaluation.hold_out` keeps of them. Raises DataError."""
    sampling = config.sampling if isinstance(config.sampling, TaskSamplingConfig) else None
    read = load_train_prompts(
        config.data,
        max_images=config.max_images,
        hold_out=config.evaluation.hold_out,
        threshold=sampling.similarity_threshold if sampling else 0.0,
        cache=Path(config.output_dir) / SHELF,
    )
    return [replace(each, prompts=_of_tasks(each.prompts, sampling)) for each in read] if sampling else read


def _of_tasks(prompts: Sequence[Prompt], sampling: TaskSamplingConfig) -> Sequence[Prompt]:
    """The prompts with the rewards of their tasks. A pair keeps the sides that are trained; what is no pair is of the only task."""
    rewards = {name: dict(each.rewards) for name, each in sampling.tasks.given().items()}
    if isinstance(prompts, StoredPrompts):
        ((task, weights),) = rewards.items()  # a file of pairs is never stored
        return prompts.of(task, weights)
    found = []
    for prompt in prompts:
        if prompt.sides:
            kept = tuple(replace(side, weights=rewards[side.task]) for side in prompt.sides if side.task in rewards)
            found.append(replace(prompt, sides=kept))
        else:
            ((task, weights),) = rewards.items()  # the configuration has checked that there is one
            found.append(replace(prompt, task=task, weights=weights))
    return tuple(found)


def load_train_prompts(
    config: DataConfig,
    *,
    max_images: int = MAX_SOURCE_IMAGES,
    hold_out: float | None = None,
    threshold: float = 0.0,
    cache: Path | None = None,
) -> list[Dataset]:
    """All training sets, with ids that are unique over all of them. Pairs less similar than `threshold` are left out.

    Prompts of large files are kept in `cache`, where there is one, and read as they are drawn (`read_prompt_file`).

    Raises:
        DataError: a file cannot be used.

    With `sampling_mode: sample_proportional` a set of N prompts weighs N times its `weight`, as in DeepGen-RL.
    """
    read = [
        _read(
            d,
            d.path,
            d.dataset_name,
            d.rewards,
            field=f"data.train.{i}",
            split="train",
            max_images=max_images,
            hold_out=hold_out,
            threshold=threshold,
            cache=cache,
        )
        for i, d in enumerate(config.train)
    ]
    _check_unique([each.train for each in read])
    counts = [len(each.train.prompts) if config.sampling_mode == "sample_proportional" else 1 for each in read]
    return [
        Dataset(d.dataset_name, d.weight * count, each.train.prompts, each.held_out, each.notes)
        for d, each, count in zip(config.train, read, counts, strict=True)
    ]


def _check_unique(files: Sequence[PromptFile]) -> None:
    """Raises DataError where an id comes twice in all the files. Of stored prompts only those are read whose ids might."""
    seen: dict[str, str] = {}
    for file, places in zip(files, places_to_compare([each.prompts for each in files]), strict=True):
        for number in places:
            name, where = file.prompts[number].id, f"{file.path}:{file.lines[number]}"
            if name in seen:
                raise DataError(
                    f"{where}: id: {name!r} is also at {seen[name]}; ids must be unique over all training "
                    "sets: change one of them, or leave the ids out to have them made from the text"
                )
            seen[name] = where


def without(datasets: Sequence[Dataset], config: DataConfig, ids: Set[str]) -> list[Dataset]:
    """The training sets without the prompts of these ids; with `sample_proportional` a set weighs less by them.

    Raises:
        DataError: nothing is left of a set.
    """
    kept = []
    for dataset, d in zip(datasets, config.train, strict=True):
        prompts = _without(dataset.prompts, ids)
        if not prompts:
            raise DataError(
                f"data set {dataset.name!r}: all of its {len(dataset.prompts)} prompts are held out, too, so nothing is left "
                "to train on; evaluate on another file, or set `data.overlap: allow`"
            )
        weight = d.weight * len(prompts) if config.sampling_mode == "sample_proportional" else dataset.weight
        kept.append(Dataset(dataset.name, weight, prompts, dataset.held_out, dataset.notes))
    return kept


def _without(prompts: Sequence[Prompt], ids: Set[str]) -> Sequence[Prompt]:
    if not ids:
        return prompts
    if isinstance(prompts, StoredPrompts):
        return prompts.without(ids)
    return tuple(prompt for prompt in prompts if prompt.id not in ids)
