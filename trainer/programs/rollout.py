"""One step's rollouts with their rewards under way: what is sampled before its scores are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainer.config import Config, Task
from trainer.policies.base import Plan
from trainer.processes.distributed import World
from trainer.rewards import Batch
from trainer.seeds import sample_seed
from trainer.types import Rollout, Sample, Scores, StopTrainingError


@dataclass(frozen=True)
class Drawn:
    """The rollouts of one step, of one task.

    Attributes:
        task: which.
        rollouts: its micro-batches, in order.
        batch: their rewards, under way.
        position: the prompt sampler's position after this step's prompts, for a checkpoint.
        seeds_B, plan: what they were sampled with.
        sampling_s, flops: how long that took, and the model FLOPs in it where they are counted.
    """

    task: Task
    rollouts: Sequence[Rollout]
    batch: Batch
    position: dict[str, Any]
    seeds_B: Sequence[int]
    plan: Plan
    sampling_s: float
    flops: float

    @property
    def samples(self) -> list[Sample]:
        """The samples of all micro-batches, in order."""
        return [sample for rollout in self.rollouts for sample in rollout.samples]

    @property
    def group_B(self) -> Tensor:
        """Group numbers, local to the rank: a group lives wholly on one."""
        return torch.cat([rollout.group_B for rollout in self.rollouts])

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each phase of sampling, all micro-batches together."""
        names = dict.fromkeys(name for rollout in self.rollouts for name in rollout.seconds)
        return {name: sum(rollout.seconds.get(name, 0.0) for rollout in self.rollouts) for name in names}

    def stale(self) -> Drawn:
        """The same, once the weights that sampled it have been updated: its ratio to them is corrected for then."""
        marked = [replace(rollout, behind=rollout.behind + 1) for rollout in self.rollouts]
        return replace(self, rollouts=marked)

    def version_lag(self, step: int) -> dict[str, float]:
        """How many updates old the oldest weights are that servers drew these samples with, after `step` updates; empty where none
        did.

        Raises:
            StopTrainingError: it is another number than the pipeline's, so some weights were not the ones that were pushed.
        """
        lags = [(step - each.version, each.behind) for each in self.rollouts if each.version is not None]
        if wrong := [(lag, behind) for lag, behind in lags if lag != behind]:
            raise StopTrainingError(
                f"step {step + 1} would train on samples of weights that are {wrong[0][0]} updates old, and {wrong[0][1]} is what "
                "the pipeline says: a rollout server drew with other weights than it was given"
            )
        return {"rollout/weight_version_lag": float(max(lag for lag, _ in lags))} if lags else {}


def marked(rollout: Rollout, again: int) -> Rollout:
    """The rollout with ids of its own where its step was sampled before: the same prompt may have come in the same place."""
    if not again:
        return rollout
    tail = f"/again{again}"
    renamed = [replace(each, id=each.id + tail, group_id=each.group_id + tail) for each in rollout.samples]
    return replace(rollout, samples=renamed)


@dataclass(frozen=True)
class Collected:
    """A task's rollouts with their scores.

    Attributes:
        scores: of what is trained on.
        seen: of all that was drawn, what was exchanged included.
    """

    drawn: Drawn
    scores: Scores
    seen: Scores


def seeds_B(config: Config, task: Task, world: World, step: int, again: int = 0) -> list[int]:
    """A seed per sample of this rank, the same however many ranks there are.

    Args:
        again: how often the step was sampled before.
    """
    count = config.sampling.prompts_per_step * task.group_size // world.size
    first = world.rank * count
    names: list[str | int] = ["again", again] if again else []
    names += [task.name] if task.name else []
    return [sample_seed(config.seed, step, index, *names) for index in range(first, first + count)]
