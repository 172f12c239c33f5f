"""Objectives on the forward process: the clean sample is noised anew, so any solver may have made it. Axes: B, N pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from trainer.config.objective import AwmConfig, DiffusionDpoConfig, DiffusionNftConfig, TimestepSection
from trainer.losses import (
    Stats,
    clipped_surrogate,
    diffuse,
    dpo_loss,
    kl_penalty,
    matching_error,
    matching_logp,
    nft_loss,
    velocity_distance,
)
from trainer.objectives.base import Entry, Once, PlanNeeds, RolloutBatch, Scored, Term, with_gradient
from trainer.objectives.flow.noise import NoiseLevels
from trainer.objectives.flow.pairs import pair_batches
from trainer.policies.base import Denoises
from trainer.seeds import sample_seed


class Point(NamedTuple):
    """Where the forward process takes a micro-batch: x = (1 - sigma) x0 + sigma * noise."""

    x: Tensor
    x0: Tensor
    noise: Tensor
    sigma_B: Tensor


TimestepT = TypeVar("TimestepT", bound=TimestepSection)


class ForwardObjective(Generic[TimestepT]):
    """What these objectives share: points of the forward process, and velocities there. A part is a noise level."""

    requires: ClassVar[type] = Denoises
    leads: ClassVar[Sequence[str]] = ("terms",)

    def __init__(self, policy: Denoises, config: TimestepT, *, micro_batch_size: int | None, seed: int) -> None:
        self.policy, self.config = policy, config
        self.micro_batch_size, self.seed = micro_batch_size, seed
        self.levels = NoiseLevels.of(config)
        self._once = Once()

    def batches(self, fed: Scored, step: int) -> list[RolloutBatch]:
        """Of the samples that have a gradient."""
        self._once.take(fed.rollouts)
        return with_gradient(fed, self.act(fed), step, self.micro_batch_size, self._count, policy=self.policy)

    def act(self, fed: Scored) -> Tensor:
        """Bool (B,), which samples have a gradient. An advantage of 0 may have one: DiffusionNFT takes it for a sample that is as
        good as bad, and holds the velocity where it was."""
        return fed.weight_B.cpu() != 0

    def counts(self, batch: RolloutBatch) -> dict[str, float]:
        return {"terms": self._count(batch) + batch.left_out, **batch.num_samples()}

    def _count(self, batch: RolloutBatch) -> float:
        return batch.weight_N.double().sum().item() * self.num_parts(batch)

    def num_parts(self, batch: RolloutBatch) -> int:
        return self.config.timestep_draws

    def draw(self, batch: RolloutBatch, part: int, names_B: Sequence[str] | None = None) -> Point:
        """A noise level and a noise for each sample, the same in every update, on every rank and in every micro-batch.

        `names_B` tells samples apart that are to have different ones; None is each sample's own.
        """
        x0 = self.policy.clean(batch.rollout)
        if names_B is None:
            names_B = [f"{sample.prompt.dataset}/{sample.id}" for sample in batch.rollout.samples]
        seeds_B = [sample_seed(self.seed, "forward", batch.step, name, part) for name in names_B]
        stratum = (part, self.config.timestep_draws)
        sigma_B, noise = self.levels.draw(seeds_B, x0, stratum=stratum)
        return Point(diffuse(x0, noise, sigma_B), x0, noise, sigma_B)

    def predict(self, batch: RolloutBatch, point: Point, *, reference: bool = False) -> Tensor:
        return self.policy.predict(batch.rollout.prompts, point.x, point.sigma_B, reference=reference)

    def losses(self, batch: RolloutBatch, point: Point, v: Tensor, loss: Tensor) -> list[Term]:
        """The loss and the KL to the reference at the point; without a `kl_beta` that is a term of 0, only shown."""
        kl = torch.zeros_like(loss)
        if self.config.kl_beta:
            kl = kl_penalty(velocity_distance(v, self.predict(batch, point, reference=True)), batch.weight_N)
        return self.with_kl(loss, kl)

    def with_kl(self, loss: Tensor, kl: Tensor) -> list[Term]:
        return [
            Term("loss/policy", loss, "terms"),
            Term("loss/kl", kl, "terms", coef=self.config.kl_beta, scales=False),
        ]


class DiffusionNft(ForwardObjective[DiffusionNftConfig]):
    """DiffusionNFT (arXiv 2509.16117): `batch.old` is the velocity of the sampling policy."""

    def terms(self, batch: RolloutBatch, part: int) -> tuple[list[Term], Stats]:
        point = self.draw(batch, part)
        v = self.predict(batch, point)
        v_old = batch.old.setdefault(part, v.detach())
        loss, stats = nft_loss(
            v,
            v_old,
            point.x,
            point.x0,
            point.sigma_B,
            batch.adv_B,
            batch.weight_N,
            beta=self.config.nft_beta,
            adv_clip=self.config.nft_adv_clip,
        )
        # On policy the gradient is that of the matching error times the clipped advantage.
        most = self.config.nft_adv_clip
        return [*self.losses(batch, point, v, loss), *_pull(batch, batch.adv_B.clamp(-most, most))], stats


class Awm(ForwardObjective[AwmConfig]):
    """Advantage weighted matching (arXiv 2509.25050): minus the matching error stands for the log-probability.

    The rest is the clipped surrogate, and with `old_kl_beta` a KL to the sampling policy, the mean squared distance of the
    velocities. `batch.old` is the log-probability under the sampling policy, or with that KL its velocity.
    """

    scales: ClassVar[bool] = True  # as `ReplayedObjective`

    def act(self, fed: Scored) -> Tensor:
        """The surrogate is a multiple of the advantage; a KL acts on every sample."""
        acts_B = super().act(fed)
        return acts_B if self.config.kl_beta or self.config.old_kl_beta else acts_B & (fed.adv_B.cpu() != 0)

    def terms(self, batch: RolloutBatch, part: int) -> tuple[list[Term], Stats]:
        point = self.draw(batch, part)
        v = self.predict(batch, point)
        logp_B1 = self._logp(point, v)
        if not self.config.old_kl_beta:
            old_B1 = batch.old.setdefault(part, logp_B1.detach())
            loss, stats, pull = self._surrogate(batch, logp_B1, old_B1)
            return [*self.losses(batch, point, v, loss), *pull], stats
        v_old = batch.old.setdefault(part, v.detach())
        loss, stats, pull = self._surrogate(batch, logp_B1, self._logp(point, v_old))
        drift = kl_penalty(velocity_distance(v, v_old), batch.weight_N)
        tie = Term("loss/kl_old", drift, "terms", coef=self.config.old_kl_beta, scales=False)
        return [*self.losses(batch, point, v, loss), tie, *pull], stats

    def _surrogate(self, batch: RolloutBatch, logp_B1: Tensor, old_B1: Tensor) -> tuple[Tensor, Stats, list[Term]]:
        loss, stats = clipped_surrogate(logp_B1, old_B1, batch.adv_B, batch.weight_N, clip_range=self.config.clip_range)
        ratio_B = (logp_B1.detach() - old_B1).exp()[:, 0]
        return loss, stats, _pull(batch, batch.adv_B.to(ratio_B.device) * ratio_B)

    def _logp(self, point: Point, v: Tensor) -> Tensor:
        return matching_logp(v, point.x0, point.noise, point.sigma_B, power=self.config.awm_power)


class DiffusionDpo(ForwardObjective[DiffusionDpoConfig]):
    """Diffusion-DPO (arXiv 2311.12908) on the best and the worst sample of each group; a term is a pair."""

    def batches(self, fed: Scored, step: int) -> list[RolloutBatch]:
        self._once.take(fed.rollouts)
        return pair_batches(fed, step, self.micro_batch_size)

    def terms(self, batch: RolloutBatch, part: int) -> tuple[list[Term], Stats]:
        # The two of a pair share noise level and noise: they go by the group's name.
        names_B = [f"{sample.prompt.dataset}/{sample.group_id}" for sample in batch.rollout.samples]
        point = self.draw(batch, part, names_B)
        v, v_ref = self.predict(batch, point), self.predict(batch, point, reference=True)
        terms, stats = pair_terms(v, v_ref, point.x0, point.noise, batch.weight_N, self.config)
        with torch.no_grad():
            better_N, worse_N, ref_better_N, ref_worse_N = _errors(v, v_ref, point.x0, point.noise)
            margin_N = (worse_N - ref_worse_N) - (better_N - ref_better_N)
            half = self.config.dpo_beta / 2  # as in `dpo_loss`, whose derivative by a margin this is
            pull = _pull(batch, half * torch.sigmoid(-half * margin_N))
        return [*terms, *pull], stats


def pair_terms(
    v: Tensor, v_ref: Tensor, x0: Tensor, noise: Tensor, weight_N: Tensor, config: DiffusionDpoConfig
) -> tuple[list[Term], Stats]:
    """The loss of N pairs and their KL to the reference; without a `kl_beta` that is a term of 0, only shown.

    Args:
        v, v_ref, x0, noise: (2N, ...); 2n is the better one of pair n, 2n + 1 the worse.
        weight_N: of the pairs.
    """
    loss, stats = dpo_loss(*_errors(v, v_ref, x0, noise), weight_N, beta=config.dpo_beta)
    kl = torch.zeros_like(loss)
    if config.kl_beta:
        kl = kl_penalty(velocity_distance(v, v_ref).view(-1, 2).mean(1, keepdim=True), weight_N)
    return [Term("loss/policy", loss, "terms"), Term("loss/kl", kl, "terms", coef=config.kl_beta)], stats


def _errors(v: Tensor, v_ref: Tensor, x0: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matching errors (N,) of the better and the worse image of each pair, under the policy, then under the reference."""
    better_N, worse_N = matching_error(v, x0, noise).view(-1, 2).unbind(1)
    ref_better_N, ref_worse_N = matching_error(v_ref, x0, noise).view(-1, 2).unbind(1)
    return better_N, worse_N, ref_better_N, ref_worse_N


def _pull(batch: RolloutBatch, factor_N: Tensor) -> list[Term]:
    """Beside another task: how much of what moves the weights is this one's. Here a loss moves the matching errors of samples, and
    `factor_N` is what the gradient of each is multiplied by, as advantage times ratio multiplies that of a log-probability."""
    if not batch.rollout.samples[0].prompt.task:
        return []
    weight_N = batch.weight_N.to(factor_N.device)
    # Selected, not multiplied: what has no weight may be NaN, and 0 * NaN is NaN.
    pull_N = torch.where(weight_N != 0, weight_N * factor_N.abs(), 0.0)
    return [Term("loss/pull", pull_N.sum(), "terms", coef=0.0)]


# Any solver may have made the clean sample, and it is kept.
_NEEDS = PlanNeeds(keep_final=True, deterministic=True)
FORWARD: dict[str, Entry] = {
    "diffusion_nft": Entry(DiffusionNft, _NEEDS),
    "awm": Entry(Awm, _NEEDS),
    "diffusion_dpo": Entry(DiffusionDpo, _NEEDS, reference=True),
}
