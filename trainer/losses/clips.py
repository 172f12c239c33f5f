"""What becomes of an advantage and a ratio: the terms of a policy loss, before weights. Axes: B rows, S steps or tokens.

Advantages are (B, S) or (B, 1) float32 without gradient. Every term is to be minimised.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ClipRange = float | tuple[float, float]

# VESPO's (k, lambda), the shape of its gamma weight, for advantages of at least 0 and for those below.
_GAMMA_GOOD, _GAMMA_BAD = (2.0, 3.0), (3.0, 2.0)
_LEAST_LOG_WEIGHT, _LARGEST_LOG_WEIGHT = math.log(1e-8), 20.0


def clip_bounds(clip_range: ClipRange) -> tuple[float, float]:
    """The lowest and the highest ratio: c is [1 - c, 1 + c], (lo, hi) is [1 + lo, 1 + hi].

    Raises:
        ValueError: 1 does not lie within.
    """
    below, above = clip_range if isinstance(clip_range, tuple) else (-clip_range, clip_range)
    if not below <= 0 <= above:
        raise ValueError(f"clip_range = {clip_range}: needs c >= 0, or (lo, hi) with lo <= 0 <= hi")
    return 1 + below, 1 + above


def clipped(adv_BS: Tensor, ratio_BS: Tensor, low: float, high: float, *, ceiling: float | None = None) -> Tensor:
    """PPO's term, -min(A r, A clip(r, low, high)) (arXiv 1707.06347 eq. 7).

    `ceiling` caps the unclipped r first (two-sided clipping, INTELLECT-2, arXiv 2505.07291): with a negative advantage the
    minimum follows r without bound, so that one token could outweigh all others.
    """
    unclipped_BS = ratio_BS if ceiling is None else ratio_BS.clamp(max=ceiling)
    # The maximum of the negated terms is the negated minimum.
    return torch.maximum(-adv_BS * unclipped_BS, -adv_BS * ratio_BS.clamp(low, high))


def is_cut(adv_BS: Tensor, ratio_BS: Tensor, low: float, high: float) -> Tensor:
    """Bool: `clipped` passes no gradient on, because r has already moved past the bound the advantage pushes it to."""
    return ((adv_BS > 0) & (ratio_BS > high)) | ((adv_BS < 0) & (ratio_BS < low))


def cispo(adv_BS: Tensor, ratio_BS: Tensor, logp_BS: Tensor, cap: float) -> Tensor:
    """CISPO's term, -min(r, cap) A logp with no gradient through the ratio (MiniMax-M1, arXiv 2506.13585).

    It is REINFORCE with a truncated importance weight: no token loses its gradient.
    """
    return -ratio_BS.detach().clamp(max=cap) * adv_BS * logp_BS


def sapo(adv_BS: Tensor, ratio_BS: Tensor, tau: tuple[float, float]) -> Tensor:
    """SAPO's term, -A 4 sigmoid(tau (r - 1)) / tau (arXiv 2511.20347): a soft gate in place of the clip.

    `tau` is for advantages above 0 and for the rest; larger closes the gate nearer to 1. The factor 4 / tau makes the
    slope at r = 1 that of r itself, so that a first update has the gradient of the clipped term.
    """
    tau_BS = torch.where(adv_BS > 0, *tau)
    return -adv_BS * 4 * torch.sigmoid(tau_BS * (ratio_BS - 1)) / tau_BS


def vespo(adv_BS: Tensor, log_ratio_BS: Tensor, logp_BS: Tensor) -> Tensor:
    """VESPO's term, -phi(w) A logp with w the ratio of the whole row (arXiv 2602.10693), no gradient through phi.

    phi(w) = exp(lambda + k ln w - lambda w) is a gamma kernel with phi(1) = 1. It falls off on both sides, so that it holds the
    variance of a long sequence's weight without a normalisation by length. `log_ratio_BS` is 0 where nothing counts.
    """
    # Logarithms are bounded before the sum and after it, so that no weight overflows; phi is 0 there anyway.
    log_w_B1 = log_ratio_BS.detach().clamp(-20.0, 20.0).sum(1, keepdim=True)
    log_w_B1 = log_w_B1.clamp(_LEAST_LOG_WEIGHT, _LARGEST_LOG_WEIGHT)
    good_BS = adv_BS >= 0
    k_BS = torch.where(good_BS, _GAMMA_GOOD[0], _GAMMA_BAD[0])
    lambda_BS = torch.where(good_BS, _GAMMA_GOOD[1], _GAMMA_BAD[1])
    phi_BS = torch.exp(lambda_BS + k_BS * log_w_B1 - lambda_BS * log_w_B1.exp())
    return -phi_BS * adv_BS * logp_BS
