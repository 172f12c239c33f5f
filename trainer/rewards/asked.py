"""What a run asks of each reward: how many samples at a time, and whether they are texts or images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from trainer.config import Config, TaskSamplingConfig


@dataclass(frozen=True)
class Asked:
    """How training sends the samples of one task.

    Attributes:
        group_size: samples of a group, which a reward that compares gets in one request.
        micro_batch_size: samples of a request to any other reward.
        section: where the configuration has both.
    """

    group_size: int
    micro_batch_size: int
    section: str = "sampling"


@dataclass(frozen=True)
class Requests:
    """What a run asks for, to be compared with what the services take.

    Attributes:
        columns: the rewards that are trained on, each with how the tasks send that ask for it.
        texts: the rewards whose samples are texts, so that their probes are, too; those of all others are images.
    """

    columns: Mapping[str, tuple[Asked, ...]] = field(default_factory=dict)
    texts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: Config) -> Self:
        asked: dict[str, tuple[Asked, ...]] = {}
        for task in config.tasks:
            section = f"sampling.tasks.{task.name}" if task.name else "sampling"
            sent = Asked(task.group_size, task.micro_batch_size, section)
            for name in trained_by(config, task.name):
                asked[name] = (*asked.get(name, ()), sent)
        return cls(asked, texts_of(config))


def trained_by(config: Config, task: str) -> list[str]:
    """The rewards that a task trains on; an empty name is the task of a policy that has one kind of sample alone."""
    if isinstance(config.sampling, TaskSamplingConfig):
        return [name for given, each in config.sampling.tasks.given().items() if given == task for name in each.rewards]
    return list(dict.fromkeys(name for _, name in config.train_rewards))


def texts_of(config: Config) -> frozenset[str]:
    """The rewards that score texts. One that scores images, too, is asked about texts."""
    if not isinstance(config.sampling, TaskSamplingConfig):
        return frozenset(config.rewards.columns if config.sampling.type == "tokens" else ())
    return frozenset(name for task, names in _asking(config) if task == "understand" for name in names)


def _asking(config: Config) -> Iterator[tuple[str, list[str]]]:
    """Each task with rewards that training or a held-out set asks for its samples."""
    evaluation, tasks = config.evaluation, [task.name for task in config.tasks]
    for task in tasks:
        yield task, trained_by(config, task)
    if evaluation.path is not None:
        yield tasks[0], list(evaluation.rewards)
    for each in evaluation.sets:
        yield each.task or tasks[0], list(each.rewards)
