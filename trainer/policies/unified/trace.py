"""What is kept of drawn images, to compute their log-probabilities again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from trainer.policies.tokens.draw import Answer
from trainer.policies.unified.draw import Drawing, ImagePlan


@dataclass(frozen=True, eq=False)
class ImageTrace:
    """B images with what was read before them.

    Attributes:
        drawings_B: the images of a group share one, unless they are drawn after plans.
        tokens_BN: int64, on the CPU.
        plan: what they were drawn by.
        thoughts_B: the plan in text that was written before each; empty where none was.
    """

    drawings_B: Sequence[Drawing]
    tokens_BN: Tensor
    plan: ImagePlan
    thoughts_B: Sequence[Answer] = ()

    def rows(self, rows: slice) -> Self:
        return replace(
            self,
            drawings_B=self.drawings_B[rows],
            tokens_BN=self.tokens_BN[rows],
            thoughts_B=self.thoughts_B[rows],
        )

    def join(self, others: Sequence[Self]) -> Self:
        traces = (self, *others)
        assert all(each.plan == self.plan for each in others), "a step samples by one plan"
        return replace(
            self,
            drawings_B=[drawing for each in traces for drawing in each.drawings_B],
            tokens_BN=torch.cat([each.tokens_BN for each in traces]),
            thoughts_B=[thought for each in traces for thought in each.thoughts_B],
        )
