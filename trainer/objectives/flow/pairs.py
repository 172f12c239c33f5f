"""Pairs of samples of one group, for preference objectives. Axes: B samples, N pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.objectives.base import RolloutBatch, Scored, standing_for
from trainer.policies.base import regroup


def pair_batches(fed: Scored, step: int, size: int | None) -> list[RolloutBatch]:
    """Micro-batches of at most `size` samples in which 2n and 2n + 1 are the best and the worst of a group.

    A group without two samples that differ gives no pair; where no group gives one, the first does with weight 0, as an update
    needs something to compute. None takes the size of the sampled micro-batches.
    """
    rollouts, adv_B = fed.rollouts, fed.adv_B
    group_B = torch.cat([rollout.group_B for rollout in rollouts])
    rows_N2, weight_N = extreme_pairs(adv_B, fed.weight_B, group_B)
    acts_N = weight_N != 0 if weight_N.any() else torch.arange(len(weight_N)) == 0
    rows_N2, weight_N = rows_N2[acts_N], weight_N[acts_N]
    singles = regroup(rollouts, 1)
    pairs_at_once = max((size or len(rollouts[0])) // 2, 1)
    chosen = [singles[row] for row in rows_N2.flatten().tolist()]
    batches = []
    for number, rollout in enumerate(regroup(chosen, 2 * pairs_at_once)):
        pairs = slice(number * pairs_at_once, number * pairs_at_once + len(rollout) // 2)
        batches.append(RolloutBatch(rollout, adv_B[rows_N2[pairs].flatten()], weight_N[pairs], step))
    return standing_for(batches, len(adv_B), len(adv_B) - 2 * int((weight_N != 0).sum()))


def extreme_pairs(adv_B: Tensor, weight_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the best and the worst valid sample of each group, and the pair's weight.

    Returns:
        rows_N2: int64 (N, 2), groups in the order of their numbers; of equals the first.
        weight_N: 1, or 0 where fewer than two samples of the group have a weight or all advantages are the same.
    """
    rows, weights = [], []
    for group in torch.unique(group_B).tolist():
        members = torch.nonzero(group_B == group)[:, 0]
        valid = members[weight_B[members] != 0]
        if len(valid) < 2:
            rows.append(members[[0, 0]])
            weights.append(0.0)
            continue
        best, worst = valid[adv_B[valid].argmax()], valid[adv_B[valid].argmin()]
        rows.append(torch.stack([best, worst]))
        weights.append(float(adv_B[best] > adv_B[worst]))
    return torch.stack(rows), torch.tensor(weights)
