"""What a user's reward function may return, and what becomes of it."""

from __future__ import annotations

import json
import math
import numbers

from services.kit.scorer import Failure, Result, Score
from wire.schema import ErrorCode, ScorerInfo

# Sums of floating-point numbers may miss a bound by rounding; that is not a bug in the reward.
_RANGE_TOLERANCE = 1e-6


def checked(info: ScorerInfo, outcome: object) -> Result:
    """The outcome of a call as a result; raises TypeError when a Score holds something that is not a number."""
    if outcome is None:
        return Failure(ErrorCode.NOT_APPLICABLE, f"{info.name} does not apply to this item")
    if isinstance(outcome, Failure):
        return outcome
    if isinstance(outcome, Score):
        return _flaw(info, outcome) or outcome
    if isinstance(outcome, numbers.Real):
        score = Score(float(outcome))
        return _flaw(info, score) or score
    kind = type(outcome).__name__
    return Failure(ErrorCode.INTERNAL, f"{info.name} returned a {kind}; a float, Score, Failure or None is needed")


def _flaw(info: ScorerInfo, score: Score) -> Failure | None:
    for name, value in (("score", score.value), *score.components.items()):
        if not math.isfinite(value):
            return Failure(ErrorCode.NON_FINITE, f"{info.name}: {name} is {value}")
    try:
        json.dumps(dict(score.details), allow_nan=False)
    except (TypeError, ValueError) as error:
        return Failure(ErrorCode.INTERNAL, f"{info.name}: details are not JSON ({error})")
    low, high = info.range
    below = low is not None and score.value < low - _RANGE_TOLERANCE
    if below or (high is not None and score.value > high + _RANGE_TOLERANCE):
        return Failure(ErrorCode.INTERNAL, f"{info.name} returned {score.value}, outside its range {low} to {high}")
    return None
