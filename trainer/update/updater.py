"""One optimizer step over a set of rollouts: losses of the objective, one division by the global count.

Axes: B samples. The update's micro-batches need not be the sampled ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer.config import ObjectiveConfig, OptimConfig, SftLossConfig
from trainer.config.objective import AveragedSection
from trainer.engine import Engine
from trainer.objectives import Batch, Supervised, build_objective
from trainer.policies.base import Denoises
from trainer.processes.distributed import World
from trainer.types import Rollout, StopTrainingError
from trainer.update.ema import Ema
from trainer.update.schedule import learning_rate, old_decay
from trainer.update.tally import Tally


class Updater:
    """Turns rollouts with advantages into optimizer steps.

    Attributes:
        old: the sampling policy, where that is a moving average of the trained one (`objective.old_decay`).
    """

    def __init__(
        self,
        policy: Denoises,
        engine: Engine,
        objective: ObjectiveConfig,
        optim: OptimConfig,
        world: World,
        max_steps: int,
        seed: int,
        sft: SftLossConfig | None = None,
    ) -> None:
        self.engine, self.config, self.optim, self.world = engine, objective, optim, world
        self.max_steps = max_steps
        self.objective = build_objective(policy, objective, micro_batch_size=optim.micro_batch_size, seed=seed)
        self.averaged = objective if isinstance(objective, AveragedSection) and objective.old_decay else None
        self.old = None if self.averaged is None else Ema(policy.trainable, self.averaged.old_decay, kind="old")
        self.sft = None if sft is None else Supervised(policy, sft, world, seed)

    @contextmanager
    def sampling_policy(self) -> Iterator[None]:
        """Inside the block the policy has the weights that rollouts are drawn with."""
        if self.old is None:
            yield
            return
        with self.old.applied():
            yield

    def step(self, rollouts: Sequence[Rollout], adv_B: Tensor, weight_B: Tensor, step: int) -> dict[str, float]:
        """Apply `updates_per_rollout` optimizer steps on this rank's rollouts; all ranks call it together.

        `adv_B` and `weight_B` follow the samples' order. Returns metrics of all ranks together.

        Raises:
            StopTrainingError: a loss or the gradient is not finite on some rank; this optimizer step was not taken.
        """
        lr = learning_rate(self.optim, step, self.max_steps)
        batches = self.objective.batches(rollouts, adv_B, weight_B, step)
        terms = sum(batch.weight_N.double().sum() * self.objective.num_chunks(batch) for batch in batches)
        count = self.world.sum(torch.as_tensor(terms)).item()
        batches = [batch.to(self.world.device) for batch in batches]
        self._remember(batches)
        tally, grad_norm = Tally(self.world), 0.0
        for number in range(self.optim.updates_per_rollout):
            self.engine.zero_grad()
            share = self._supervise(step, number, tally) if count else 1.0
            self._backward(batches, max(count, 1.0), share, tally)
            grad_norm = self._apply(step, number, lr, tally) if count else 0.0
        if self.old is not None and self.averaged is not None:
            self.old.update(old_decay(self.averaged, step))
        row = {"lr": lr, "grad_norm": grad_norm, **tally.metrics()}
        if "ratio/square" in row:  # the mean of (ratio - 1)^2
            row["ratio/std"] = math.sqrt(max(row.pop("ratio/square") - (row["ratio/mean"] - 1) ** 2, 0.0))
        return {**row, "kl": row["loss/kl"]}

    @torch.no_grad()
    def _remember(self, batches: Sequence[Batch]) -> None:
        """Let the objective see the samples under the weights they were drawn with, where those are others."""
        if self.old is None:
            return
        with self.old.applied():
            for batch in batches:
                for column in range(self.objective.num_chunks(batch)):
                    self.objective.chunk(batch, column)

    def _supervise(self, step: int, number: int, tally: Tally) -> float:
        """Accumulate the gradient of the supervised loss where it is due. Returns the objective's share of the sum."""
        if self.sft is None or not self.sft.is_due(step):
            return 1.0
        updates, coef = self.optim.updates_per_rollout, self.sft.config.coef
        try:
            batch = self.sft.draw(step * updates + number)
        except StopTrainingError as error:
            raise StopTrainingError(str(error), midway=number > 0) from error
        for column in range(self.sft.num_chunks(batch)):
            loss = self.sft.chunk(batch, column)
            tally.add("loss/sft", loss / updates)
            self.engine.backward(coef * loss, last=False)
        tally.add("sft/skipped", torch.tensor(float(batch.pictures.skipped), device=self.world.device))
        return 1.0 - coef

    def _backward(self, batches: Sequence[Batch], count: float, share: float, tally: Tally) -> None:
        """Accumulate the gradient of `share` of the objective chunk by chunk, so that memory stays flat."""
        terms = count * self.optim.updates_per_rollout  # metrics are means over the updates
        for batch in batches:
            num_chunks = self.objective.num_chunks(batch)
            for column in range(num_chunks):
                chunk = self.objective.chunk(batch, column)
                tally.add_stats(chunk.stats)
                tally.add("loss/policy", chunk.loss / terms)
                tally.add("loss/kl", torch.zeros_like(chunk.loss) if chunk.kl is None else chunk.kl / terms)
                loss = chunk.loss if chunk.kl is None else chunk.loss + self.config.kl_beta * chunk.kl
                last = batch is batches[-1] and column == num_chunks - 1
                self.engine.backward(share * loss / count, last=last)

    def _apply(self, step: int, number: int, lr: float, tally: Tally) -> float:
        """One optimizer step, unless a loss or the gradient is not finite on some rank. Returns the gradient's norm."""
        norm = math.nan if self.world.any(not tally.is_finite()) else self.engine.step(lr)
        if self.world.any(not math.isfinite(norm)):
            updates = self.optim.updates_per_rollout
            before = f" The {number} of {updates} before it were, so the weights are not saved." if number else ""
            raise StopTrainingError(
                f"step {step + 1}: the loss or the gradient (norm {norm}) is not finite on some rank; this update was not "
                f"made.{before} Lower optim.lr, or look at the rewards of this step in metrics.jsonl",
                midway=number > 0,
            )
        return norm
