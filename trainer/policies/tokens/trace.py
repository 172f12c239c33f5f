"""What a policy that writes keeps of a micro-batch, to compute its log-probabilities again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from trainer.policies.tokens.draw import Reading


@dataclass(frozen=True, eq=False)
class AnswerTrace:
    """B answers with what was read before them.

    Attributes:
        readings_B: the answers of a group share one.
        tokens_B: the tokens (S,) of each, on the CPU.
        temperature: what logits are divided by.
        kept_B: of each bool (S, V), which tokens could be drawn; None where all could.
    """

    readings_B: Sequence[Reading]
    tokens_B: Sequence[Tensor]
    temperature: float
    kept_B: Sequence[Tensor | None]

    def rows(self, rows: slice) -> Self:
        return type(self)(self.readings_B[rows], self.tokens_B[rows], self.temperature, self.kept_B[rows])

    def join(self, others: Sequence[Self]) -> Self:
        traces = (self, *others)
        assert all(each.temperature == self.temperature for each in others), "a step samples by one plan"
        return type(self)(
            [reading for each in traces for reading in each.readings_B],
            [tokens_S for each in traces for tokens_S in each.tokens_B],
            self.temperature,
            [kept for each in traces for kept in each.kept_B],
        )
