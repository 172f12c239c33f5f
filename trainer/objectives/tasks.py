"""A loss for each task of a policy that both reads and draws, in one update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from trainer.losses import Stats
from trainer.objectives.base import Objective, Scored, Term
from trainer.objectives.sum import Members, SumBatch


class Tasks(Members):
    """Adds up weight * loss over the tasks, each loss divided by what counts in its own task: neither task's number of samples
    or tokens changes the other's gradient.

    An update is made when any task has something to train on.

    Args:
        members: by the task's name its weight and its objective.
    """

    def __init__(self, members: Mapping[str, tuple[float, Objective]]) -> None:
        self.members = dict(members)

    @property
    def leads(self) -> list[str]:
        return [f"{task}/{name}" for task, (_, objective) in self.members.items() for name in objective.leads]

    def batches(self, fed: Mapping[str, Scored], step: int) -> list[SumBatch]:
        found = []
        for task, (weight, objective) in self.members.items():
            found += [SumBatch(batch, objective, task, weight) for batch in objective.batches(fed[task], step)]
        return found

    def terms(self, batch: SumBatch, part: int) -> tuple[list[Term], Stats]:
        terms, stats = super().terms(batch, part)
        named = [replace(term, name=f"{batch.member}/{term.name}") for term in terms]
        return named, replace(stats, group=batch.member)
