"""A scorer that the test lets go on, and waiting for what is meant instead of for a while."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from services.kit.scorer import Item, Result
from services.kit.testing.fakes import PromptLengthScorer
from tests.support.redis_services import until

__all__ = ["Gated", "until"]


class Gated(PromptLengthScorer):
    """Scores nothing but its warm-up while the gate is shut. `entered`: how many calls have come to the gate."""

    def __init__(self, max_batch: int = 1) -> None:
        super().__init__(max_batch)
        self.gate = threading.Event()
        self.entered = 0

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        if items[0].id != "warmup":
            self.entered += 1
            assert self.gate.wait(60)
        return super().score(reward, items)
