"""What all losses share: which terms count, their weighted sum, and what they tell the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stats:
    """What a loss tells the metrics: detached 0-d tensors on the loss's device, by the metric's name.

    Attributes:
        count: terms that count.
        sums: over these terms; the metric is their mean.
        lows, highs: extremes of these terms; infinity and minus infinity where none counts.
        totals: numbers that are only added up, over parts and ranks.
        group: what the names are put under, and whose terms alone their means are over; empty is none.
    """

    count: Tensor
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    lows: Mapping[str, Tensor] = field(default_factory=dict)
    highs: Mapping[str, Tensor] = field(default_factory=dict)
    totals: Mapping[str, Tensor] = field(default_factory=dict)
    group: str = ""


def counting_terms(values_BS: Tensor, weight_B: Tensor, mask_BS: Tensor | None = None) -> Tensor:
    """Bool, the shape of the values: weight other than 0 and inside the mask. Raises ValueError for other shapes."""
    if weight_B.shape != values_BS.shape[:1] or (mask_BS is not None and mask_BS.shape != values_BS.shape):
        mask_shape = None if mask_BS is None else tuple(mask_BS.shape)
        raise ValueError(
            f"shapes do not fit: values {tuple(values_BS.shape)}, weight {tuple(weight_B.shape)}, mask {mask_shape}"
        )
    counts_BS = (weight_B != 0)[:, None].expand_as(values_BS)
    return counts_BS if mask_BS is None else counts_BS & mask_BS


def weighted_sum(terms_BS: Tensor, weight_B: Tensor, counts_BS: Tensor) -> Tensor:
    """Sum of weight * term over the terms that count; the others must be finite."""
    return (torch.where(counts_BS, weight_B.float()[:, None], 0.0) * terms_BS).sum()


def total(values: Tensor, counts: Tensor) -> Tensor:
    """Detached float32 sum over what counts."""
    return torch.where(counts, values.detach().float(), 0.0).sum()


def lowest(values: Tensor, counts: Tensor) -> Tensor:
    """Least of what counts; infinity where nothing does."""
    return -highest(-values, counts)


def highest(values: Tensor, counts: Tensor) -> Tensor:
    """Largest of what counts; minus infinity where nothing does."""
    # A leading minus infinity answers for a micro-batch without terms.
    least = torch.full((1,), -torch.inf, device=values.device)
    return torch.cat([least, torch.where(counts, values.detach().float(), -torch.inf).flatten()]).amax()


def mean_over_latents(values: Tensor) -> Tensor:
    """(B, ...) to (B,), float32."""
    return values.flatten(1).mean(1)
