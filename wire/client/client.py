"""The client: what is asked, in which requests, and how their answers become rows."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import JsonValue

from wire.client.batches import Limits, Request, check_groups, make_requests
from wire.client.errors import InvalidAnswerError, NoServiceError, NotReadyError, RewardClientError
from wire.client.inputs import ImageLike, ItemImages, make_items
from wire.client.rows import Row, Scores, row_of
from wire.schema import ErrorCode, ScorerInfo, ServiceInfo

if TYPE_CHECKING:
    from wire.client.transport import Transport

T = TypeVar("T")
_AGAIN = frozenset({ErrorCode.OVERLOADED, ErrorCode.UPSTREAM})  # of one item: asking once more may give a score
_MOST_ASKED = 3  # times that one item is sent
_PAUSE_S = 0.2  # before an item is asked about again, and once more before the next time
_READY_LOOK_S = 0.25
_INFO_S = 10.0  # longest that a service may take to say what it offers


class AsyncRewardClient:
    """Asks one reward service, from an event loop. `RewardClient` is the same without one.

    Args:
        url: the service's base URL, such as http://127.0.0.1:18082.
        token: where the service was started with --token-file.
        batch_size: most items of one request; never more than the service takes.
        concurrency: requests under way at a time.
        ca_file: authorities (PEM) to believe over https beside the public ones.

    Raises:
        ValueError: a URL or a token that cannot be one.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        batch_size: int = 64,
        concurrency: int = 4,
        ca_file: Path | None = None,
    ) -> None:
        if batch_size < 1 or concurrency < 1:
            raise ValueError(f"batch_size {batch_size} and concurrency {concurrency}: both are 1 or more")
        from wire.client.transport import Transport  # with httpx, for which who only imports the client need not wait

        self._transport = Transport(url, token, ca_file)
        self._batch_size = batch_size
        self._concurrency = concurrency
        self._info: ServiceInfo | None = None

    @property
    def url(self) -> str:
        """The base URL, without its last slash."""
        return self._transport.url

    async def info(self) -> ServiceInfo:
        """The service's rewards and limits, asked for once. Raises RewardClientError."""
        return await self._known(time.monotonic() + _INFO_S)

    async def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return when the service can score. Raises NotReadyError with its own reason after `timeout_s`, or another
        RewardClientError, also when nothing listens there by then."""
        deadline = time.monotonic() + timeout_s
        while True:
            last: RewardClientError
            try:
                reason = await self._transport.readiness(deadline)
                if reason is None:
                    return
                last = NotReadyError(f"{self.url} was not ready within {timeout_s:g} s: {reason}")
            except NoServiceError as error:  # one that is being started does not listen yet
                last = error
            if time.monotonic() + _READY_LOOK_S >= deadline:
                raise last
            await asyncio.sleep(_READY_LOOK_S)

    async def score(
        self,
        images: Sequence[ItemImages] | ImageLike | None = None,
        prompts: Sequence[str] | str = "",
        *,
        reward: str | None = None,
        completions: Sequence[str | None] | str | None = None,
        source_images: Sequence[ItemImages] | ImageLike | None = None,
        targets: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
        groups: Sequence[str | int | None] | str | int | None = None,
        metadata: Mapping[str, JsonValue] | Sequence[Mapping[str, JsonValue]] | None = None,
        deadline_s: float = 60.0,
    ) -> Scores:
        """One row for each item. What is given once, and not as a list, is every item's.

        Args:
            images: of each item a path, the bytes of a PNG, JPEG or WebP file, a Pillow image, pixels (H, W, 3) of uint8, or
                a list of these. None for a reward of texts.
            prompts: what was asked for.
            reward: which of the service's; its default otherwise.
            completions: texts to score.
            source_images: what an edit started from.
            targets: texts that a reward looks for; a list of texts is every item's, a list of lists has one for each.
            groups: the group of each item, for rewards that compare; a group is never divided.
            metadata: what a reward's documentation names.
            deadline_s: seconds for the whole call, with all that is tried again.

        Raises:
            RewardClientError: the call has no answer at all; its kinds say why. Where some requests were answered, the
                rows of the others have the error's code and sentence in place of a score.
            ValueError, TypeError: the arguments do not fit together; nothing was sent.
        """
        deadline = time.monotonic() + deadline_s
        wanted = make_items(
            images,
            prompts,
            completions=completions,
            source_images=source_images,
            targets=targets,
            groups=groups,
            metadata=metadata,
        )
        info = await self._known(deadline)
        scorer = _chosen(info, reward, self.url)
        limits = Limits.of(info, self._batch_size)
        most = int(info.limits.get("max_items", limits.items))
        check_groups(wanted, scorer, limits, most)
        asking = _Asking(self._transport, scorer.name, deadline)
        return await asking.all(make_requests(wanted, scorer, limits), len(wanted), self._concurrency)

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _known(self, deadline: float) -> ServiceInfo:
        if self._info is None:
            self._info = await self._transport.info(deadline)
        return self._info


class RewardClient:
    """Asks one reward service; `AsyncRewardClient` says what the arguments mean. Use as a context manager, or `close` it.

    Its event loop runs in a thread of its own, so that it works in a notebook, too, and may be used by several threads.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        batch_size: int = 64,
        concurrency: int = 4,
        ca_file: Path | None = None,
    ) -> None:
        self._client = AsyncRewardClient(
            url, token=token, batch_size=batch_size, concurrency=concurrency, ca_file=ca_file
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="reward-client", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The base URL, without its last slash."""
        return self._client.url

    def info(self) -> ServiceInfo:
        """The service's rewards and limits, asked for once. Raises RewardClientError."""
        return self._run(self._client.info())

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return when the service can score. Raises RewardClientError after `timeout_s` seconds."""
        self._run(self._client.wait_ready(timeout_s))

    def score(
        self,
        images: Sequence[ItemImages] | ImageLike | None = None,
        prompts: Sequence[str] | str = "",
        *,
        reward: str | None = None,
        completions: Sequence[str | None] | str | None = None,
        source_images: Sequence[ItemImages] | ImageLike | None = None,
        targets: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
        groups: Sequence[str | int | None] | str | int | None = None,
        metadata: Mapping[str, JsonValue] | Sequence[Mapping[str, JsonValue]] | None = None,
        deadline_s: float = 60.0,
    ) -> Scores:
        """One row for each item, as `AsyncRewardClient.score` says."""
        return self._run(
            self._client.score(
                images,
                prompts,
                reward=reward,
                completions=completions,
                source_images=source_images,
                targets=targets,
                groups=groups,
                metadata=metadata,
                deadline_s=deadline_s,
            )
        )

    def close(self) -> None:
        """Close the connections and end the thread. May be called more than once."""
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("this client is closed: make another")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # of no effect when it has ended; else nobody waits for it any more, as after Ctrl-C
            raise


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
