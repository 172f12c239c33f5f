"""The optimizer steps of a training step: what the objective adds up, divided once by what all ranks count.

The micro-batches of an update need not be those that were sampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from trainer.config import OptimConfig
from trainer.engine import Engine
from trainer.objectives import Objective, total
from trainer.objectives.base import LooksFirst
from trainer.processes.distributed import World
from trainer.types import StopTrainingError
from trainer.update.old import OldPolicy
from trainer.update.schedule import learning_rate
from trainer.update.tally import Tally
from trainer.update.work import Item, Work, plan_work


class Updater:
    """Turns what an objective is fed into optimizer steps.

    Attributes:
        objective: says what is added up and what that is divided by.
        updates: optimizer steps a training step.
        old: the sampling policy, where that is a moving average of the trained one.
    """

    def __init__(
        self,
        objective: Objective,
        engine: Engine,
        optim: OptimConfig,
        world: World,
        max_steps: int,
        *,
        old: OldPolicy | None = None,
    ) -> None:
        self.objective, self.engine, self.optim, self.world = objective, engine, optim, world
        self.max_steps, self.updates, self.old = max_steps, optim.updates_per_rollout, old

    @contextmanager
    def sampling_policy(self, task: str = "") -> Iterator[None]:
        """Inside the block the policy has the weights that rollouts of this task are drawn with."""
        if self.old is None or self.old.task != task:
            yield
            return
        with self.old.applied():
            yield

    def step(self, fed: Any, step: int) -> dict[str, float]:
        """Take `updates` optimizer steps on what this rank is fed; all ranks call it together.

        Args:
            fed: what the objective is made for, such as `trainer.objectives.Scored`.
            step: finished training steps.

        Returns:
            Metrics of all ranks together.

        Raises:
            StopTrainingError: a loss or the gradient is not finite on some rank, and this optimizer step was not taken; or
                some rank has nothing to train on.
        """
        lr = learning_rate(self.optim, step, self.max_steps)
        work = plan_work(self.objective, fed, step, self.updates, self.world)
        self._remember(work)
        tally, grad_norm = Tally(self.world), 0.0
        for number in range(self.updates):
            grad_norm = self.update(number, work.of_update(number), work.counts_U[number], step, tally)
        if self.old is not None:
            self.old.follow(step)
        return {"lr": lr, "grad_norm": grad_norm, **skipped_shares(work.counts_U[0]), **tally.metrics()}

    def update(self, number: int, items: Sequence[Item], counts: Mapping[str, float], step: int, tally: Tally) -> float:
        """Optimizer step `number` (from 0) of training step `step`. Returns the gradient's norm before clipping."""
        self.engine.zero_grad()
        if isinstance(self.objective, LooksFirst):
            self.objective.look([item.batch for item in items], self.world.gather)
        self._backward(items, counts, tally)
        return self.apply(number, counts, step, tally)

    @torch.no_grad()
    def _remember(self, work: Work) -> None:
        """Let the objective see the samples under the weights they were drawn with, where those are others."""
        if self.old is None:
            return
        with self.old.applied():
            for item in work.items:
                # What only one update has was not sampled by the policy, and samples of other tasks by the trained weights.
                if item.batch.update is None and self.old.task in ("", *item.batch.kind.split("/")):
                    self.objective.terms(item.batch, item.part)

    def _backward(self, items: Sequence[Item], counts: Mapping[str, float], tally: Tally) -> None:
        """Accumulate the gradient part by part, so that memory stays flat."""
        for number, item in enumerate(items, 1):
            terms, stats = self.objective.terms(item.batch, item.part)
            tally.add_stats(stats)
            for term in terms:
                # Metrics are means over the updates.
                tally.add(term.name, term.sum / (max(counts[term.over], 1.0) * self.updates))
            self.engine.backward(total(terms, counts), last=number == len(items))

    def apply(self, number: int, counts: Mapping[str, float], step: int, tally: Tally, *, scale: float = 1.0) -> float:
        """One optimizer step with the gradient that was added up, times `scale`. Returns its norm before clipping.

        Raises:
            StopTrainingError: a loss or the gradient is not finite on some rank.
        """
        # Weight decay and momentum would move the weights even where there is nothing to train on.
        if not any(counts[name] for name in self.objective.leads):
            return 0.0
        lr = learning_rate(self.optim, step, self.max_steps)
        norm = math.nan if self.world.any(not tally.is_finite()) else self.engine.step(lr, scale=scale)
        if not math.isfinite(norm):  # on all ranks alike
            before = f" The {number} of {self.updates} before it were, so the weights are not saved." if number else ""
            raise StopTrainingError(
                f"step {step + 1}: the loss or the gradient (norm {norm}) is not finite on some rank; this update was not "
                f"made.{before} Lower optim.lr, or look at the rewards of this step in metrics.jsonl",
                midway=number > 0,
            )
        return norm


def skipped_shares(counts: Mapping[str, float]) -> dict[str, float]:
    """Which share of the samples was not computed, as it has no gradient; by task where there are tasks."""
    groups = [name.removesuffix("idle") for name in counts if name.rpartition("/")[2] == "idle"]
    return {
        f"{group.removeprefix('main/')}skipped_share": counts[f"{group}idle"] / max(counts[f"{group}samples"], 1.0)
        for group in groups
    }
