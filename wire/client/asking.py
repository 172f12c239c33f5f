"""One call of `score` on its way: which reward, in which requests, and how their answers become rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

from wire.client.batches import Limits, Request, check_groups, make_requests
from wire.client.errors import InvalidAnswerError, RewardClientError
from wire.client.inputs import Wanted
from wire.client.rows import Row, Scores, row_of
from wire.client.transport import Transport
from wire.schema import ErrorCode, ScorerInfo, ServiceInfo

_AGAIN = frozenset({ErrorCode.OVERLOADED, ErrorCode.UPSTREAM})  # of one item: asking once more may give a score
_MOST_ASKED = 3  # times that one item is sent
_PAUSE_S = 0.2  # before an item is asked about again, and once more before the next time


async def ask(
    transport: Transport,
    info: ServiceInfo,
    reward: str | None,
    wanted: Sequence[Wanted],
    deadline: float,
    *,
    batch_size: int,
    concurrency: int,
) -> Scores:
    """The rows of the items. `deadline` is a time of `time.monotonic`.

    Raises:
        RewardClientError: none of the requests has an answer.
        ValueError: the service has no such reward, or a group does not fit; nothing was sent.
    """
    scorer = _chosen(info, reward, transport.url)
    limits = Limits.of(info, batch_size)
    check_groups(wanted, scorer, limits, int(info.limits.get("max_items", limits.items)))
    asking = _Asking(transport, scorer.name, deadline)
    return await asking.all(make_requests(wanted, scorer, limits), len(wanted), concurrency)


class _Asking:
    """The requests of one call of `score`, on their way."""

    def __init__(self, transport: Transport, reward: str, deadline: float) -> None:
        self._transport = transport
        self._reward = reward
        self._deadline = deadline
        self._rows: dict[int, Row] = {}
        self._scorer: ScorerInfo | None = None
        self._lost: RewardClientError | None = None

    async def all(self, requests: Iterator[Request], count: int, concurrency: int) -> Scores:
        """Send them, `concurrency` at a time; the images of one are read, in a thread, while others are under way."""
        reading = asyncio.Lock()

        async def sender() -> None:
            while True:
                async with reading:
                    request = await asyncio.to_thread(next, requests, None)
                if request is None:
                    return
                await self._score(request)

        senders = [asyncio.ensure_future(sender()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*senders)
        finally:
            for each in senders:
                each.cancel()
            await asyncio.gather(*senders, return_exceptions=True)
        if self._scorer is None and self._lost is not None:
            raise self._lost
        return Scores([self._rows[index] for index in range(count)], self._scorer)

    async def _score(self, request: Request) -> None:
        self._rows |= {row.index: row for row in request.refused}
        for asked in range(_MOST_ASKED):
            if not request.items or time.monotonic() + asked * _PAUSE_S >= self._deadline:
                return
            await asyncio.sleep(asked * _PAUSE_S)
            try:
                answer = await self._transport.score(request, self._reward, self._deadline)
                self._keep_one(answer.scorer)
            except RewardClientError as error:
                self._lost = self._lost or error
                for place in request.items:
                    self._rows.setdefault(place, Row(place, None, error.code, str(error)))
                return
            places = {item.id: place for place, item in request.items.items()}
            self._rows |= {places[each.id]: row_of(places[each.id], each) for each in answer.results}
            weak = {places[each.id] for each in answer.results if each.error is not None and each.error.code in _AGAIN}
            groups = {request.items[place].group_id for place in weak} - {None} if answer.scorer.grouped else set()
            request = request.only(weak | {place for place, item in request.items.items() if item.group_id in groups})

    def _keep_one(self, scorer: ScorerInfo) -> None:
        """Raises InvalidAnswerError: scores of two revisions cannot be compared with one another."""
        if self._scorer is not None and scorer != self._scorer:
            raise InvalidAnswerError(
                f"{self._transport.url} answered with revision {self._scorer.revision!r} and then with {scorer.revision!r}: "
                f"it was restarted meanwhile, or several stand behind the address; ask again"
            )
        self._scorer = scorer


def _chosen(info: ServiceInfo, reward: str | None, url: str) -> ScorerInfo:
    name = info.default_reward if reward is None else reward
    known = {each.name: each for each in info.rewards}
    if name not in known:
        raise ValueError(f"no reward {name!r} at {url}; it serves: {', '.join(known)}")
    return known[name]
