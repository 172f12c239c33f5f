"""Which given row stands at which place of which step: known from the seed, the step and the place alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch

from trainer.seeds import sample_seed

RowT = TypeVar("RowT")


class Dealt(Generic[RowT]):
    """Rows that are dealt like cards: all of them, in an order of its own each time, before any comes again.

    So as many steps as an epoch has see every row once, however many ranks share them, and a restart needs no state.

    Attributes:
        rows: what is dealt.
        name: of the section of the configuration that they come from.
    """

    def __init__(self, rows: Sequence[RowT], seed: int, name: str) -> None:
        self.rows, self.seed, self.name = list(rows), seed, name
        self._order: tuple[int, Sequence[int]] = (-1, ())  # of the last epoch that was asked for

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int, attempt: int = 0) -> RowT:
        """The row at place `number` of the whole run; with an `attempt` above 0 a substitute for one that cannot be read."""
        if attempt:
            return self.rows[sample_seed(self.seed, self.name, number, attempt) % len(self.rows)]
        epoch, offset = divmod(number, len(self.rows))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(sample_seed(self.seed, self.name, "epoch", epoch))
            self._order = (epoch, torch.randperm(len(self.rows), generator=generator).tolist())
        return self.rows[self._order[1][offset]]
