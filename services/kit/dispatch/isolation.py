"""Calls a scorer so that, whatever it does, each item gets one checked result."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence

from pydantic import JsonValue

from services.kit.scorer import AsyncScorer, Failure, Item, Result, Score, Scorer
from wire.schema import ErrorCode

logger = logging.getLogger("services.isolation")

_MAX_MESSAGE = 500
_MAX_DETAILS = 1 << 20  # characters of JSON
_MAX_COMPONENTS = 256
NOT_AWAITED = Failure(ErrorCode.TIMEOUT, "nobody waited for the answer any more")


def score_isolated(
    scorer: Scorer, reward: str, items: Sequence[Item], awaited: Sequence[Callable[[], bool]] = ()
) -> list[Result]:
    """Score a batch. If it raises, score its items one by one, so that only the guilty ones fail.

    A group of a reward that compares cannot be taken apart: all of it fails. `awaited`, one for each item, says whether
    anyone still waits for it: an item of nobody is not tried again, and a scorer with a method `score_awaited` may drop
    it while it is being scored. What was dropped is NOT_AWAITED.
    """
    score_awaited = getattr(scorer, "score_awaited", None) if awaited else None
    try:
        results = scorer.score(reward, items) if score_awaited is None else score_awaited(reward, items, awaited)
    except Exception as error:
        logger.exception("score raised", extra={"reward": reward, "items": len(items)})
        if len(items) == 1 or scorer.rewards[reward].grouped:
            return _raised(error, len(items))
        return [_tried_again(scorer, reward, item, awaited[place : place + 1]) for place, item in enumerate(items)]
    return _all_checked(results, reward, len(items))


def _tried_again(scorer: Scorer, reward: str, item: Item, awaited: Sequence[Callable[[], bool]]) -> Result:
    if not all(wanted() for wanted in awaited):
        return NOT_AWAITED
    [result] = score_isolated(scorer, reward, [item], awaited)
    return result


async def score_isolated_async(
    scorer: AsyncScorer, reward: str, items: Sequence[Item], deadline: float
) -> list[Result]:
    """Score one job of a scorer that asks a server. Whatever is raised is a failure of all its items."""
    try:
        results = await scorer.score(reward, items, deadline)
    except Exception as error:
        logger.exception("score raised", extra={"reward": reward, "items": len(items)})
        return _raised(error, len(items))
    return _all_checked(results, reward, len(items))


def _raised(error: Exception, count: int) -> list[Result]:
    return [Failure(ErrorCode.INTERNAL, _utf8(f"the scorer raised {type(error).__name__}: {error}"))] * count


def _all_checked(results: object, reward: str, count: int) -> list[Result]:
    if not isinstance(results, Sequence) or len(results) != count:
        got = len(results) if isinstance(results, Sequence) else type(results).__name__
        logger.error("wrong result count", extra={"reward": reward, "items": count, "results": got})
        return [Failure(ErrorCode.INTERNAL, f"the scorer returned {got} results for {count} items")] * count
    return [_checked(result) for result in results]


def _checked(result: object) -> Result:
    if isinstance(result, Failure):
        code = ErrorCode(result.code) if result.code in list(ErrorCode) else ErrorCode.INTERNAL
        return Failure(code, _utf8(str(result.message)))
    if not isinstance(result, Score):
        return Failure(ErrorCode.INTERNAL, f"the scorer returned a {type(result).__name__}, not a Score or a Failure")
    try:
        value = float(result.value)
        components = {_utf8(str(name)): float(part) for name, part in result.components.items()}
        details = _as_json(result.details) if result.details else {}
        if len(components) > _MAX_COMPONENTS:
            raise ValueError(f"{len(components)} components; the limit is {_MAX_COMPONENTS}")
    except (TypeError, ValueError, RecursionError) as error:
        return Failure(ErrorCode.INTERNAL, f"the scorer returned what an answer cannot carry: {_utf8(str(error))}")
    for name, part in {"score": value, **components}.items():
        if not math.isfinite(part):
            return Failure(ErrorCode.NON_FINITE, f"{name} is {part}")
    return Score(value, components, details, bool(result.cacheable))


def _as_json(details: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The details as they will be on the wire: tuples are lists, and too many are left out. Raises when not JSON."""
    text = json.dumps(dict(details), allow_nan=False, ensure_ascii=False)
    if len(text) > _MAX_DETAILS:
        logger.warning("details left out", extra={"characters": len(text), "limit": _MAX_DETAILS})
        return {"left_out": f"details of {len(text)} characters of JSON; the limit is {_MAX_DETAILS}"}
    tree: dict[str, JsonValue] = json.loads(text.encode("utf-8"))
    return tree


def _utf8(text: str) -> str:
    """Without lone surrogates, which JSON cannot carry."""
    return text.encode("utf-8", "replace").decode("utf-8")[:_MAX_MESSAGE]
