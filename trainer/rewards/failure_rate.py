"""How often a reward failed lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from trainer.rewards.answers import Answer


class FailureWindow:
    """The last `size` scores of one reward. What is not applicable does not enter it."""

    def __init__(self, size: int) -> None:
        self._failed: deque[bool] = deque(maxlen=size)

    def add(self, answers: Iterable[Answer]) -> None:
        self._failed.extend(answer.failed for answer in answers if not answer.not_applicable)

    def clear(self) -> None:
        self._failed.clear()

    def __len__(self) -> int:
        return len(self._failed)

    @property
    def rate(self) -> float:
        """Share of failures, 0 to 1; 0 while the window is empty."""
        return sum(self._failed) / len(self._failed) if self._failed else 0.0
