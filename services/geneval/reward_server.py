"""GenEval for flow_grpo's clients: the form of their reward server's answer (its `compute_geneval`), from our verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import JsonValue

from services.geneval.specification import TAGS
from services.kit.rows import Rows
from wire.schema import ItemResult

ELSEWHERE = -10.0
"""What these clients take for "an image of another task" in the groups, and leave out of their means."""


class RewardServerRows:
    """A `ServesRows`. A row is one of GenEval's file: tag, include, exclude, prompt."""

    reward = "geneval_soft"

    def check(self, rows: Rows) -> None:
        only_strict = rows.options.get("only_strict", False)
        if not isinstance(only_strict, bool):
            raise ValueError(f"only_strict must be true or false, not {type(only_strict).__name__}")

    def answer(self, rows: Rows, results: Sequence[ItemResult]) -> dict[str, JsonValue]:
        """Lists of one number for each image.

        scores: the soft one, with its quirks. strict_rewards: 0 or 1. rewards: the benchmark's 0 or 1; all 0 where
        `only_strict` says that they are not asked for. group_rewards, group_strict_rewards: the same for each of the
        six tasks, ELSEWHERE for images of other tasks. An image without a score is NaN in all of them.
        """
        only_strict = rows.options.get("only_strict", False)
        strict = [_component(result, "strict") for result in results]
        correct = [_component(result, "correct") for result in results]
        rewards = [number * 0.0 if only_strict else number for number in correct]  # NaN stays NaN
        tags = [row.get("tag") for row in rows.rows]
        return {
            "scores": [math.nan if result.score is None else result.score for result in results],
            "rewards": [*rewards],
            "strict_rewards": [*strict],
            "group_rewards": _by_task(tags, rewards),
            "group_strict_rewards": _by_task(tags, strict),
        }


def _component(result: ItemResult, name: str) -> float:
    return math.nan if result.score is None else result.components[name]


def _by_task(tags: Sequence[object], numbers: Sequence[float]) -> dict[str, JsonValue]:
    return {
        task: [number if tag == task else ELSEWHERE for tag, number in zip(tags, numbers, strict=True)] for task in TAGS
    }
