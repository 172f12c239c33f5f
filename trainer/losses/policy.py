"""Policy losses of text: weights x ratios x clips. Axes: B rows (samples), S tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trainer.losses.clips import cispo, clip_bounds, clipped, sapo, vespo
from trainer.losses.ratios import k3, log_ratios, near_policy_rows, row_log_ratios
from trainer.losses.weights import Reduction, reduced, weigh

PolicyKind = Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo", "cispo", "vespo"]
Level = Literal["token", "sequence"]

# What each loss of the literature divides by; what it does with the ratio is in `_terms`.
REDUCTIONS: Mapping[str, Reduction] = {
    "grpo": "sample",  # arXiv 2402.03300 eq. 3
    "sapo": "sample",  # arXiv 2511.20347
    "bnpo": "token",
    "dapo": "token",  # arXiv 2503.14476 eq. 8
    "cispo": "token",  # arXiv 2506.13585
    "vespo": "token",
    "dr_grpo": "cap",  # arXiv 2503.20783
    "luspo": "row",
}


class PolicyTerms(NamedTuple):
    """Unweighted, (B, S) float32, 0 where nothing counts; `kl_BS` is None without a reference."""

    policy_BS: Tensor
    kl_BS: Tensor | None
    ratio_BS: Tensor


def policy_loss(
    logp_BS: Tensor,
    old_BS: Tensor,
    adv_B: Tensor,
    mask_BS: Tensor,
    *,
    ref_BS: Tensor | None = None,
    kind: PolicyKind = "grpo",
    level: Level = "token",
    clip_range: tuple[float, float] = (0.2, 0.28),
    delta: float | None = None,
    beta: float = 0.0,
    kl_importance: bool = False,
    max_completion_length: int | None = None,
    tau: tuple[float, float] = (1.0, 1.05),
    off_policy: float | None = None,
) -> Tensor:
    """The mean loss of one process on one batch, 0-d float32, differentiable in `logp_BS`.

    Where a batch is cut over ranks or micro-batches, use `policy_terms` and `weigh` and add up the counts first.

    Args:
        logp_BS: log-probabilities of the sampled tokens under the present weights.
        old_BS: those before the first update on these samples.
        adv_B: advantages.
        mask_BS: other than 0 where a token counts; what lies under the mask is never read, NaN included.
        ref_BS: log-probabilities under the reference; needed with `beta`.
        kind: which loss; `REDUCTIONS` says what it divides by.
        level: whether each token has its ratio or each row has one, the mean in logarithms (GSPO). vespo's is the row's
            product at either level.
        clip_range: (below, above), both at least 0: ratios are held in [1 - below, 1 + above]. For cispo `above` is the cap of
            the ratio itself where it is at least 1, else its distance from 1.
        delta: cap of the unclipped ratio, above 1 + above (two-sided clipping); None is without.
        beta: weight of the KL to the reference.
        kl_importance: multiply the KL by the ratio, which keeps its gradient unbiased where samples are old (DeepSeek-V3.2,
            arXiv 2512.02556; TRL's `use_bias_correction_kl`).
        max_completion_length: the divisor per row of dr_grpo.
        tau: sapo's temperatures for advantages above 0 and for the rest.
        off_policy: rows of negative advantage whose mean of old - logp is above this add no policy term; None is without.

    Raises:
        ValueError: shapes differ, a needed argument is missing, or one cannot act.
    """
    terms = policy_terms(
        logp_BS,
        old_BS,
        adv_B,
        mask_BS,
        ref_BS=ref_BS if beta else None,
        kind=kind,
        level=level,
        clip_range=clip_range,
        delta=delta,
        kl_importance=kl_importance,
        tau=tau,
        off_policy=off_policy,
    )
    if beta and terms.kl_BS is None:
        raise ValueError(f"beta = {beta:g} weighs the KL to a reference: give ref_BS, or set beta to 0")
    if kind == "dr_grpo" and max_completion_length is None:
        raise ValueError("kind dr_grpo divides by rows * max_completion_length: give max_completion_length")
    weights = weigh(mask_BS, REDUCTIONS[kind], cap=max_completion_length if kind == "dr_grpo" else None)
    total_BS = terms.policy_BS if terms.kl_BS is None else terms.policy_BS + beta * terms.kl_BS
    return reduced(total_BS, weights)


def policy_terms(
    logp_BS: Tensor,
    old_BS: Tensor,
    adv_B: Tensor,
    mask_BS: Tensor,
    *,
    ref_BS: Tensor | None = None,
    kind: PolicyKind = "grpo",
    level: Level = "token",
    clip_range: tuple[float, float] = (0.2, 0.28),
    delta: float | None = None,
    kl_importance: bool = False,
    tau: tuple[float, float] = (1.0, 1.05),
    off_policy: float | None = None,
) -> PolicyTerms:
    """The terms of `policy_loss` before weights; arguments as there."""
    _check(logp_BS, old_BS, adv_B, mask_BS, ref_BS, kind, level)
    counts_BS = mask_BS != 0
    log_ratio_BS = log_ratios(logp_BS, old_BS, counts_BS)
    adv_BS = torch.where(counts_BS, adv_B.float().detach()[:, None], 0.0)
    level_BS = log_ratio_BS if level == "token" else row_log_ratios(log_ratio_BS, counts_BS)
    ratio_BS = level_BS.exp()
    low, high = clip_bounds((-clip_range[0], clip_range[1]))
    if kind == "cispo":
        cap = clip_range[1] if clip_range[1] >= 1 else high
        term_BS = cispo(adv_BS, ratio_BS, torch.where(counts_BS, logp_BS.float(), 0.0), cap)
    elif kind == "vespo":
        term_BS = vespo(adv_BS, log_ratio_BS, torch.where(counts_BS, logp_BS.float(), 0.0))
    elif kind == "sapo":
        term_BS = sapo(adv_BS, ratio_BS, tau)
    else:
        term_BS = clipped(adv_BS, ratio_BS, low, high, ceiling=delta)
    if off_policy is not None:
        term_BS = term_BS * near_policy_rows(log_ratio_BS, adv_B, counts_BS, off_policy)
    kl_BS = None
    if ref_BS is not None:
        kl_BS = k3(log_ratios(logp_BS, ref_BS, counts_BS))  # 0 at a log-ratio of 0, so 0 under the mask
        kl_BS = kl_BS * ratio_BS if kl_importance else kl_BS
    return PolicyTerms(term_BS, kl_BS, ratio_BS.detach())


def _check(
    logp_BS: Tensor, old_BS: Tensor, adv_B: Tensor, mask_BS: Tensor, ref_BS: Tensor | None, kind: str, level: str
) -> None:
    if kind not in REDUCTIONS:
        raise ValueError(f"kind = {kind!r}: must be one of {', '.join(REDUCTIONS)}")
    if level not in ("token", "sequence"):
        raise ValueError(f"level = {level!r}: must be token or sequence")
    others = [old_BS, mask_BS, *([] if ref_BS is None else [ref_BS])]
    if any(other.shape != logp_BS.shape for other in others) or adv_B.shape != logp_BS.shape[:1]:
        raise ValueError(
            f"shapes do not fit: logp {tuple(logp_BS.shape)}, old, mask and reference "
            f"{', '.join(str(tuple(other.shape)) for other in others)}, adv {tuple(adv_B.shape)}"
        )
