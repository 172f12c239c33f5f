"""Objectives as a user writes them, found by the name of this module."""

from __future__ import annotations

from torch import Tensor


def clipped(ratio_BS: Tensor, adv_B1: Tensor, *, width: float = 0.2) -> Tensor:
    """PPO's clipped surrogate, negated."""
    return -(adv_B1 * ratio_BS).minimum(adv_B1 * ratio_BS.clamp(1 - width, 1 + width))


def rwr(error_B: Tensor, adv_B: Tensor) -> Tensor:
    """Reward-weighted regression."""
    return adv_B.clamp(min=0) * error_B
