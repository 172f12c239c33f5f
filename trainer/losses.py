"""Losses over the steps of a rollout, as sums.

The caller divides by the count over all ranks and micro-batches, so that neither the number of ranks nor the split into
micro-batches changes the optimizer's step. Axes: B samples, S steps or tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    logp_BS: Tensor,
    logp_old_BS: Tensor,
    adv_B: Tensor,
    weight_B: Tensor,
    *,
    clip_range: float | tuple[float, float],
    mask_BS: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped objective (arXiv 1707.06347 eq. 7), negated and summed over B and S.

    sum weight * max(-A rho, -A clip(rho, low, high)) with rho = exp(logp - logp_old), all float32. Terms of weight 0 or
    outside the mask are left out whatever they hold, NaN included, and pass no gradient on.

    Args:
        logp_BS: log-probabilities under the present weights, differentiable.
        logp_old_BS: those of the rollout.
        adv_B: advantages.
        weight_B: 0 for samples that must not train.
        clip_range: c for [1 - c, 1 + c], or (lo, hi) for [1 + lo, 1 + hi] with lo <= 0 <= hi.
        mask_BS: bool, False where a step does not count (padding of shorter texts).

    Returns:
        The loss sum (0-d float32), and detached 0-d sums over the terms that count: `ratio_sum`, `ratio_min` (inf
        when none counts), `ratio_max` (-inf), `clipped` (terms whose gradient the clip removes), `count`.
    """
    low, high = _clip_bounds(clip_range)
    counts_BS = _counting_terms(logp_BS, weight_B, mask_BS)
    if logp_old_BS.shape != logp_BS.shape or adv_B.shape != weight_B.shape:
        raise ValueError(
            f"shapes do not fit: logp {tuple(logp_BS.shape)}, logp_old {tuple(logp_old_BS.shape)}, "
            f"adv {tuple(adv_B.shape)}, weight {tuple(weight_B.shape)}"
        )
    ratio_BS = torch.where(counts_BS, logp_BS.float() - logp_old_BS.float().detach(), 0.0).exp()
    adv_BS = torch.where(counts_BS, adv_B.float().detach()[:, None], 0.0)
    term_BS = torch.maximum(-adv_BS * ratio_BS, -adv_BS * ratio_BS.clamp(low, high))
    loss_sum = _weighted_sum(term_BS, weight_B, counts_BS)
    return loss_sum, _ratio_stats(ratio_BS.detach(), adv_BS, counts_BS, low, high)


def kl_penalty(kl_BS: Tensor, weight_B: Tensor, *, mask_BS: Tensor | None = None) -> Tensor:
    """Sum of weight * kl over the steps that count, 0-d float32, differentiable in `kl_BS`; masks as in the surrogate."""
    counts_BS = _counting_terms(kl_BS, weight_B, mask_BS)
    return _weighted_sum(torch.where(counts_BS, kl_BS.float(), 0.0), weight_B, counts_BS)


def _clip_bounds(clip_range: float | tuple[float, float]) -> tuple[float, float]:
    below, above = clip_range if isinstance(clip_range, tuple) else (-clip_range, clip_range)
    if not below <= 0 <= above:
        raise ValueError(f"clip_range = {clip_range}: needs c >= 0, or (lo, hi) with lo <= 0 <= hi")
    return 1 + below, 1 + above


def _counting_terms(values_BS: Tensor, weight_B: Tensor, mask_BS: Tensor | None) -> Tensor:
    if weight_B.shape != values_BS.shape[:1] or (mask_BS is not None and mask_BS.shape != values_BS.shape):
        mask_shape = None if mask_BS is None else tuple(mask_BS.shape)
        raise ValueError(
            f"shapes do not fit: values {tuple(values_BS.shape)}, weight {tuple(weight_B.shape)}, mask {mask_shape}"
        )
    counts_BS = (weight_B != 0)[:, None].expand_as(values_BS)
    return counts_BS if mask_BS is None else counts_BS & mask_BS


def _weighted_sum(terms_BS: Tensor, weight_B: Tensor, counts_BS: Tensor) -> Tensor:
    return (torch.where(counts_BS, weight_B.float()[:, None], 0.0) * terms_BS).sum()


def _ratio_stats(ratio_BS: Tensor, adv_BS: Tensor, counts_BS: Tensor, low: float, high: float) -> dict[str, Tensor]:
    clipped_BS = ((adv_BS > 0) & (ratio_BS > high)) | ((adv_BS < 0) & (ratio_BS < low))
    # A leading infinity answers for a micro-batch without terms.
    infinity = torch.full((1,), torch.inf, device=ratio_BS.device)
    return {
        "ratio_sum": torch.where(counts_BS, ratio_BS, 0.0).sum(),
        "ratio_min": torch.cat([infinity, torch.where(counts_BS, ratio_BS, torch.inf).flatten()]).amin(),
        "ratio_max": torch.cat([-infinity, torch.where(counts_BS, ratio_BS, -torch.inf).flatten()]).amax(),
        "clipped": (counts_BS & clipped_BS).sum().float(),
        "count": counts_BS.sum().float(),
    }
