"""One step's rollouts with their rewards under way: what is sampled before its scores are there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.policies.base import SamplingPlan
from trainer.programs.plan import training_plan
from trainer.rewards import Batch
from trainer.seeds import sample_seed
from trainer.types import Rollout

if TYPE_CHECKING:
    from trainer.programs.assemble import Run


@dataclass(frozen=True)
class Drawn:
    """The rollouts of one step.

    Attributes:
        rollouts: its micro-batches, in order.
        batch: their rewards, under way.
        position: the prompt sampler's position after this step's prompts, for a checkpoint.
        seeds_B, plan: what they were sampled with.
        sampling_s, flops: how long that took, and the model FLOPs in it where they are counted.
    """

    rollouts: Sequence[Rollout]
    batch: Batch
    position: dict[str, Any]
    seeds_B: Sequence[int]
    plan: SamplingPlan
    sampling_s: float
    flops: float

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


def roll_out(run: Run, step: int) -> Drawn:
    """Draw the prompts of the step after `step` finished ones and sample them; each micro-batch is scored while the next
    one is sampled."""
    config = run.config
    group_size = config.sampling.group_size
    prompts_P = run.sampler.draw()
    batch = run.client.batch(group_size=group_size, step=step + 1)
    seeds, plan = seeds_B(run, step), training_plan(config, step)
    run.gauges.flops.take()  # an evaluation's
    started = time.perf_counter()
    rollouts = []
    with run.updater.sampling_policy():
        for rollout in run.policy.sample(prompts_P, group_size, seeds, plan):
            batch.submit(rollout.samples)
            rollouts.append(rollout)
    sampling_s = time.perf_counter() - started
    flops, _ = run.gauges.flops.take()
    return Drawn(rollouts, batch, run.sampler.state_dict(), seeds, plan, sampling_s, flops)


def seeds_B(run: Run, step: int) -> list[int]:
    """A seed per sample of this rank, the same however many ranks there are."""
    sampling = run.config.sampling
    count = sampling.prompts_per_step * sampling.group_size // run.world.size
    first = run.world.rank * count
    return [sample_seed(run.config.seed, step, index) for index in range(first, first + count)]
