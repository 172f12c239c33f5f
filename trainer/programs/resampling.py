"""Dynamic sampling (DAPO, arXiv 2503.14476 section 3.2): groups that teach nothing make room for groups of other prompts.

A group whose rewards do not differ has advantages of 0 and no gradient. Axes: B samples of this rank, R rewards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trainer.advantages.statistics import standardize
from trainer.policies.base import regroup
from trainer.programs.rollout import Drawn
from trainer.types import Scores


def flat_groups(scores: Scores, group_B: Tensor, *, min_valid: int) -> list[int]:
    """The groups, by their place, in which no reward with a weight tells samples apart.

    Args:
        group_B: the samples' groups, side by side.
        min_valid: valid scores that a reward must have in a group to count there.
    """
    told_BR = standardize(scores.scores_BR, scores.valid_BR, group_B, min_valid=min_valid).told_apart_BR
    teaches_B = (told_BR & (scores.weights_BR != 0)).any(1)
    groups = dict.fromkeys(group_B.tolist())
    return [place for place, group in enumerate(groups) if not bool(teaches_B[group_B == group].any())]


def exchanged(
    kept: tuple[Drawn, Scores], fresh: tuple[Drawn, Scores], *, group_size: int, micro_batch_size: int, min_valid: int
) -> tuple[Drawn, Scores]:
    """What was drawn first, with its flat groups exchanged, in order, for groups of the second draw that are not flat.

    A group stays flat where the second draw has no more to give.
    """
    (drawn, scores), (other, others) = kept, fresh
    flat = flat_groups(scores, drawn.group_B, min_valid=min_valid)
    useless = set(flat_groups(others, other.group_B, min_valid=min_valid))
    useful = [place for place in range(len(other.group_B) // group_size) if place not in useless]
    pieces, count = regroup(drawn.rollouts, group_size), len(drawn.group_B)
    spare = regroup(other.rollouts, group_size)
    seeds, rows = list(drawn.seeds_B), list(range(count))
    for place, taken in zip(flat, useful, strict=False):
        here, there = _rows(place, group_size), _rows(taken, group_size)
        number = pieces[place].group_B  # what tells the group from its neighbours on this rank
        pieces[place] = replace(spare[taken], group_B=number)
        seeds[here] = other.seeds_B[there]
        rows[here] = range(count + there.start, count + there.stop)
    return (
        replace(
            drawn,
            rollouts=regroup(pieces, micro_batch_size),
            position=other.position,
            seeds_B=seeds,
            sampling_s=drawn.sampling_s + other.sampling_s,
            flops=drawn.flops + other.flops,
        ),
        rows_of(joined(scores, others), rows),
    )


def joined(first: Scores, second: Scores) -> Scores:
    """The scores of two batches as if they were one."""
    return replace(
        first,
        ids=[*first.ids, *second.ids],
        scores_BR=torch.cat([first.scores_BR, second.scores_BR]),
        valid_BR=torch.cat([first.valid_BR, second.valid_BR]),
        asked_BR=torch.cat([first.asked_BR, second.asked_BR]),
        weights_BR=torch.cat([first.weights_BR, second.weights_BR]),
        details=[*first.details, *second.details],
        failures=_added(first.failures, second.failures),
        not_applicable=dict(Counter(first.not_applicable) + Counter(second.not_applicable)),
        latency_ms={name: [*ms, *second.latency_ms.get(name, [])] for name, ms in first.latency_ms.items()},
        cached=dict(Counter(first.cached) + Counter(second.cached)),
        waited_s=first.waited_s + second.waited_s,
        last_latency_s=first.last_latency_s + second.last_latency_s,
        stop_reason=first.stop_reason or second.stop_reason,
        datasets=[*first.datasets, *second.datasets],
    )


def rows_of(scores: Scores, rows: Sequence[int]) -> Scores:
    """These samples' scores; what is known of the batch as a whole stays."""
    index = torch.tensor(rows, dtype=torch.int64)

    def chosen(values: Sequence[Any]) -> list[Any]:
        return [values[row] for row in rows] if values else []

    return replace(
        scores,
        ids=chosen(scores.ids),
        scores_BR=scores.scores_BR[index],
        valid_BR=scores.valid_BR[index],
        asked_BR=scores.asked_BR[index],
        weights_BR=scores.weights_BR[index],
        details=chosen(scores.details),
        datasets=chosen(scores.datasets),
    )


def _rows(place: int, size: int) -> slice:
    return slice(place * size, (place + 1) * size)


def _added(first: Mapping[str, Counter[str]], second: Mapping[str, Counter[str]]) -> dict[str, Counter[str]]:
    return {name: first.get(name, Counter()) + second.get(name, Counter()) for name in (*first, *second)}
