"""One call of a scorer, made safe: whatever it does, there is one checked result per item."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from services.common.scorer import Failure, Item, Result, Score, Scorer
from wire.schema import ErrorCode

logger = logging.getLogger("services.isolation")

_MAX_MESSAGE = 300


def score_isolated(scorer: Scorer, reward: str, items: Sequence[Item]) -> list[Result]:
    """Score a batch. If it raises, score its items one by one, so that only the guilty ones fail."""
    try:
        results = scorer.score(reward, items)
    except Exception as error:
        logger.exception("score raised", extra={"reward": reward, "items": len(items)})
        if len(items) == 1:
            return [Failure(ErrorCode.INTERNAL, f"the scorer raised {type(error).__name__}: {error}"[:_MAX_MESSAGE])]
        return [result for item in items for result in score_isolated(scorer, reward, [item])]
    if not isinstance(results, Sequence) or len(results) != len(items):
        got = len(results) if isinstance(results, Sequence) else type(results).__name__
        logger.error("wrong result count", extra={"reward": reward, "items": len(items), "results": got})
        return [Failure(ErrorCode.INTERNAL, f"the scorer returned {got} results for {len(items)} items")] * len(items)
    return [_checked(result) for result in results]


def _checked(result: object) -> Result:
    if isinstance(result, Failure):
        return result
    if not isinstance(result, Score):
        return Failure(ErrorCode.INTERNAL, f"the scorer returned a {type(result).__name__}, not a Score or a Failure")
    try:
        value = float(result.value)
        components = {name: float(part) for name, part in result.components.items()}
    except (TypeError, ValueError) as error:
        return Failure(ErrorCode.INTERNAL, f"the scorer returned something that is not a number: {error}")
    if not math.isfinite(value):
        return Failure(ErrorCode.NON_FINITE, f"the score is {value}")
    for name, part in components.items():
        if not math.isfinite(part):
            return Failure(ErrorCode.NON_FINITE, f"the component {name!r} is {part}")
    return Score(value, components, result.details)
