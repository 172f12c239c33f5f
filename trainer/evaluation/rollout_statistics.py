"""Statistics of training images, of a few per step: what they cost is far below a hundredth of the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

from trainer.evaluation.artefacts.image_statistics import STATISTICS, diversity, image_statistics, thumbnail
from trainer.processes.distributed import World
from trainer.types import Rollout

_T = TypeVar("_T")
PICTURES = 8  # of a rank and step, evenly over its samples
GROUPS = 4  # whose diversity is taken


def rollout_statistics(rollouts: Sequence[Rollout], world: World) -> dict[str, float]:
    """`stats/<name>` over a few of the step's images, and `stats/diversity` within a few of its groups; all ranks."""
    groups: dict[str, list[np.ndarray]] = {}
    for sample in (sample for rollout in rollouts for sample in rollout.samples):
        if sample.images:
            groups.setdefault(sample.group_id, []).extend(sample.images)
    pictures = [image_HWC for group in groups.values() for image_HWC in group]
    found = [image_statistics(image_HWC) for image_HWC in _evenly(pictures, PICTURES)]
    spreads = [
        spread
        for group in _evenly(list(groups.values()), GROUPS)
        if (spread := diversity([thumbnail(image_HWC) for image_HWC in group])) is not None
    ]
    sums = [sum(statistics[name] for statistics in found) for name in STATISTICS]
    totals = world.sum(torch.tensor([*sums, len(found), sum(spreads), len(spreads)], dtype=torch.float64)).tolist()
    *values, count, spread, several = totals
    row = {f"stats/{name}": value / count for name, value in zip(STATISTICS, values, strict=True)} if count else {}
    return row | ({"stats/diversity": spread / several} if several else {})


def _evenly(items: Sequence[_T], count: int) -> list[_T]:
    """At most `count` of them, evenly."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
