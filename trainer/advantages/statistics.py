"""Statistics over groups and over all ranks that know which scores are missing.

Axes: B samples, R rewards, G groups. A group is a number in `group_B` and lies wholly on one rank. `valid_BR` is False
where a reward has no score; the number there is never read, NaN included. All is computed in float64 on the CPU, and sums over
samples run in sorted order, so permuting samples permutes results bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a float64 CPU tensor over all ranks and returns the sum. Called equally often on every rank."""

# A group whose spread is within four float32 roundings of its largest score has not been told apart by the reward.
_ROUNDING = 4 * torch.finfo(torch.float32).eps
# Centred columns sum to zero; a mean this small beside the mean magnitude is rounding, and would give flat groups a sign.
_ZERO_MEAN = 1e-9


class Standardized(NamedTuple):
    """Scores relative to their group, per reward.

    Attributes:
        z_BR: float64, (score - group mean) / (group std + eps); 0 where `told_apart_BR` is False.
        centred_BR: float64, score - group mean, 0 in the same places.
        enough_BR: bool, valid and in a group with at least `min_valid` valid scores.
        told_apart_BR: bool, `enough_BR` and the group's scores differ by more than rounding.
    """

    z_BR: Tensor
    centred_BR: Tensor
    enough_BR: Tensor
    told_apart_BR: Tensor


def standardize(
    scores_BR: Tensor,
    valid_BR: Tensor,
    group_B: Tensor,
    *,
    eps: float = 1e-4,
    min_valid: int = 2,
    std_floor: Tensor | None = None,
    ddof: int = 1,
) -> Standardized:
    """Centre and scale each reward within each group, over the group's valid scores alone.

    z = (s - mean) / (max(std, floor) + eps); 0 for a group with fewer than `min_valid` valid scores or without a spread.

    Args:
        scores_BR: scores, any floating dtype; finite where valid.
        valid_BR: bool.
        group_B: integer group numbers.
        eps: added to the divisor.
        min_valid: least number of valid scores of a group; a std needs two.
        std_floor: least std, (R,) or (B, R), in the units of each reward.
        ddof: 1 for the unbiased std, 0 for the population std.
    """
    scores_BR, valid_BR = check_scores(scores_BR, valid_BR, group_B)
    groups, of_B = torch.unique(group_B.cpu(), return_inverse=True)
    of_BR = of_B[:, None].expand_as(scores_BR)
    shape_GR = (len(groups), scores_BR.shape[1])

    # Counts and sums are scattered to groups and gathered back, so that every sample has its group's.
    n_BR = torch.zeros(shape_GR, dtype=torch.float64).scatter_add_(0, of_BR, valid_BR.double()).gather(0, of_BR)
    mean_BR = group_sums(scores_BR, of_BR, shape_GR) / n_BR.clamp(min=1)
    centred_BR = torch.where(valid_BR, scores_BR - mean_BR, 0.0)
    std_BR = (group_sums(centred_BR**2, of_BR, shape_GR) / (n_BR - ddof).clamp(min=1)).sqrt()

    low_BR = _group_extreme(torch.where(valid_BR, scores_BR, math.inf), of_BR, shape_GR, "amin")
    high_BR = _group_extreme(torch.where(valid_BR, scores_BR, -math.inf), of_BR, shape_GR, "amax")
    # A spread of rounding would be divided by itself and come out at full size.
    enough_BR = valid_BR & (n_BR >= max(min_valid, 2))
    told_apart_BR = enough_BR & (high_BR - low_BR > _ROUNDING * torch.maximum(low_BR.abs(), high_BR.abs()))

    if std_floor is not None:
        std_BR = torch.maximum(std_BR, std_floor.to("cpu", torch.float64))
    centred_BR = torch.where(told_apart_BR, centred_BR, 0.0)
    z_BR = torch.where(told_apart_BR, centred_BR / (std_BR + eps), 0.0)
    return Standardized(z_BR, centred_BR, enough_BR, told_apart_BR)


class Moments(NamedTuple):
    num: Tensor
    mean: Tensor
    std: Tensor


def moments(values_B: Tensor, counts_B: Tensor, reduce: Reduce | None, ddof: int) -> Moments:
    """Count, mean and std over all ranks, of the values that count. Two calls of `reduce`, on every rank."""
    reduce = reduce or _one_rank
    counts_B = counts_B.cpu()
    values_B = torch.where(counts_B, values_B.to("cpu", torch.float64), 0.0)
    _check_finite(values_B)
    num, total, magnitude = reduce(
        torch.stack([counts_B.double().sum(), _sorted_sum(values_B), _sorted_sum(values_B.abs())])
    )
    mean = torch.where(total.abs() > _ZERO_MEAN * magnitude, total / num.clamp(min=1), 0.0)
    square = reduce(_sorted_sum(torch.where(counts_B, values_B - mean, 0.0) ** 2)[None])[0]
    return Moments(num, mean, (square / (num - ddof).clamp(min=1)).sqrt())


def whiten(
    values_B: Tensor,
    counts_B: Tensor,
    *,
    eps: float,
    ddof: int,
    reduce: Reduce | None,
    min_valid: int = 2,
    std_floor_B: Tensor | None = None,
) -> Tensor:
    """(value - mean) / (std + eps) over all ranks' values that count; 0 for the others, and where all are alike."""
    batch = moments(values_B, counts_B, reduce, ddof)
    if batch.num < max(min_valid, 2) or batch.std <= _ROUNDING * batch.mean.abs():
        return torch.zeros(values_B.shape, dtype=torch.float64)
    values_B = torch.where(counts_B.cpu(), values_B.to("cpu", torch.float64), batch.mean)
    return (values_B - batch.mean) / divisor(batch.std, std_floor_B, eps)


def divisor(std: Tensor, std_floor_B: Tensor | None, eps: float) -> Tensor:
    if std_floor_B is not None:
        std = torch.maximum(std, std_floor_B.to("cpu", torch.float64))
    return std + eps


def group_sums(values_BR: Tensor, of_BR: Tensor, shape_GR: tuple[int, int]) -> Tensor:
    """Each sample's group sum, added from the smallest value up, so that the order of the samples does not show."""
    rising_BR, order_BR = values_BR.sort(dim=0)
    sums_GR = torch.zeros(shape_GR, dtype=torch.float64).scatter_add_(0, of_BR.gather(0, order_BR), rising_BR)
    return sums_GR.gather(0, of_BR)


def check_scores(scores_BR: Tensor, valid_BR: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor]:
    """Scores as float64 with 0 where invalid, and the mask, both on the CPU."""
    if valid_BR.shape != scores_BR.shape or group_B.shape != scores_BR.shape[:1]:
        raise ValueError(
            f"shapes do not fit: scores {tuple(scores_BR.shape)}, valid {tuple(valid_BR.shape)}, "
            f"group {tuple(group_B.shape)}"
        )
    valid_BR = valid_BR.to("cpu", torch.bool)
    scores_BR = torch.where(valid_BR, scores_BR.to("cpu", torch.float64), 0.0)
    _check_finite(scores_BR)
    return scores_BR, valid_BR


def check_weights(weights_BR: Tensor, scores_BR: Tensor) -> Tensor:
    if weights_BR.shape != scores_BR.shape:
        raise ValueError(f"weights have shape {tuple(weights_BR.shape)}, scores {tuple(scores_BR.shape)}")
    if not weights_BR.isfinite().all():
        raise ValueError("a reward weight is not finite")
    return weights_BR.to("cpu", torch.float64)


def _group_extreme(
    values_BR: Tensor, of_BR: Tensor, shape_GR: tuple[int, int], which: Literal["amin", "amax"]
) -> Tensor:
    fill = torch.zeros(shape_GR, dtype=torch.float64)
    return fill.scatter_reduce(0, of_BR, values_BR, which, include_self=False).gather(0, of_BR)


def _sorted_sum(values_B: Tensor) -> Tensor:
    return values_B.sort().values.sum()


def _one_rank(tensor: Tensor) -> Tensor:
    return tensor


def _check_finite(scores: Tensor) -> None:
    if not scores.isfinite().all():
        raise ValueError("a score that is marked valid is not finite: a failed reward must be marked invalid")
