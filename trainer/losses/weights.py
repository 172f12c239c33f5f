"""How much each term counts, and what the sum is divided by: both known from masks alone, before any forward pass.

A loss is sum(weight * term) / count, with `count` summed over all ranks and micro-batches first: then neither the number of
ranks nor the cut into micro-batches changes a step. Axes: B rows (samples), S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["sample", "token", "cap", "row", "root"]


@dataclass(frozen=True)
class Weights:
    """Of each term, (B, S) float32, 0 where none counts; and this batch's part of the divisor, 0-d float64."""

    weight_BS: Tensor
    count: Tensor


def weigh(mask_BS: Tensor, reduction: Reduction, *, weight_B: Tensor | None = None, cap: int | None = None) -> Weights:
    """The weights of a batch's terms.

    sample  1 / |row|, count: rows. Every sample weighs the same; a row without a token is a row of value 0.
    token   1, count: tokens. Every token weighs the same, so long samples weigh more.
    cap     1, count: rows * cap. A constant divisor: no length is favoured (Dr. GRPO, arXiv 2503.20783 section 3.1).
    row     1, count: rows. The sum over a row's tokens, so that length multiplies (LUSPO, arXiv 2602.05261).
    root    1 / sqrt(|row|), count: the sum of the weights. Between sample and token (InternVL 2.5, arXiv 2412.05271).

    Args:
        mask_BS: other than 0 where a token counts.
        weight_B: of whole rows, 0 for those that must not train; they leave the count, too. None is all 1.
        cap: the largest length a row may have; of reduction `cap` alone.
    """
    if (reduction == "cap") != (cap is not None):
        raise ValueError(f"reduction {reduction!r} with cap = {cap}: `cap` divides by rows * cap, no other has one")
    if weight_B is None:
        weight_B = torch.ones(len(mask_BS), device=mask_BS.device)
    if weight_B.shape != mask_BS.shape[:1]:
        raise ValueError(f"shapes do not fit: mask {tuple(mask_BS.shape)}, weight {tuple(weight_B.shape)}")
    inside_BS = (mask_BS != 0).float() * weight_B.float()[:, None]
    length_B1 = (mask_BS != 0).sum(1, keepdim=True).clamp(min=1)
    rows = weight_B.double().sum()
    if reduction == "sample":
        return Weights(inside_BS / length_B1, rows)
    if reduction == "root":
        weight_BS = inside_BS / length_B1.sqrt()
        return Weights(weight_BS, weight_BS.double().sum())
    if reduction == "token":
        return Weights(inside_BS, inside_BS.double().sum())
    return Weights(inside_BS, rows if cap is None else rows * cap)


def reduced(terms_BS: Tensor, weights: Weights) -> Tensor:
    """sum(weight * term) / count of one batch by itself, 0-d float32; 0 where nothing counts. Terms must be finite."""
    # A batch without a token has the sum 0; dividing by 1 keeps it that.
    return (weights.weight_BS * terms_BS).sum() / weights.count.clamp(min=1.0).float()
