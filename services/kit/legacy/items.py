"""What the legacy protocols share: parallel lists become a request's items, its results become a list of numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from services.kit.errors import ApiError, nearest
from services.kit.http.intake import Parsed, validated
from services.kit.settings import MIB, ServiceSettings
from wire.schema import ErrorCode, ScoreResponse, ScorerInfo

# A second try may succeed. All other codes would fail again, and some of these clients retry for hours.
_PASSING = frozenset({ErrorCode.TIMEOUT, ErrorCode.OVERLOADED, ErrorCode.UPSTREAM})
_RETRY_AFTER_S = 5
_DESCRIBED = 3  # failed items in a message
_MAX_SHARED = 4 * MIB  # characters
_LONGEST_NAME = 64  # characters of a wrong name that are repeated


def choose_reward(rewards: Mapping[str, ScorerInfo], wanted: str | None) -> str:
    """The reward these protocols are served with. Raises ValueError when it is unknown or compares items."""
    name = next(iter(rewards)) if wanted is None else wanted
    pointwise = [known for known, info in rewards.items() if not info.grouped]
    remedy = f"choose one with --legacy-reward: {', '.join(pointwise)}" if pointwise else "start without --legacy"
    if name not in rewards:
        raise ValueError(f"--legacy-reward {name!r} is no reward of this service; {remedy}")
    if rewards[name].grouped:
        raise ValueError(
            f"reward {name!r} compares the items of a group, and the legacy protocols cannot say which items "
            f"belong together; {remedy}"
        )
    return name


def check_count(field: str, count: int, settings: ServiceSettings) -> None:
    """Refuse a request by its number of items. Raises ApiError 413, or 422 when there are none."""
    if count > settings.max_items:
        raise ApiError(413, f"{count} items; the limit is {settings.max_items}: split the request", field=field)
    if count == 0:
        raise ApiError(422, "there is nothing to score", field=field)


def count_of(field: str, tree: Mapping[str, Any], value: object) -> int:
    """How many items a request has, by one of its lists. Raises ApiError 422 where that is missing or no list."""
    if value is None:
        raise ApiError(422, f"there are no `{field}`{misspelt(field, tree)}", field=field)
    return len(_list_of(field, value))


def misspelt(field: str, tree: Mapping[str, Any]) -> str:
    """A clause that names the field of the request that was probably meant to be `field`, else nothing."""
    near = nearest(field, [name for name in tree if isinstance(name, str)])
    return f"; did you mean `{field}` by `{near[:_LONGEST_NAME]}`?" if near and near != field else ""


def check_column(field: str, value: object, count: int) -> list[Any]:
    """`value` when it is a list with one entry per item. Raises ApiError 422."""
    entries = _list_of(field, value)
    if len(entries) != count:
        raise ApiError(422, f"{len(entries)} entries for {count} items", field=field)
    return entries


def _list_of(field: str, value: object) -> list[Any]:
    if isinstance(value, list):
        return value
    kind = "bytes" if isinstance(value, memoryview) else type(value).__name__  # which a pickle's bytes are here
    raise ApiError(422, f"a list with one entry per item is needed, not {kind}", field=field)


def check_prompts(
    field: str, tree: Mapping[str, Any], value: object, count: int, reward: str, needs_prompt: bool
) -> list[Any]:
    """The items' prompts. Raises ApiError 422 where the reward needs some and gets none: an empty caption is none.

    `tree` is the request, in which they may be misspelt. Clients of quality scorers send no prompts; a reward that looks
    at the images alone serves them.
    """
    if not needs_prompt:
        return [""] * count if value is None else check_column(field, value, count)
    needs = f"reward {reward!r} judges an image by its prompt: send the text that each image was made for"
    if value is None:
        raise ApiError(422, f"there are no prompts, and {needs}{misspelt(field, tree)}", field=field)
    prompts = check_column(field, value, count)
    blank = [place for place, prompt in enumerate(prompts) if isinstance(prompt, str) and not prompt.strip()]
    if blank:
        raise ApiError(422, f"{len(blank)} of {count} prompts are empty, and {needs}", field=f"{field}.{blank[0]}")
    return prompts


def check_shared(field: str, value: object, count: int) -> None:
    """Refuse metadata that is sent once, for all items, when a copy for each would be too much. Raises ApiError 413."""
    size = len(json.dumps(value, default=repr)) * count
    if size > _MAX_SHARED:
        raise ApiError(
            413, f"{size} characters of JSON when dealt out to {count} items; the limit is {_MAX_SHARED}", field=field
        )


def to_parsed(
    reward: str, items: Sequence[Mapping[str, object]], parts: dict[str, memoryview], settings: ServiceSettings
) -> Parsed:
    """A request from items that are as `ScoreItem` says, but for their ids. Raises ApiError 413 or 422."""
    tree = {"items": [{"id": str(number), **item} for number, item in enumerate(items)], "reward": reward}
    return validated(tree, parts, settings)


def may_pass(message: str, code: str) -> ApiError:
    """A refusal that a client should come back from: flow_grpo's does so for 503 with `Retry-After`, for nothing else."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(_RETRY_AFTER_S)})


def scores_of(response: ScoreResponse, missing: Literal["error", "nan"]) -> list[float]:
    """One number per item, in order. NaN where there is no score, or no numbers at all.

    Raises ApiError, unless NaN is wanted: 503 when every failure may pass, else 422, which no client retries for long.
    """
    results = response.results
    failed = {number: result.error for number, result in enumerate(results) if result.error is not None}
    if failed and missing == "error":
        described = [f"item {number}: {error.code}: {error.message}" for number, error in failed.items()]
        more = f"; and {len(described) - _DESCRIBED} more" if len(described) > _DESCRIBED else ""
        message = (
            f"{len(failed)} of {len(results)} items have no score, and this protocol cannot say so of single items: "
            f"{'; '.join(described[:_DESCRIBED])}{more}"
        )
        if all(error.code in _PASSING for error in failed.values()):
            raise may_pass(message, "no_score")
        raise ApiError(422, message, code="no_score")
    return [math.nan if result.score is None else result.score for result in results]
