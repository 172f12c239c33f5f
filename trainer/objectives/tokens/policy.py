"""Policy gradients on the tokens of answers of unequal length. Axes: B samples, S tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from machine.transfers import sent
from trainer.config.objective import ObjectiveConfig
from trainer.config.token_objective import (
    CispoConfig,
    ClippedTokenSection,
    DrGrpoLossConfig,
    LevelSection,
    SapoConfig,
    TokenSection,
)
from trainer.losses import PolicyKind, Reduction, Stats, Weights, highest, policy_terms, weigh
from trainer.losses.clips import clip_bounds, is_cut
from trainer.losses.policy import REDUCTIONS, Level
from trainer.losses.ratios import k3, log_ratios
from trainer.losses.terms import lowest, total
from trainer.objectives.base import Entry, PlanNeeds, RolloutBatch, Scored, Term, with_gradient
from trainer.objectives.replayed import Replayed, ReplayedObjective
from trainer.policies.base import Replays
from trainer.types import Rollout

_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


@dataclass(frozen=True)
class TokenLoss:
    """What is made of ratios and advantages; the arguments of `trainer.losses.policy_loss`, where they are explained.

    Attributes:
        reduction: how much each token weighs (`trainer.losses.weigh`); None is what `kind` does in its paper.
        longest: the most tokens an answer may have; the divisor of reduction `cap`, which dr_grpo has.
        kl_beta: weight of the KL to the starting weights, estimated from the sampled tokens (k3).
        importance_cap: largest importance weight of answers that older weights drew.
        mask_truncated: the tokens of answers that were cut off count for none; in `sample` they stay rows of value 0.
    """

    kind: PolicyKind = "dapo"
    level: Level = "token"
    reduction: Reduction | None = None
    longest: int | None = None
    clip_range: tuple[float, float] = (0.2, 0.28)
    delta: float | None = None
    kl_beta: float = 0.0
    kl_importance: bool = False
    tau: tuple[float, float] = (1.0, 1.05)
    off_policy: float | None = None
    importance_cap: float = 5.0
    mask_truncated: bool = False


class TokenPolicy(ReplayedObjective):
    """GRPO on tokens and its relatives. What divides the loss follows from the masks, so it is known before any forward."""

    leads: ClassVar[Sequence[str]] = ("tokens",)

    def __init__(self, policy: Replays, loss: TokenLoss, *, micro_batch_size: int | None) -> None:
        super().__init__(policy, micro_batch_size)
        self.loss = loss
        self.reduction: Reduction = loss.reduction or REDUCTIONS[loss.kind]
        if (self.reduction == "cap") != (loss.longest is not None):
            raise ValueError(
                f"reduction {self.reduction} with longest = {loss.longest}: `cap` divides by samples * longest, no other has one"
            )

    def batches(self, fed: Scored, step: int) -> list[RolloutBatch]:
        """Of the samples that have a gradient, and the first one where none has: an update needs something to compute."""
        self._once.take(fed.rollouts)
        rollouts = [_whole(each) for each in fed.rollouts] if self.loss.mask_truncated else fed.rollouts
        whole = replace(fed, rollouts=rollouts)
        return with_gradient(
            whole, self._act(rollouts, fed), step, self.micro_batch_size, self._count, policy=self.policy
        )

    def _act(self, rollouts: Sequence[Rollout], fed: Scored) -> Tensor:
        """Bool (B,): which samples have a gradient. Every policy term is a multiple of the advantage, so where that is 0 only a
        KL has one; in groups whose answers were all right, or all wrong, that is every sample."""
        has_tokens = [_mask(rollout).any(1).cpu() for rollout in rollouts]
        acts_B = (fed.weight_B.cpu() != 0) & (torch.cat(has_tokens) if has_tokens else torch.tensor([]).bool())
        return acts_B if self.loss.kl_beta else acts_B & (fed.adv_B.cpu() != 0)

    def counts(self, batch: RolloutBatch) -> dict[str, float]:
        return {"tokens": self._count(batch) + batch.left_out, **batch.num_samples()}

    def _count(self, batch: RolloutBatch) -> float:
        return self._weights(batch).count.item()

    def terms(self, batch: RolloutBatch, part: int) -> tuple[list[Term], Stats]:
        loss, found = self.loss, self.replayed(batch, part, reference=self.loss.kl_beta > 0)
        logp_BS = found.replay.logp_BS
        of_rows = loss.level == "sequence" or loss.kind == "vespo" or loss.off_policy is not None
        if of_rows and logp_BS.shape != batch.rollout.logp_BS.shape:
            raise ValueError(
                f"{loss.kind} at level {loss.level} needs whole rows, but the policy replays them in parts"
            )
        counts_BS = torch.ones_like(logp_BS, dtype=torch.bool) if found.mask_BS is None else found.mask_BS
        counts_BS = counts_BS & (batch.weight_N != 0)[:, None]
        terms = policy_terms(
            logp_BS,
            found.old_BS,
            batch.adv_B,
            counts_BS,
            ref_BS=self._reference(found),
            kind=loss.kind,
            level=loss.level,
            clip_range=loss.clip_range,
            delta=loss.delta,
            kl_importance=loss.kl_importance,
            tau=loss.tau,
            off_policy=loss.off_policy,
        )
        weight_BS = self._weights(batch).weight_BS[:, found.columns].to(logp_BS.device)
        scale_BS = batch.rollout.scale_BS
        # Every policy term is a multiple of the advantage, and no clip asks for more than its sign.
        unscaled_BS = terms.policy_BS
        scaled_BS = unscaled_BS if scale_BS is None else unscaled_BS * sent(scale_BS[:, found.columns], logp_BS.device)
        policy_BS, log_w_BS = self._corrected(scaled_BS, found, counts_BS)
        policy = (weight_BS * policy_BS).sum()
        kl = torch.zeros_like(policy) if terms.kl_BS is None else (weight_BS * terms.kl_BS).sum()
        stats = self._stats(batch, terms.ratio_BS, counts_BS, found, log_w_BS)
        # Terms of both signs add up to nearly 0, so the loss does not say how much it moves the weights; their sizes do.
        pull = (weight_BS * policy_BS.detach().abs()).sum()
        return [
            Term("loss/policy", policy, "tokens"),
            Term("loss/kl", kl, "tokens", coef=loss.kl_beta, scales=False),
            Term("loss/pull", pull, "tokens", coef=0.0),
        ], stats

    def _weights(self, batch: RolloutBatch) -> Weights:
        """Of all tokens of the micro-batch, and what it adds to the divisor."""
        return self._weigh(batch.rollout, batch.weight_N)

    def _weigh(self, rollout: Rollout, weight_B: Tensor) -> Weights:
        # Where the weights are, which is the device only once the divisor is known: what is sent there is not read back.
        return weigh(sent(_mask(rollout), weight_B.device), self.reduction, weight_B=weight_B, cap=self.loss.longest)

    def _reference(self, found: Replayed) -> Tensor | None:
        if self.loss.kl_beta and found.replay.reference_BS is None:
            raise ValueError(
                f"kl_beta = {self.loss.kl_beta:g} compares tokens with the starting weights, but the replay of "
                f"{type(self.policy).__name__} has no reference_BS; set kl_beta to 0"
            )
        return found.replay.reference_BS

    def _corrected(self, policy_BS: Tensor, found: Replayed, counts_BS: Tensor) -> tuple[Tensor, Tensor | None]:
        """Terms of answers that older weights or another engine drew, times min(w, cap) with ln w = old - behaviour, and ln w
        (decoupled PPO: AReaL, arXiv 2505.24298 section 5.2)."""
        if found.behaviour_BS is None:
            return policy_BS, None
        log_w_BS = log_ratios(found.old_BS, found.behaviour_BS, counts_BS)
        return log_w_BS.exp().clamp(max=self.loss.importance_cap) * policy_BS, log_w_BS

    def _stats(
        self, batch: RolloutBatch, ratio_BS: Tensor, counts_BS: Tensor, found: Replayed, log_w_BS: Tensor | None
    ) -> Stats:
        sums = {"ratio/mean": total(ratio_BS, counts_BS), "ratio/square": total((ratio_BS - 1) ** 2, counts_BS)}
        highs = {"ratio/max": highest(ratio_BS, counts_BS)}
        if self.loss.kind in _CLIPPED:
            below, above = self.loss.clip_range
            adv_BS = batch.adv_B[:, None].expand_as(ratio_BS)
            sums["clip_share"] = total(is_cut(adv_BS, ratio_BS, *clip_bounds((-below, above))), counts_BS)
        if log_w_BS is not None:
            w_BS = log_w_BS.exp()
            sums["importance/mean"], sums["importance/square"] = total(w_BS, counts_BS), total(w_BS**2, counts_BS)
            sums["importance/capped_share"] = total(w_BS > self.loss.importance_cap, counts_BS)
            highs["importance/max"] = highest(w_BS, counts_BS)
            sums["drift/mean"], highs["drift/max"] = (
                total(log_w_BS.abs(), counts_BS),
                highest(log_w_BS.abs(), counts_BS),
            )
            # The samples are those of the behaviour, so k3 takes the log-ratio from it to the old policy.
            sums["drift/k3"] = total(k3(-log_w_BS), counts_BS)
        if found.error is not None:
            highs["ratio/replay_error"] = found.error
        lows = {"ratio/min": lowest(ratio_BS, counts_BS)}
        return Stats(counts_BS.sum().float(), sums, lows, highs)


def _whole(rollout: Rollout) -> Rollout:
    """The rollout with no token left of the answers that were cut off: what they would have come to is not known."""
    finished_B = torch.tensor([sample.finished for sample in rollout.samples])
    mask_BS = _mask(rollout)
    return replace(rollout, mask_BS=mask_BS & finished_B[:, None].to(mask_BS.device))


def _mask(rollout: Rollout) -> Tensor:
    return torch.ones_like(rollout.logp_BS, dtype=torch.bool) if rollout.mask_BS is None else rollout.mask_BS


def loss_of(config: TokenSection, kind: PolicyKind) -> TokenLoss:
    """The loss that a section of the configuration describes."""
    fields: dict[str, object] = {}
    if isinstance(config, LevelSection):
        fields["level"] = config.level
    if isinstance(config, ClippedTokenSection):
        clip = config.clip_range
        fields |= {
            "clip_range": (-clip[0], clip[1]) if isinstance(clip, tuple) else (clip, clip),
            "delta": config.delta,
        }
    if isinstance(config, SapoConfig):
        fields["tau"] = config.tau
    if isinstance(config, CispoConfig):
        fields["clip_range"] = (0.0, config.cap)
    if isinstance(config, DrGrpoLossConfig):
        fields["longest"] = config.longest
    return TokenLoss(
        kind=kind,
        kl_beta=config.kl_beta,
        kl_importance=config.kl_importance,
        off_policy=config.off_policy,
        importance_cap=config.importance_cap,
        mask_truncated=config.mask_truncated,
        **fields,  # type: ignore[arg-type]
    )


class ConfiguredTokenPolicy(TokenPolicy):
    """`TokenPolicy` as the configuration describes it."""

    def __init__(self, policy: Replays, config: ObjectiveConfig, *, micro_batch_size: int | None, seed: int) -> None:
        assert isinstance(config, TokenSection), "the registry of objectives has checked it"
        super().__init__(policy, loss_of(config, config.type), micro_batch_size=micro_batch_size)


TOKENS: dict[str, Entry] = {name: Entry(ConfiguredTokenPolicy, PlanNeeds()) for name in REDUCTIONS}
