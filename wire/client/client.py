"""The client: what is asked of a service, from an event loop and without one.

What a call needs (httpx, pydantic, Pillow) is imported when a client is made or asked: who only imports this package need not
wait for it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from wire.client.errors import NoServiceError, NotReadyError, RewardClientError
from wire.client.rows import Scores

if TYPE_CHECKING:
    from pydantic import JsonValue

    from wire.client.inputs import ImageLike, ItemImages
    from wire.schema import ServiceInfo

T = TypeVar("T")
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
        from wire.client.transport import Transport

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
        from wire.client.asking import ask
        from wire.client.inputs import make_items

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
        return await ask(
            self._transport, info, reward, wanted, deadline, batch_size=self._batch_size, concurrency=self._concurrency
        )

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
