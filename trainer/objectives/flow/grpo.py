"""Objectives on the sampler's own stochastic steps: each has a log-probability, which is replayed. Axes: B, S."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch
from torch import Tensor

from trainer.config.objective import FlowGrpoConfig, GrpoGuardConfig, OwnConfig, StochasticSection
from trainer.losses import Stats, clipped_surrogate, guarded_surrogate, kl_penalty
from trainer.objectives.base import Entry, PlanNeeds, RolloutBatch, Scored, Term, with_gradient
from trainer.objectives.replayed import Replayed, ReplayedObjective
from trainer.policies.base import Replays

StochasticT = TypeVar("StochasticT", bound=StochasticSection | OwnConfig)


class StochasticObjective(ReplayedObjective, ABC, Generic[StochasticT]):
    """What these objectives share: counts, and the KL in closed form. Nothing is drawn: `seed` is not used."""

    def __init__(self, policy: Replays, config: StochasticT, *, micro_batch_size: int | None, seed: int) -> None:
        super().__init__(policy, micro_batch_size)
        self.config = config

    def batches(self, fed: Scored, step: int) -> list[RolloutBatch]:
        """Of the samples that have a gradient: a surrogate that scales is a multiple of the advantage, and weight 0 takes out the KL,
        too."""
        self._once.take(fed.rollouts)
        acts_B = fed.weight_B.cpu() != 0
        if self.scales and not self.config.kl_beta:
            acts_B &= fed.adv_B.cpu() != 0
        return with_gradient(fed, acts_B, step, self.micro_batch_size, self._count, policy=self.policy)

    def counts(self, batch: RolloutBatch) -> dict[str, float]:
        return {"terms": self._count(batch) + batch.left_out, **batch.num_samples()}

    def _count(self, batch: RolloutBatch) -> float:
        rollout, weight_B = batch.rollout, batch.weight_N.double()
        if rollout.mask_BS is None:
            return weight_B.sum().item() * rollout.logp_BS.shape[1]
        return (weight_B[:, None] * rollout.mask_BS).sum().item()

    def terms(self, batch: RolloutBatch, part: int) -> tuple[list[Term], Stats]:
        found = self.replayed(batch, part, reference=self.config.kl_beta > 0)
        loss, stats = self._surrogate(batch, found)
        if found.error is not None:
            stats = Stats(stats.count, stats.sums, stats.lows, {**stats.highs, "ratio/replay_error": found.error})
        terms = [Term("loss/policy", loss, "terms"), self._kl(batch, found, loss)]
        if batch.rollout.samples[
            0
        ].prompt.task:  # beside another task: how much of what moves the weights is this one's
            terms.append(_pull(batch, found))
        return terms, stats

    def _kl(self, batch: RolloutBatch, found: Replayed, loss: Tensor) -> Term:
        """The KL to the reference; without a `kl_beta` a term of 0, so that the metric is always there."""
        config = self.config
        if not config.kl_beta:
            return Term("loss/kl", torch.zeros_like(loss), "terms", coef=0.0, scales=False)
        kl_BS = found.replay.kl_BS
        if config.kl_type not in kl_BS:
            raise ValueError(
                f"objective.kl_type = {config.kl_type}, but the replay of {type(self.policy).__name__} has the KLs: "
                f"{', '.join(kl_BS) or 'none'}; set objective.kl_beta to 0 or choose one of them"
            )
        kl = kl_penalty(kl_BS[config.kl_type], batch.weight_N, mask_BS=found.mask_BS)
        return Term("loss/kl", kl, "terms", coef=config.kl_beta, scales=False)

    @abstractmethod
    def _surrogate(self, batch: RolloutBatch, found: Replayed) -> tuple[Tensor, Stats]:
        """The loss, summed over its terms."""


class FlowGrpo(StochasticObjective[FlowGrpoConfig]):
    """Flow-GRPO (arXiv 2505.05470) and DanceGRPO (arXiv 2505.07818): the clipped surrogate, a denoising step at a time.

    Samples of older weights are corrected for by an importance weight.
    """

    def _surrogate(self, batch: RolloutBatch, found: Replayed) -> tuple[Tensor, Stats]:
        return clipped_surrogate(
            found.replay.logp_BS,
            found.old_BS,
            batch.adv_B,
            batch.weight_N,
            clip_range=self.config.clip_range,
            mask_BS=found.mask_BS,
            logp_behaviour_BS=found.behaviour_BS,
            importance_cap=self.config.importance_cap,
        )


class GrpoGuard(StochasticObjective[GrpoGuardConfig]):
    """GRPO-Guard (arXiv 2510.22319): Flow-GRPO with normalised ratios and, with `guard_reweight`, even steps."""

    def _surrogate(self, batch: RolloutBatch, found: Replayed) -> tuple[Tensor, Stats]:
        replay = found.replay
        if replay.mean_shift_BS is None:
            raise ValueError("grpo_guard needs the means of the sampled steps: sample with keep_means")
        lengths = [sigma - sigma_next for sigma, sigma_next in replay.sigma_S]
        return guarded_surrogate(
            found.replay.logp_BS,
            found.old_BS,
            replay.mean_shift_BS,
            batch.adv_B,
            batch.weight_N,
            std_S=replay.std_S,
            dt_S=lengths if self.config.guard_reweight else None,
            clip_range=self.config.clip_range,
        )


def _pull(batch: RolloutBatch, found: Replayed) -> Term:
    """|advantage * ratio|, which says how much the loss moves the weights: terms of both signs add up to nearly 0."""
    ratio_BS = (found.replay.logp_BS.detach() - found.old_BS).exp()
    # Selected, not multiplied: what a mask leaves out may be NaN, and 0 * NaN is NaN.
    counted_BS = ratio_BS if found.mask_BS is None else torch.where(found.mask_BS, ratio_BS, 0.0)
    weight_B = batch.weight_N * batch.adv_B.abs()
    return Term("loss/pull", (weight_B[:, None].to(ratio_BS.device) * counted_BS).sum(), "terms", coef=0.0)


STOCHASTIC: dict[str, Entry] = {
    "flow_grpo": Entry(FlowGrpo, PlanNeeds()),
    "grpo_guard": Entry(GrpoGuard, PlanNeeds(keep_means=True)),
}
