"""The training and held-out prompts, and which of them a step draws. What a prompt file holds: trainer/prompts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine.own import is_code
from trainer.config import Config, ConfigError, DataConfig, TaskSamplingConfig
from trainer.config.data import PromptFileConfig, PromptFormat
from trainer.data.fingerprints import fingerprint
from trainer.data.overlap import check_disjoint
from trainer.data.pairs.file import read_pairs, sides_of
from trainer.data.prompts import MAX_SOURCE_IMAGES, DataError, Split, read_prompt_file
from trainer.data.questions import QuestionFile, read_questions
from trainer.data.rows.table import left_out
from trainer.seeds import sample_seed
from trainer.types import Prompt

__all__ = [
    "DataError",
    "Dataset",
    "PromptSampler",
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
    prompts: tuple[Prompt, ...]
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


def sampled(datasets: Sequence[Dataset]) -> list[Prompt]:
    """What is sampled for: the prompts of all sets, and of a pair its sides that are trained."""
    return [side for dataset in datasets for prompt in dataset.prompts for side in prompt.sides or (prompt,)]


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
            path, dataset=dataset, weights=weights, format=format, split=split, delimiter=how.delimiter, **own
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
    )
    return [replace(each, prompts=_of_tasks(each.prompts, sampling)) for each in read] if sampling else read


def _of_tasks(prompts: Sequence[Prompt], sampling: TaskSamplingConfig) -> tuple[Prompt, ...]:
    """The prompts with the rewards of their tasks. A pair keeps the sides that are trained; what is no pair is of the only task."""
    rewards = {name: dict(each.rewards) for name, each in sampling.tasks.given().items()}
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
) -> list[Dataset]:
    """All training sets, with ids that are unique over all of them. Pairs less similar than `threshold` are left out.

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
        )
        for i, d in enumerate(config.train)
    ]
    seen: dict[str, str] = {}
    for each in read:
        for prompt, line in zip(each.train.prompts, each.train.lines, strict=True):
            where = f"{each.train.path}:{line}"
            if prompt.id in seen:
                raise DataError(
                    f"{where}: id: {prompt.id!r} is also at {seen[prompt.id]}; ids must be unique over all training "
                    "sets: change one of them, or leave the ids out to have them made from the text"
                )
            seen[prompt.id] = where
    counts = [len(each.train.prompts) if config.sampling_mode == "sample_proportional" else 1 for each in read]
    return [
        Dataset(d.dataset_name, d.weight * count, each.train.prompts, each.held_out, each.notes)
        for d, each, count in zip(config.train, read, counts, strict=True)
    ]


def without(datasets: Sequence[Dataset], config: DataConfig, ids: Set[str]) -> list[Dataset]:
    """The training sets without the prompts of these ids; with `sample_proportional` a set weighs less by them.

    Raises:
        DataError: nothing is left of a set.
    """
    kept = []
    for dataset, d in zip(datasets, config.train, strict=True):
        prompts = tuple(prompt for prompt in dataset.prompts if prompt.id not in ids)
        if not prompts:
            raise DataError(
                f"data set {dataset.name!r}: all of its {len(dataset.prompts)} prompts are held out, too, so nothing is left "
                "to train on; evaluate on another file, or set `data.overlap: allow`"
            )
        weight = d.weight * len(prompts) if config.sampling_mode == "sample_proportional" else dataset.weight
        kept.append(Dataset(dataset.name, weight, prompts, dataset.held_out, dataset.notes))
    return kept


@dataclass
class _Position:
    """Where a data set is: `drawn` over the whole run, `epoch`, `offset` in its order, and the ids that come last in it."""

    drawn: int = 0
    epoch: int = 0
    offset: int = 0
    late: tuple[str, ...] = ()


class PromptSampler:
    """Draws P distinct prompts a step, of which this rank gets a slice: a group lives wholly on one rank.

    Data sets take turns so that after any number of draws each has had its share by weight, to within one prompt or so.
    Each data set is gone through in seeded orders, another one each epoch, and none of its prompts comes again before
    all have come. What a step draws depends on the data, the seed and the step, not on the number of ranks or on the
    order of lines in a file.
    """

    def __init__(self, datasets: Sequence[Dataset], *, prompts_per_step: int, seed: int, rank: int, world: int) -> None:
        """
        Args:
            datasets: with prompt ids that are unique over all of them.
            prompts_per_step: P, over all ranks.
            rank, world: this process among all; rank r gets prompts r*P/world to (r+1)*P/world of the P.

        Raises:
            ConfigError: P is no multiple of `world`.
            DataError: P is more than there are prompts, or than a data set has for its share.
        """
        if prompts_per_step % world:
            near = max(world, round(prompts_per_step / world) * world)
            raise ConfigError(
                f"sampling.prompts_per_step = {prompts_per_step} cannot be dealt evenly to {world} ranks, and a group "
                f"must live wholly on one; set it to a multiple of {world}, such as {near}"
            )
        self._datasets = tuple(datasets)
        self._shares = _shares(self._datasets, prompts_per_step)
        self._prompts_per_step, self._seed = prompts_per_step, seed
        count = prompts_per_step // world
        self._mine = slice(rank * count, (rank + 1) * count)
        self._fingerprints = {d.name: fingerprint(d.prompts) for d in datasets}
        self._step = 0
        self._positions = [_Position() for _ in datasets]
        self._orders = [self._order(d) for d in range(len(datasets))]

    @property
    def step(self) -> int:
        """How many steps were drawn."""
        return self._step

    def draw(self) -> list[Prompt]:
        """This rank's P/world prompts of the next step."""
        taken: list[list[str]] = [[] for _ in self._datasets]
        drawn = [self._next(self._turn(taken), taken) for _ in range(self._prompts_per_step)]
        self._step += 1
        return drawn[self._mine]

    def _turn(self, taken: Sequence[Sequence[str]]) -> int:
        """The data set that is most behind its share, of those that still have a prompt this step has not drawn."""
        total = sum(position.drawn for position in self._positions) + 1
        free = [d for d, dataset in enumerate(self._datasets) if len(taken[d]) < len(dataset.prompts)]
        return max(free, key=lambda d: (self._shares[d] * total - self._positions[d].drawn, -d))

    def _next(self, d: int, taken: Sequence[list[str]]) -> Prompt:
        position = self._positions[d]
        if position.offset == len(self._datasets[d].prompts):
            # The step goes on in a new epoch: what it has drawn already comes last there, so P stays P distinct prompts.
            position.epoch, position.offset, position.late = position.epoch + 1, 0, tuple(taken[d])
            self._orders[d] = self._order(d)
        prompt = self._orders[d][position.offset]
        position.offset += 1
        position.drawn += 1
        taken[d].append(prompt.id)
        return prompt

    def _order(self, d: int) -> list[Prompt]:
        """The order of the data set's present epoch: by a hash, so it is the same on every platform and version."""
        dataset, position, late = self._datasets[d], self._positions[d], set(self._positions[d].late)
        return sorted(
            dataset.prompts,
            key=lambda p: (p.id in late, sample_seed(self._seed, "epoch", dataset.name, position.epoch, p.id), p.id),
        )

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON, with what it is a position in."""
        return {
            "step": self._step,
            "seed": self._seed,
            "datasets": {
                dataset.name: {
                    "drawn": position.drawn,
                    "epoch": position.epoch,
                    "offset": position.offset,
                    "late": list(position.late),
                    "weight": dataset.weight,
                    "fingerprint": self._fingerprints[dataset.name],
                }
                for dataset, position in zip(self._datasets, self._positions, strict=True)
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state` was taken; the number of ranks may have changed.

        Raises:
            DataError: another seed, other data sets, another weight, or a prompt file that has changed.
        """
        remedy = "put it back, or start a new run with another run_name"
        if state["seed"] != self._seed:
            raise DataError(f"the run was started with seed = {state['seed']}, now it is {self._seed}; {remedy}")
        if set(state["datasets"]) != set(self._fingerprints):
            before, now = (", ".join(sorted(names)) for names in (state["datasets"], self._fingerprints))
            raise DataError(f"the run was started with the data sets {before}; now they are {now}; {remedy}")
        for dataset in self._datasets:
            saved = state["datasets"][dataset.name]
            if saved["fingerprint"] != self._fingerprints[dataset.name]:
                raise DataError(
                    f"the prompts of data set {dataset.name!r} have changed since the run was started (fingerprint "
                    f"{saved['fingerprint'][:12]}, now {self._fingerprints[dataset.name][:12]}); {remedy}"
                )
            if saved["weight"] != dataset.weight:
                raise DataError(
                    f"data set {dataset.name!r} had the weight {saved['weight']} when the run was started, now "
                    f"{dataset.weight}; {remedy}"
                )
        self._step = state["step"]
        for d, dataset in enumerate(self._datasets):
            saved = state["datasets"][dataset.name]
            self._positions[d] = _Position(saved["drawn"], saved["epoch"], saved["offset"], tuple(saved["late"]))
            self._orders[d] = self._order(d)


def _shares(datasets: Sequence[Dataset], prompts_per_step: int) -> list[float]:
    """Each data set's share of the draws. Raises DataError when a step asks for more distinct prompts than there are."""
    total = sum(len(dataset.prompts) for dataset in datasets)
    if prompts_per_step > total:
        raise DataError(
            f"sampling.prompts_per_step = {prompts_per_step}, but the training data holds {total} prompts and a step "
            "draws distinct ones; lower it or add prompts"
        )
    shares = [dataset.weight / sum(other.weight for other in datasets) for dataset in datasets]
    for dataset, share in zip(datasets, shares, strict=True):
        if share * prompts_per_step > len(dataset.prompts) + 1e-9:
            raise DataError(
                f"data set {dataset.name!r} holds {len(dataset.prompts)} prompts, but its weight {dataset.weight} asks "
                f"for {share * prompts_per_step:.1f} distinct ones of sampling.prompts_per_step = {prompts_per_step}; "
                "lower one of the two or add prompts"
            )
    return shares
