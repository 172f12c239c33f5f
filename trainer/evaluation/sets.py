"""The evaluation sets of a run: prompts, how they are sampled, what they are scored by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config import (
    Config,
    EvaluationSetConfig,
    FlowSamplingConfig,
    GenerateConfig,
    TaskSamplingConfig,
    TokenSamplingConfig,
)
from trainer.config.evaluation import judge_column
from trainer.data.datasets import DataError, Dataset, load_heldout
from trainer.data.prompts.stored import one_of_each_kind
from trainer.types import Prompt

PLAIN = "heldout"  # folder of the plain set, which has no name


@dataclass(frozen=True)
class EvaluationSet:
    """Held-out prompts and what is asked of their samples.

    Attributes:
        name: empty for the plain set, whose numbers are recorded under the rewards' own names.
        rewards: asked for at every evaluation; `final_rewards` only at the first and the last.
        judge: the column whose verdicts make UniGenBench's table; None for no table.
        temperature: of texts; 0 always takes the likeliest token.
        alarms: whether its numbers may raise an alarm; those of a control may not.
        task: what its prompts are for, of a policy with tasks.
        think: tokens that a thought before each image may have; None draws at once.
    """

    name: str
    prompts: tuple[Prompt, ...]
    duplicates: int
    num_inference_steps: int
    guidance_scale: float
    rewards: tuple[str, ...]
    final_rewards: tuple[str, ...] = ()
    judge: str | None = None
    temperature: float = 1.0
    alarms: bool = True
    task: str = ""
    think: int | None = None

    @property
    def folder(self) -> str:
        return self.name or PLAIN

    def columns(self, *, final: bool) -> list[str]:
        """Rewards of an evaluation."""
        return list(dict.fromkeys([*self.rewards, *(self.final_rewards if final else ())]))

    def file_names(self) -> list[str]:
        """Per prompt what its sample files begin with: its number in a benchmark's file, else its place in the set."""
        given = [prompt.id.removeprefix(f"{prompt.dataset}-") for prompt in self.prompts]
        return given if all(name.isdigit() for name in given) else [str(place) for place in range(len(self.prompts))]


def trained_on(train_rows: Iterable[Prompt]) -> set[str]:
    """Rewards that have a weight in training; the others are held out."""
    return {name for prompt in one_of_each_kind(train_rows) for name, weight in prompt.weights.items() if weight}


def load_sets(config: Config, train_rows: Iterable[Prompt], datasets: Sequence[Dataset] = ()) -> list[EvaluationSet]:
    """The plain set first, then the named ones; with `evaluation.hold_out` what is kept of the training sets.

    Args:
        train_rows: the training prompts, with the rewards they ask for.
        datasets: the training sets.

    Raises:
        DataError: a prompt file cannot be used.
    """
    evaluation = config.evaluation
    # A program that trains on no reward is evaluated by all that the configuration has.
    asked = {name for prompt in one_of_each_kind(train_rows) for name in prompt.weights} or set(config.rewards.columns)
    rewards = evaluation.rewards or tuple(name for name in config.rewards.columns if name in asked)
    plain = [] if evaluation.path is None else [_plain(config, evaluation.path)]
    sets = []
    for each in [*plain, *evaluation.sets]:
        name = "" if each.name == PLAIN else each.name
        judge = None
        if each.scoring is not None:
            judge = judge_column(each.rewards, {key: column.reward for key, column in config.rewards.columns.items()})
        dataset = name or Path(each.path).stem
        field = "evaluation" if not name else f"evaluation.sets.{evaluation.sets.index(each)}"
        task = each.task or config.tasks[0].name
        own_scale, own_temperature = _as_trained(config, task)
        own_rewards = _of_task(config, task, rewards)
        read = load_heldout(each, each.path, dataset=dataset, field=field, max_images=config.max_images, task=task)
        prompts = [replace(prompt, task=task) for prompt in _spread(read, each.max_prompts)]
        if each.scoring is not None:
            _check_points(each.path, prompts, each.scoring)
        sets.append(
            EvaluationSet(
                name=name,
                prompts=tuple(prompts),
                duplicates=each.duplicates,
                num_inference_steps=each.num_inference_steps or evaluation.num_inference_steps,
                guidance_scale=each.guidance_scale or evaluation.guidance_scale or own_scale,
                rewards=tuple(dict.fromkeys([*(each.rewards or own_rewards), *([judge] if judge else [])])),
                final_rewards=evaluation.final_rewards,
                judge=judge,
                alarms=each.alarms,
                task=task,
                think=each.think,
                temperature=next(
                    t for t in (each.temperature, evaluation.temperature, own_temperature) if t is not None
                ),
            )
        )
    _, own_temperature = _as_trained(config, config.tasks[0].name)
    for kept in datasets:
        if kept.held_out:
            sets.append(
                EvaluationSet(
                    name=kept.name if len(datasets) > 1 else "",
                    prompts=kept.held_out,
                    duplicates=1,
                    num_inference_steps=evaluation.num_inference_steps,
                    guidance_scale=1.0,
                    rewards=rewards,
                    final_rewards=evaluation.final_rewards,
                    temperature=own_temperature if evaluation.temperature is None else evaluation.temperature,
                )
            )
    return sets


def _plain(config: Config, path: str) -> EvaluationSetConfig:
    """The set without a name: of a policy that writes it is a file of questions, of one with tasks it is read as what it trains on."""
    format = "questions" if config.sampling.type == "tokens" else "auto"
    if isinstance(config.sampling, TaskSamplingConfig) and config.data.train:
        format = config.data.train[0].format
    return EvaluationSetConfig.model_validate({"name": PLAIN, "path": path, "format": format})


def _as_trained(config: Config, task: str) -> tuple[float, float]:
    """Guidance and temperature of a held-out set that names none: those of training, by the task; of a task that is not trained
    those that its section would have."""
    sampling = config.sampling
    if not isinstance(sampling, TaskSamplingConfig):
        scale = sampling.guidance_scale if isinstance(sampling, FlowSamplingConfig) else 1.0
        return scale, sampling.temperature if isinstance(sampling, TokenSamplingConfig) else 1.0
    if task == "understand":
        written = sampling.tasks.understand
        return 1.0, 1.0 if written is None else written.temperature
    drawn = sampling.tasks.generate
    scale = GenerateConfig.model_fields["guidance_scale"].default
    if drawn is not None and drawn.flow is not None:
        return drawn.flow.guidance_scale, 1.0
    return (scale, 1.0) if drawn is None else (drawn.guidance_scale, drawn.temperature)


def _of_task(config: Config, task: str, rewards: tuple[str, ...]) -> tuple[str, ...]:
    """What a held-out set is scored by where nothing says it: what its task trains on."""
    if config.evaluation.rewards or not isinstance(config.sampling, TaskSamplingConfig):
        return rewards
    trained = {str(name): each.rewards for name, each in config.sampling.tasks.given().items()}
    return tuple(name for name in rewards if name in trained.get(task, {}))


def _check_points(path: str, prompts: Sequence[Prompt], scoring: str) -> None:
    """Raises DataError naming the first prompt without test points, or with those of another language."""
    for prompt in prompts:
        names = prompt.metadata.get("testpoints")
        if not isinstance(names, list) or not names:
            raise DataError(
                f"{path}: prompt {prompt.id} has no test points, and scoring = {scoring} needs them; use the benchmark's own "
                "CSV, or give metadata `testpoints` and `descriptions`"
            )
        language = "en" if all(str(name).isascii() for name in names) else "zh"
        if not scoring.endswith(language):
            raise DataError(
                f"{path}: prompt {prompt.id} has the test point {names[0]!r}, but scoring is {scoring}; set it to "
                f"unigenbench/{language}"
            )


def _spread(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """At most `limit` prompts, evenly over the file: benchmark files are sorted by what they ask."""
    count = len(prompts) if limit is None else min(limit, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]
