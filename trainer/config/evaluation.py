"""Held-out prompts: what is sampled and scored while training goes on, and when an alarm is raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from machine.own import is_code
from trainer.config.base import FilePath, Name, Positive, Section, Share, refuse_untranslated
from trainer.config.data import DatasetConfig, PromptFileConfig
from trainer.config.own import Code
from trainer.config.texts import HoldOut

Scoring = Literal["unigenbench/en", "unigenbench/zh"]
JUDGE = "unigenbench"  # the judge service's reward
_TAKEN = ("heldout", "step")  # the folder of `evaluation.path`, and the key eval/step


class EvaluationSetConfig(PromptFileConfig):
    """One set of held-out prompts, recorded under its own name."""

    name: Name = Field(description="Its numbers are eval/<name>/<reward>, its files are in eval/step_NNNNNN/<name>.")
    path: FilePath = Field(description="Prompt file.")
    duplicates: int = Field(
        1, ge=1, le=64, description="Samples per prompt, each from its own fixed noise or random numbers."
    )
    num_inference_steps: int | None = Field(
        None, ge=1, le=1000, description="Deterministic denoising steps; null takes evaluation.num_inference_steps."
    )
    guidance_scale: float | None = Field(
        None, ge=1, description="Classifier-free guidance; null is evaluation.guidance_scale."
    )
    temperature: float | None = Field(
        None, ge=0, le=10, description="Of texts; 0 always writes the likeliest token. Null is evaluation.temperature."
    )
    think: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="Of a policy that denoises images and writes texts: it first writes a thought of at most so many tokens, always the "
        "likeliest one, and draws by it. Null draws at once.",
    )
    task: Literal["understand", "generate"] | None = Field(
        None,
        description="Of a policy with tasks: what the set asks for. Null is the only task that is trained.",
    )
    alarms: bool = Field(
        True, description="false: a control, such as questions about blank images, whose numbers raise no alarm."
    )
    rewards: tuple[str, ...] = Field((), description="Rewards asked for; empty is evaluation.rewards.")
    scoring: Scoring | None = Field(
        None, description="unigenbench/en or /zh: the benchmark's table from the judge's verdicts, beside the rewards."
    )
    max_prompts: int | None = Field(
        None, ge=1, description="At most so many prompts, taken evenly over the file; null is all."
    )


class AlarmsConfig(Section):
    """When an evaluation says that a reward is being hacked, or that one half of a model pays for the other."""

    action: Literal["note", "stop"] = Field(
        "note", description="note: say it, mark it and go on; stop: save a checkpoint and end the run."
    )
    heldout_z: Positive | None = Field(
        0.3,
        description="A reward that is not trained on falls by so many standard deviations over the first images, and by "
        "more than its interval, while a trained one rises; null is off.",
    )
    other_half: bool = Field(
        True,
        description="Of a policy with tasks: a reward of one task falls by more than its interval while one of the other task "
        "surely rises, whether the first is trained or not; false is off.",
    )
    saturation_z: Positive | None = Field(
        4.0, description="Drift of the mean saturation, in standard deviations over the first images; null is off."
    )
    edge_density_z: Positive | None = Field(
        4.0, description="Drift of the mean share of edge pixels, in the same unit; null is off."
    )
    diversity_z: Positive | None = Field(
        3.0, description="Fall of the mean distance within a prompt's images, in the same unit; null is off."
    )
    format_only: Positive | None = Field(
        0.1,
        description="Of texts: the reward for the form rises by so much and more, and accuracy given format does not rise by its "
        "own standard error; null is off.",
    )
    length_factor: float | None = Field(
        3.0,
        gt=1,
        description="Of texts: they are so many times as long as at the start, and accuracy has not surely risen; null is off.",
    )
    truncated_share: Share | None = Field(
        0.2, description="Of texts: more than this share is cut off at the most tokens they may have; null is off."
    )
    own: tuple[Code, ...] = Field(
        (),
        description="Alarms of your own, each FILE.py:NAME or module:NAME: a function of now, start and step, or some of them, that "
        "gives a sentence where something is wrong and else None (docs/tutorials/alarm.md).",
    )


class EvaluationConfig(Section):
    """Held-out prompts, fixed noise, deterministic ODE, averaged weights."""

    path: FilePath | None = Field(None, description="Prompt file of the plain set, recorded as eval/<reward>.")
    sets: tuple[EvaluationSetConfig, ...] = Field((), description="More sets, each recorded under its own name.")
    hold_out: HoldOut | None = Field(
        None,
        description="In place of path and sets: this share of the rows of each training set is kept from training and evaluated, "
        "always the same rows by a fixed shuffle (seed 42). Of a policy that writes; null is none.",
    )
    dataset_config: FilePath | None = Field(None, description="DeepGen-RL's evaluation YAML; its data sets are sets.")
    every: int = Field(
        25,
        ge=1,
        description="An evaluation follows every so many training steps; there is always one before the first step and one after the last.",
    )
    num_inference_steps: int = Field(
        10, ge=1, le=1000, description="How many deterministic denoising steps a held-out sample takes."
    )
    guidance_scale: float | None = Field(
        None, ge=1, description="Classifier-free guidance; null is sampling.guidance_scale."
    )
    height: int | None = Field(None, ge=8, description="Image height in pixels; null is sampling.height.")
    width: int | None = Field(None, ge=8, description="Image width in pixels; null is sampling.width.")
    temperature: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Of texts; 0 always writes the likeliest token. Null is sampling.temperature.",
    )
    batch_size: int = Field(48, ge=1, description="How many samples are drawn together.")
    rewards: tuple[str, ...] = Field(
        (), description="Rewards asked for at every evaluation; empty: all that training uses."
    )
    final_rewards: tuple[str, ...] = Field(
        (), description="Asked for of every set, only before the first and after the last step."
    )
    seed: int = Field(1234, ge=0, description="Seed of the fixed noise; sample i always starts from the same noise.")
    num_pictures: int = Field(
        24, ge=0, description="Samples kept for the report: images, or answers with the images of their prompts."
    )
    may_share: Literal["nothing", "targets"] = Field(
        "nothing",
        description="What held-out prompts may have in common with training: targets, where words are meant to come again.",
    )
    wait: bool = Field(
        True,
        description="false: samples are scored while training goes on; results come in a later row of metrics.jsonl.",
    )
    max_in_flight: int = Field(
        64,
        ge=1,
        description="With wait: false, samples of a rank at the services at once; training rewards queue behind.",
    )
    alarms: AlarmsConfig = Field(default_factory=AlarmsConfig)

    @property
    def active(self) -> bool:
        """Whether anything is evaluated."""
        return bool(self.path is not None or self.sets or self.hold_out)

    def asked(self) -> list[tuple[str, str]]:
        """Every reward that is asked for by name, with the field that does."""
        named = [("evaluation.rewards", name) for name in self.rewards]
        named += [("evaluation.final_rewards", name) for name in self.final_rewards]
        return named + [(f"evaluation.sets.{i}.rewards", name) for i, s in enumerate(self.sets) for name in s.rewards]

    def prompt_files(self) -> list[tuple[str, str]]:
        """Every prompt file that is named here, with its field."""
        plain = [] if self.path is None else [("evaluation.path", self.path)]
        return plain + [(f"evaluation.sets.{i}.path", each.path) for i, each in enumerate(self.sets)]

    def check_tasks(self, trained: Sequence[str]) -> None:
        """Whether each set is of a task and has rewards for it, with the tasks that are trained ("" alone: the policy has none).
        Raises ValueError."""
        for i, each in enumerate(self.sets):
            if each.task is not None and "" in trained:
                raise ValueError(
                    f"evaluation.sets.{i}.task = {each.task} is read for a policy with tasks, and this one has a single kind of "
                    "sample; leave it out"
                )
            if each.task is None and len(trained) > 1:
                raise ValueError(f"evaluation.sets.{i} names no task, and sampling.tasks has {' and '.join(trained)}")
            if each.task is not None and each.task not in trained and not (each.rewards or self.rewards):
                raise ValueError(
                    f"evaluation.sets.{i} is of the task {each.task}, which is not trained, so nothing says what its samples are "
                    f"scored by; name it in evaluation.sets.{i}.rewards"
                )
        if self.path is not None and len(trained) > 1:
            raise ValueError(
                f"evaluation.path = {self.path} is a set of one task, and sampling.tasks has {' and '.join(trained)}; make it one "
                "of evaluation.sets and give it a task"
            )
        tasks = {each.task or trained[0] for each in self.sets} | ({trained[0]} if self.path is not None else set())
        for name in ("rewards", "final_rewards"):
            if len(tasks) > 1 and getattr(self, name):
                raise ValueError(
                    f"evaluation.{name} is asked for of every set, and there are sets of {' and '.join(sorted(tasks))}: what "
                    "scores texts scores no images; name rewards in evaluation.sets.<n>.rewards"
                )

    def check_drawing(self, drawn: str) -> None:
        """Raises ValueError when a field says how images are drawn and the policy writes texts, or the other way round."""
        images, texts = ("num_inference_steps", "guidance_scale", "height", "width", "think"), ("temperature",)
        idle: tuple[str, ...]
        if drawn == "tasks":
            idle, kind = ("num_inference_steps", "height", "width", "think"), "denoises images"
        else:
            idle, kind = (images, "draws images") if drawn == "tokens" else (texts, "writes texts")
        for where, section in [("", self), *((f"sets.{i}.", each) for i, each in enumerate(self.sets))]:
            for name in idle:
                field = type(section).model_fields.get(name)
                if field is not None and getattr(section, name) != field.default:
                    raise ValueError(
                        f"evaluation.{where}{name} = {getattr(section, name)} acts where the policy {kind}, which this one "
                        "does not; leave it out"
                    )

    def check_columns(self, columns: dict[str, str | None]) -> None:
        """Raises ValueError when a set's name, or what its table is made of, does not fit `rewards.columns`."""
        for i, each in enumerate(self.sets):
            if each.name in columns:
                raise ValueError(
                    f"evaluation.sets.{i}.name = {each.name!r} is also a reward in rewards.columns, and eval/{each.name} "
                    "could mean both; rename the set"
                )
            if each.scoring is not None:
                try:
                    judge_column(each.rewards, columns)
                except ValueError as error:
                    raise ValueError(f"evaluation.sets.{i}.{error}") from error

    def check_names(self, names: Sequence[str], columns: Mapping[str, object]) -> None:
        """Raises ValueError when a training set, whose held-out rows are recorded under its name, has a name that is taken."""
        for i, name in enumerate(names):
            if name in _TAKEN or name in columns:
                raise ValueError(
                    f"data.train.{i}.name = {name!r} is also a reward, or used by the run's own files and keys, and its held-out "
                    f"rows are recorded as eval/{name}; give it another name"
                )

    @model_validator(mode="after")
    def _file_is_translated(self) -> EvaluationConfig:
        refuse_untranslated("evaluation.dataset_config", self.dataset_config)
        return self

    @model_validator(mode="after")
    def _something_to_evaluate(self) -> EvaluationConfig:
        for field in ("rewards", "final_rewards"):
            names = getattr(self, field)
            if not self.active and names:
                raise ValueError(
                    f"{field} asks for {', '.join(names)}, but path is null, so nothing is evaluated; give a prompt file "
                    f"or leave {field} out"
                )
        if self.hold_out and self.prompt_files():
            raise ValueError(
                f"hold_out = {self.hold_out:g} makes the evaluation set where none is named, but {self.prompt_files()[0][0]} names "
                "one; leave one of the two out"
            )
        if self.rewards and self.path is None and self.sets and all(each.rewards for each in self.sets):
            raise ValueError(
                f"rewards asks for {', '.join(self.rewards)}, but every set names its own, so these are never asked for; name "
                "them there, or leave one of the two out"
            )
        if (self.height is None) != (self.width is None):
            raise ValueError(f"height = {self.height} and width = {self.width}: give both, or neither")
        return self

    @model_validator(mode="after")
    def _names_are_apart(self) -> EvaluationConfig:
        names = [each.name for each in self.sets]
        for i, name in enumerate(names):
            if name in _TAKEN:
                raise ValueError(
                    f"sets.{i}.name = {name!r} is used by the run's own files and keys; choose another name"
                )
            if name in names[:i]:
                raise ValueError(f"sets.{i}.name = {name!r} is also the name of sets.{names.index(name)}; rename one")
        return self


def judge_column(asked: Sequence[str], columns: dict[str, str | None]) -> str:
    """The column whose verdicts make a set's table.

    Args:
        asked: rewards the set names; none: any column will do.
        columns: every column's name with the reward it asks its service for.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [name for name in asked or columns if (columns.get(name) or name) == JUDGE]
    if len(found) != 1:
        raise ValueError(
            f"scoring needs the judge's verdicts from one column with `reward: {JUDGE}`, and there are {len(found)} "
            f"({', '.join(found) or 'none'}) among {', '.join(asked or columns) or 'no columns'}; add it to rewards.columns "
            "(the judge is services/eval), or name one of them under the set's `rewards`"
        )
    return found[0]


def check_held_out(evaluation: EvaluationConfig, train: Sequence[DatasetConfig]) -> None:
    """Whether what is evaluated on can be kept from these training sets. Raises ValueError."""
    others = [i for i, dataset in enumerate(train) if dataset.format != "questions"]
    if evaluation.hold_out and (others or not train):
        what = f"data.train.{others[0]}.format is {train[others[0]].format}" if others else "data.train is empty"
        raise ValueError(
            f"evaluation.hold_out = {evaluation.hold_out:g} takes rows of training sets with format: questions, but {what}; name a "
            "file as evaluation.path"
        )
    splits = {f"evaluation.sets.{i}.path": each.split for i, each in enumerate(evaluation.sets)}
    for field, held_out in evaluation.prompt_files():
        for i, dataset in enumerate(train):
            # A folder holds both splits, and a function is asked for one.
            is_file = Path(held_out) == Path(dataset.path) and Path(held_out).suffix and not is_code(held_out)
            if is_file and splits.get(field) == dataset.split:
                raise ValueError(
                    f"{field} and data.train.{i}.path are both {held_out}; evaluate on prompts that training never sees"
                )
