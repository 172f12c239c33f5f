"""The distribution of guided tokens (classifier-free guidance, arXiv 2207.12598, on logits)."""

from __future__ import annotations

from torch import Tensor


def guided_logits(cond_BC: Tensor, uncond_BC: Tensor, scale: float) -> Tensor:
    """Float32 logits u + w (c - u): 0 at w = 0 leaves the unconditional branch u, 1 the conditional branch c."""
    cond_BC, uncond_BC = cond_BC.float(), uncond_BC.float()
    return uncond_BC + scale * (cond_BC - uncond_BC)
