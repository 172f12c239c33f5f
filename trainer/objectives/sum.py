"""Several objectives in one update: one with others beside it, or one for each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch

from trainer.losses import Stats
from trainer.objectives.base import Batch, Objective, Term
from trainer.policies.base import Policy


@dataclass(frozen=True)
class SumBatch:
    """A member's micro-batch, with the member's share of the sum in this step."""

    inner: Batch
    objective: Objective
    member: str
    share: float

    @property
    def kind(self) -> str:
        return f"{self.member}/{self.inner.kind}"

    @property
    def update(self) -> int | None:
        return self.inner.update

    def to(self, device: torch.device) -> Self:
        return replace(self, inner=self.inner.to(device))

    def weightless(self) -> Self:
        return replace(self, inner=self.inner.weightless())


class Members:
    """What objectives that are made of others share: each member's micro-batches are its own."""

    requires: ClassVar[type] = Policy  # each member's own capability is checked where the member is built

    def counts(self, batch: SumBatch) -> dict[str, float]:
        return {f"{batch.member}/{name}": count for name, count in batch.objective.counts(batch.inner).items()}

    def num_parts(self, batch: SumBatch) -> int:
        return batch.objective.num_parts(batch.inner)

    def terms(self, batch: SumBatch, part: int) -> tuple[list[Term], Stats]:
        terms, stats = batch.objective.terms(batch.inner, part)
        shared = [replace(term, over=f"{batch.member}/{term.over}", share=batch.share * term.share) for term in terms]
        return shared, stats


class Sum(Members):
    """(1 - sum of coefs) * main + coef * beside + ...

    The share of a member without any micro-batch in a step (it is not due) goes to the main one.

    An update is made when the main objective has something to train on. Alone, what stands beside it would be no small
    share any more: Adam divides a gradient by its own size.

    Args:
        main: takes what the others leave of the sum.
        beside: shares with their objectives; their gradients are added up first.
    """

    def __init__(self, main: Objective, beside: Sequence[tuple[float, Objective]]) -> None:
        self.main, self.beside = main, list(beside)

    @property
    def leads(self) -> list[str]:
        return [f"main/{name}" for name in self.main.leads]

    def batches(self, fed: Any, step: int) -> list[SumBatch]:
        left, found = 1.0, list[SumBatch]()
        for number, (coef, objective) in enumerate(self.beside):
            batches = objective.batches(fed, step)
            found += [SumBatch(batch, objective, f"beside{number}", coef) for batch in batches]
            left -= coef if batches else 0.0
        return found + [SumBatch(batch, self.main, "main", left) for batch in self.main.batches(fed, step)]
