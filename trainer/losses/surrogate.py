"""Clipped surrogates of the policy gradient, for anything that has a log-probability. Axes: B samples, S steps or tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.losses.clips import ClipRange, clip_bounds, clipped, is_cut
from trainer.losses.ratios import log_ratios
from trainer.losses.terms import Stats, counting_terms, highest, lowest, total, weighted_sum


def clipped_surrogate(
    logp_BS: Tensor,
    logp_old_BS: Tensor,
    adv_B: Tensor,
    weight_B: Tensor,
    *,
    clip_range: ClipRange,
    mask_BS: Tensor | None = None,
    logp_behaviour_BS: Tensor | None = None,
    importance_cap: float = math.inf,
) -> tuple[Tensor, Stats]:
    """PPO's clipped objective (arXiv 1707.06347 eq. 7), negated and summed over B and S.

    sum weight * w * max(-A rho, -A clip(rho, low, high)) with rho = exp(logp - logp_old), all float32. Terms of weight 0
    or outside the mask are left out whatever they hold, NaN included, and pass no gradient on.

    w is 1, unless the samples come from older weights than `logp_old`: then the decoupled objective (AReaL, arXiv
    2505.24298 section 5.2) holds logp close to the proximal `logp_old` and corrects for the behaviour policy by the detached
    w = min(exp(logp_old - logp_behaviour), importance_cap). The cap is no part of the paper; AReaL's code leaves such terms out.

    Args:
        logp_BS: log-probabilities under the present weights, differentiable.
        logp_old_BS: those before the first update on these samples.
        adv_B: advantages.
        weight_B: 0 for samples that must not train.
        clip_range: c for [1 - c, 1 + c], or (lo, hi) for [1 + lo, 1 + hi] with lo <= 0 <= hi.
        mask_BS: bool, False where a step does not count (padding of shorter texts).
        logp_behaviour_BS: those of the rollout, where that is another policy than the old one.
        importance_cap: largest w.

    Returns:
        The loss sum (0-d float32), and `ratio/mean|min|max`, `ratio/square` (of ratio - 1), `clip_share` (terms whose
        gradient the clip removes); with `logp_behaviour_BS` also `importance/mean|max` (before the cap) and
        `importance/capped_share`.
    """
    _check_shapes(logp_BS, logp_old_BS, adv_B, weight_B)
    counts_BS = counting_terms(logp_BS, weight_B, mask_BS)
    log_ratio_BS = log_ratios(logp_BS, logp_old_BS, counts_BS)
    term_BS, stats = _clipped(log_ratio_BS, adv_B, counts_BS, clip_range)
    if logp_behaviour_BS is not None:
        # Detached: w says how much a sample is worth, and is nothing that training could raise.
        w_BS = log_ratios(logp_old_BS, logp_behaviour_BS, counts_BS).detach().exp()
        term_BS = w_BS.clamp(max=importance_cap) * term_BS
        stats = Stats(
            count=stats.count,
            sums={
                **stats.sums,
                "importance/mean": total(w_BS, counts_BS),
                "importance/capped_share": total(w_BS > importance_cap, counts_BS),
            },
            lows=stats.lows,
            highs={**stats.highs, "importance/max": highest(w_BS, counts_BS)},
        )
    return weighted_sum(term_BS, weight_B, counts_BS), stats


def guarded_surrogate(
    logp_BS: Tensor,
    logp_old_BS: Tensor,
    mean_shift_BS: Tensor,
    adv_B: Tensor,
    weight_B: Tensor,
    *,
    std_S: Sequence[float],
    dt_S: Sequence[float] | None,
    clip_range: ClipRange,
) -> tuple[Tensor, Stats]:
    """GRPO-Guard (arXiv 2510.22319): the clipped objective on ratios of one spread at every step, centred on 1.

    A Gaussian step's log-ratio is <eps, m> / std - |m|^2 / (2 std^2), where m is how far the step's mean has moved: off
    centre by its last term, and wide where the std is small. RatioNorm takes both out,

        log rho = std * (logp - logp_old + |m|^2 / (2 std^2)) = <eps, m>,

    for each sample by itself, so that a sample's ratio does not depend on its micro-batch. Its gradient
    reweighting divides each step's loss by the step's length, which evens out the steps.

    Args:
        mean_shift_BS: |m|^2, the mean over latents of (mean - sampled mean)^2, differentiable.
        std_S: each step's std, sqrt(length) included.
        dt_S: each step's length in noise level, above 0, to reweight by; None is without.
        logp_BS, logp_old_BS, adv_B, weight_B, clip_range: as in `clipped_surrogate`; densities of Gaussian steps.

    Returns:
        As `clipped_surrogate`.
    """
    _check_shapes(logp_BS, logp_old_BS, adv_B, weight_B)
    counts_BS = counting_terms(logp_BS, weight_B)
    moved_BS = log_ratios(logp_BS, logp_old_BS, counts_BS)
    shift_BS = torch.where(counts_BS, mean_shift_BS.float(), 0.0)
    # std * |m|^2 / (2 std^2) is |m|^2 / (2 std).
    columns = [std * moved_BS[:, s] + shift_BS[:, s] / (2 * std) for s, std in enumerate(std_S)]
    term_BS, stats = _clipped(torch.stack(columns, 1), adv_B, counts_BS, clip_range)
    if dt_S is not None:
        term_BS = torch.stack([term_BS[:, s] / dt for s, dt in enumerate(dt_S)], 1)
    return weighted_sum(term_BS, weight_B, counts_BS), stats


def kl_penalty(kl_BS: Tensor, weight_B: Tensor, *, mask_BS: Tensor | None = None) -> Tensor:
    """Sum of weight * kl over the steps that count, 0-d float32, differentiable in `kl_BS`; masks as in the surrogate."""
    counts_BS = counting_terms(kl_BS, weight_B, mask_BS)
    return weighted_sum(torch.where(counts_BS, kl_BS.float(), 0.0), weight_B, counts_BS)


def _clipped(log_ratio_BS: Tensor, adv_B: Tensor, counts_BS: Tensor, clip_range: ClipRange) -> tuple[Tensor, Stats]:
    """Unweighted terms, 0 where none counts, and their stats."""
    low, high = clip_bounds(clip_range)
    ratio_BS = log_ratio_BS.exp()
    adv_BS = torch.where(counts_BS, adv_B.float().detach()[:, None], 0.0)
    return clipped(adv_BS, ratio_BS, low, high), Stats(
        count=counts_BS.sum().float(),
        sums={
            "ratio/mean": total(ratio_BS, counts_BS),
            # Around 1, where ratios lie: the square of a float32 ratio itself would round their spread away.
            "ratio/square": total((ratio_BS - 1) ** 2, counts_BS),
            "clip_share": total(is_cut(adv_BS, ratio_BS, low, high), counts_BS),
        },
        lows={"ratio/min": lowest(ratio_BS, counts_BS)},
        highs={"ratio/max": highest(ratio_BS, counts_BS)},
    )


def _check_shapes(logp_BS: Tensor, logp_old_BS: Tensor, adv_B: Tensor, weight_B: Tensor) -> None:
    if logp_old_BS.shape != logp_BS.shape or adv_B.shape != weight_B.shape:
        raise ValueError(
            f"shapes do not fit: logp {tuple(logp_BS.shape)}, logp_old {tuple(logp_old_BS.shape)}, "
            f"adv {tuple(adv_B.shape)}, weight {tuple(weight_B.shape)}"
        )
