"""Objectives on the sampler's own stochastic steps: each has a log-probability, which is replayed. Axes: B, S."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from trainer.config.objective import FlowGrpoConfig, GrpoGuardConfig, StochasticSection
from trainer.losses import Stats, clipped_surrogate, guarded_surrogate, highest, kl_penalty
from trainer.objectives.base import Batch, Chunk, micro_batches
from trainer.policies.base import Replays
from trainer.types import Replay, Rollout

StochasticT = TypeVar("StochasticT", bound=StochasticSection)


class StochasticObjective(Generic[StochasticT]):
    """What these objectives share: the replay of a step, and what the first replay is compared with.

    Nothing is drawn: `seed` is not used.
    """

    def __init__(self, policy: Replays, config: StochasticT, *, micro_batch_size: int | None, seed: int) -> None:
        self.policy, self.config, self.micro_batch_size = policy, config, micro_batch_size

    def batches(self, rollouts: Sequence[Rollout], adv_B: Tensor, weight_B: Tensor, step: int) -> list[Batch]:
        return micro_batches(rollouts, adv_B, weight_B, step, self.micro_batch_size)

    def num_chunks(self, batch: Batch) -> int:
        return len(self.policy.parts(batch.rollout))

    def chunk(self, batch: Batch, column: int) -> Chunk:
        rollout, part = batch.rollout, self.policy.parts(batch.rollout)[column]
        replay = self.policy.replay(rollout, part, reference=self.config.kl_beta > 0)
        replayed_BS = replay.logp_BS.detach()
        sampled_BS = rollout.logp_BS[:, part].to(replayed_BS.device)
        first, stale = column not in batch.old, rollout.behind > 0
        if first:
            # A resized micro-batch may differ from the sampled ones in the last bits; its first replay, which precedes
            # every update, is then the old log-probability, so that the first ratio is exactly 1 either way.
            batch.old[column] = replayed_BS if stale or rollout.resized else sampled_BS
        loss, stats = self._surrogate(batch, replay, batch.old[column], sampled_BS if stale else None)
        if not stale:
            error = (replayed_BS - sampled_BS).abs() if first else torch.zeros_like(sampled_BS)
            worst = highest(error, torch.ones_like(error, dtype=torch.bool))
            stats = Stats(stats.count, stats.sums, stats.lows, {**stats.highs, "ratio/replay_error": worst})
        kl_BS = replay.kl_BS.get(self.config.kl_type)
        kl = None if kl_BS is None else kl_penalty(kl_BS, batch.weight_N)
        return Chunk(loss, kl, stats)

    def _surrogate(
        self, batch: Batch, replay: Replay, old_BS: Tensor, behaviour_BS: Tensor | None
    ) -> tuple[Tensor, Stats]:
        """The loss, summed over its terms. `behaviour_BS` are the log-probabilities under older weights, where the samples
        come from such."""
        raise NotImplementedError


class FlowGrpo(StochasticObjective[FlowGrpoConfig]):
    """Flow-GRPO (arXiv 2505.05470) and DanceGRPO (arXiv 2505.07818): the clipped surrogate, a denoising step at a time.

    Where the samples come from older weights (`behind` in the rollout), the first replay is the proximal policy,
    so that ratios still begin at 1, and an importance weight corrects for the rest.
    """

    def _surrogate(
        self, batch: Batch, replay: Replay, old_BS: Tensor, behaviour_BS: Tensor | None
    ) -> tuple[Tensor, Stats]:
        return clipped_surrogate(
            replay.logp_BS,
            old_BS,
            batch.adv_B,
            batch.weight_N,
            clip_range=self.config.clip_range,
            logp_behaviour_BS=behaviour_BS,
            importance_cap=self.config.importance_cap,
        )


class GrpoGuard(StochasticObjective[GrpoGuardConfig]):
    """GRPO-Guard (arXiv 2510.22319): Flow-GRPO with normalised ratios and, with `guard_reweight`, even steps."""

    def _surrogate(
        self, batch: Batch, replay: Replay, old_BS: Tensor, behaviour_BS: Tensor | None
    ) -> tuple[Tensor, Stats]:
        if replay.mean_shift_BS is None:
            raise ValueError("grpo_guard needs the means of the sampled steps: sample with keep_means")
        lengths = [sigma - sigma_next for sigma, sigma_next in replay.sigma_S]
        return guarded_surrogate(
            replay.logp_BS,
            old_BS,
            replay.mean_shift_BS,
            batch.adv_B,
            batch.weight_N,
            std_S=replay.std_S,
            dt_S=lengths if self.config.guard_reweight else None,
            clip_range=self.config.clip_range,
        )
