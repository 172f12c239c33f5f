"""What the ranks compute in a training step: agreed on before the first forward pass, and equally much on each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.objectives import Batch, Objective
from trainer.processes.distributed import World
from trainer.types import StopTrainingError


@dataclass(frozen=True)
class Item:
    """A part of a micro-batch: one forward and backward pass."""

    batch: Batch
    part: int


@dataclass(frozen=True)
class Work:
    """A training step of this rank.

    Attributes:
        items: of all updates, in order.
        counts_U: for each update (U of them) what the objective's terms are divided by, over all micro-batches and ranks.
    """

    items: Sequence[Item]
    counts_U: Sequence[dict[str, float]]

    def of_update(self, number: int) -> list[Item]:
        """The items of update `number` (from 0)."""
        return [item for item in self.items if item.batch.update in (None, number)]


def plan_work(objective: Objective, fed: Any, step: int, updates: int, world: World) -> Work:
    """The micro-batches of a step on this rank, and what all ranks count together. All ranks call it together.

    Sharded weights are gathered by all ranks at once, in every forward and backward pass. So where ranks have different
    numbers of parts, those with fewer repeat their last one with weight 0, which changes no sum.

    Raises:
        StopTrainingError: on all ranks, when the objective of one of them has nothing to train on.
        ValueError: on all ranks, when some have parts of a kind and others have none to repeat.
    """
    batches, problem = list[Batch](), None
    try:
        batches = list(objective.batches(fed, step))
    except StopTrainingError as error:
        problem = str(error)
    parts = Counter[str]()
    for batch in batches:
        parts[_key(batch)] += objective.num_parts(batch)
    own = {"problem": problem, "counts": [_counts(objective, batches, n) for n in range(updates)], "parts": parts}
    told = world.gather(own)
    problems = [each["problem"] for each in told if each["problem"]]
    if problems:
        raise StopTrainingError(problems[0])
    _check_all_have(told)
    counts_U = [_added([each["counts"][n] for each in told]) for n in range(updates)]
    items = []
    for key in dict.fromkeys(_key(batch) for batch in batches):
        mine = [batch.to(world.device) for batch in batches if _key(batch) == key]
        found = [Item(batch, part) for batch in mine for part in range(objective.num_parts(batch))]
        fewer = max(each["parts"].get(key, 0) for each in told) - len(found)
        items += found + [Item(found[-1].batch.weightless(), found[-1].part)] * fewer
    return Work(items, counts_U)


def _key(batch: Batch) -> str:
    """What ranks must have equally many parts of."""
    return batch.kind if batch.update is None else f"{batch.kind} of update {batch.update}"


def _counts(objective: Objective, batches: Sequence[Batch], number: int) -> dict[str, float]:
    return _added([objective.counts(batch) for batch in batches if batch.update in (None, number)])


def _added(counts: Sequence[Any]) -> dict[str, float]:
    """The sum by name."""
    totals: dict[str, float] = {}
    for each in counts:
        for name, count in each.items():
            totals[name] = totals.get(name, 0.0) + count
    return totals


def _check_all_have(told: Sequence[dict[str, Any]]) -> None:
    for rank, each in enumerate(told):
        for other, theirs in enumerate(told):
            if lacking := sorted(theirs["parts"].keys() - each["parts"].keys()):
                raise ValueError(
                    f"rank {rank} has no micro-batch of {lacking[0]}, of which rank {other} has parts to compute: give every "
                    "rank at least one"
                )
