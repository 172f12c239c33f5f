"""Statistics over groups and over all ranks that know which scores are missing.

Axes: B samples, R rewards, G groups. A group is a number in `group_B` and lies wholly on one rank. `valid_BR` is False
where a reward has no score; the number there is never read, NaN included. All is computed in float64 on the CPU, and sums over
samples run in sorted order, so permuting samples permutes results bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
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
    floor_BR = None if std_floor is None else std_floor.to("cpu", torch.float64).expand_as(scores_BR)
    z_BR, centred_BR = torch.zeros_like(scores_BR), torch.zeros_like(scores_BR)
    enough_BR, told_apart_BR = torch.zeros_like(valid_BR), torch.zeros_like(valid_BR)
    for rows_GN in alike(group_B):  # axes from here: groups of one size, their samples, rewards
        scores, valid = scores_BR[rows_GN], valid_BR[rows_GN]
        n = valid.sum(dim=1, keepdim=True).double()
        centred = torch.where(valid, scores - rising_sum(scores) / n.clamp(min=1), 0.0)
        std = (rising_sum(centred**2) / (n - ddof).clamp(min=1)).sqrt()
        if floor_BR is not None:
            std = torch.maximum(std, floor_BR[rows_GN])
        low = torch.where(valid, scores, math.inf).amin(dim=1, keepdim=True)
        high = torch.where(valid, scores, -math.inf).amax(dim=1, keepdim=True)
        enough = valid & (n >= max(min_valid, 2))
        # A spread of rounding would be divided by itself and come out at full size.
        told_apart = enough & (high - low > _ROUNDING * torch.maximum(low.abs(), high.abs()))
        enough_BR[rows_GN], told_apart_BR[rows_GN] = enough, told_apart
        centred_BR[rows_GN] = torch.where(told_apart, centred, 0.0)
        z_BR[rows_GN] = torch.where(told_apart, centred / (std + eps), 0.0)
    return Standardized(z_BR, centred_BR, enough_BR, told_apart_BR)


def alike(group_B: Tensor) -> list[Tensor]:
    """The samples of each group, groups of one size together: an index (groups, size) into B for every size there is.

    So laid, statistics are of one dense axis, and nothing is scattered or sorted over the whole batch.
    """
    group_B = group_B.cpu()
    order_B = torch.from_numpy(np.argsort(group_B.numpy(), kind="stable"))  # next to nothing where groups come in order
    size_G = torch.unique_consecutive(group_B[order_B], return_counts=True)[1]
    start_G = size_G.cumsum(0) - size_G
    return [order_B[start_G[size_G == size, None] + torch.arange(size)] for size in size_G.unique().tolist()]


def rising_sum(values_GNR: Tensor) -> Tensor:
    """Each group's sum, (groups, 1, rewards), added from the smallest value up: the order of the samples does not show."""
    # NumPy sorts short rows several times as fast as torch, and its running sum adds one value after the other. Adding 0
    # takes the sign from a sum of -0.
    running_GNR = np.sort(values_GNR.numpy(), axis=1).cumsum(axis=1)
    return torch.from_numpy(running_GNR[:, -1:] + 0.0)


class Moments(NamedTuple):
    num: Tensor
    mean: Tensor
    std: Tensor


def moments(values: Tensor, counts: Tensor, reduce: Reduce | None, ddof: int) -> Moments:
    """Count, mean and std over all ranks, of the values (B,) or (B, R) that count, a reward each. Two calls of `reduce`, on every rank."""
    reduce = reduce or _one_rank
    counts = counts.cpu()
    values = torch.where(counts, values.to("cpu", torch.float64), 0.0)
    _check_finite(values)
    num, total, magnitude = reduce(
        torch.stack([counts.double().sum(dim=0), _sorted_sum(values), _sorted_sum(values.abs())])
    )
    mean = torch.where(total.abs() > _ZERO_MEAN * magnitude, total / num.clamp(min=1), 0.0)
    square = reduce(_sorted_sum(torch.where(counts, values - mean, 0.0) ** 2))
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


def _sorted_sum(values: Tensor) -> Tensor:
    """Over the samples, from the smallest value up; a sum for each reward where there are several."""
    if values.dim() == 2:
        return torch.stack([_sorted_sum(values_B) for values_B in values.unbind(1)])
    return torch.from_numpy(np.sort(values.numpy())).sum()  # sorted by NumPy, several times as fast as by torch


def _one_rank(tensor: Tensor) -> Tensor:
    return tensor


def _check_finite(scores: Tensor) -> None:
    if not scores.isfinite().all():
        raise ValueError("a score that is marked valid is not finite: a failed reward must be marked invalid")
