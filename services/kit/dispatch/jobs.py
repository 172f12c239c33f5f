"""From a request's decoded items to jobs, and back from the jobs' outcomes to one result per item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.kit.dispatch.base import Job, Outcome
from services.kit.dispatch.cache import group_key
from services.kit.dispatch.decoding import Decoded
from services.kit.errors import ApiError
from services.kit.scorer import Failure, Item, Score
from wire.schema import ErrorCode, ItemError, ItemResult, ScoreItem, ScorerInfo


@dataclass(frozen=True)
class Plan:
    """The jobs of a request, the places of each one's items in it, and the items that are no part of a job."""

    jobs: tuple[Job, ...]
    places: tuple[tuple[int, ...], ...]
    failed: Mapping[int, Failure]

    def results(self, ids: Sequence[str], outcomes: Sequence[Outcome]) -> list[ItemResult]:
        """One result per id, in order, from one outcome per job."""
        found = {place: _failed(ids[place], failure) for place, failure in self.failed.items()}
        for places, outcome in zip(self.places, outcomes, strict=True):
            for place, result in zip(places, outcome.results, strict=True):
                found[place] = to_result(ids[place], result, outcome)
        return [found[place] for place in range(len(ids))]


def check_groups(items: Sequence[ScoreItem], limit: int) -> None:
    """Refuse a group of too many items before anything is decoded: all pairs of G items are G(G-1)/2 comparisons.

    Raises ApiError 413.
    """
    for group_id, count in Counter(item.group_id for item in items if item.group_id is not None).items():
        if count > limit:
            raise ApiError(
                413,
                f"group {group_id!r:.80} has {count} items and the limit is {limit}: send smaller groups, or raise "
                f"--max-group-items",
                field="items",
            )


def make_plan(decoded: Sequence[Decoded], parts: Mapping[str, memoryview], info: ScorerInfo) -> Plan:
    """One job per item or, for a reward that compares, one per `group_id`. An item that is bad leaves its group."""
    failed: dict[int, Failure] = {}
    members: dict[object, list[int]] = {}
    for place, each in enumerate(decoded):
        if isinstance(each.item, Failure):
            failed[place] = each.item
        elif not info.grouped:
            members[place] = [place]
        elif each.item.group_id is None:
            failed[place] = Failure(
                ErrorCode.BAD_INPUT,
                f"reward {info.name!r} compares the items of a group: give each its `group_id`, all in one request",
            )
        else:
            members.setdefault(each.item.group_id, []).append(place)
    jobs = [_job([decoded[place] for place in places], parts, info) for places in members.values()]
    return Plan(tuple(jobs), tuple(tuple(places) for places in members.values()), failed)


def _job(members: Sequence[Decoded], parts: Mapping[str, memoryview], info: ScorerInfo) -> Job:
    items = tuple(each.item for each in members if isinstance(each.item, Item))
    keys = [each.key for each in members if each.key is not None]
    key = None if len(keys) != len(members) else group_key(keys) if info.grouped else keys[0]
    return Job(items, key, tuple(each.sent for each in members), parts)


def to_result(item_id: str, result: Score | Failure, outcome: Outcome) -> ItemResult:
    """A result as it goes over the wire."""
    if isinstance(result, Failure):
        return _failed(item_id, result, outcome.queue_s, outcome.compute_s)
    return ItemResult(
        id=item_id,
        score=result.value,
        components=dict(result.components),
        details=dict(result.details),
        cached=outcome.cached,
        queue_ms=outcome.queue_s * 1000,
        compute_ms=outcome.compute_s * 1000,
    )


def _failed(item_id: str, failure: Failure, queue_s: float = 0.0, compute_s: float = 0.0) -> ItemResult:
    error = ItemError(code=failure.code, message=failure.message)
    return ItemResult(id=item_id, score=None, error=error, queue_ms=queue_s * 1000, compute_ms=compute_s * 1000)
