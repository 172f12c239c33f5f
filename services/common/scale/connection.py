"""The way to Redis: one client per process, errors sorted into "away at present" and "refused"."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.common.settings import without_password

logger = logging.getLogger("services.redis")

Command = tuple[Any, ...]
T = TypeVar("T")

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 5.0  # above every BLOCK we ask for
_PAUSE_S = 0.2


class RedisAway(Exception):
    """Redis does not answer, is loading its data, or is a replica at present: try again later."""


class RedisRefused(Exception):
    """Redis answered with an error: out of memory, a key of another type, a command it does not know."""


class RedisFull(RedisRefused):
    """Redis has no memory left to write with."""


class Connection:
    """Sends commands. `failure` is why Redis does not answer at present, or None."""

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        """`ca_file` names further authorities for rediss://. Raises ValueError for a URL that is none of redis://, rediss:// and unix://."""
        self.url = without_password(url)
        self.failure: str | None = None
        tls: dict[str, Any] = {}
        if ca_file is not None and url.startswith("rediss:"):
            tls["ssl_ca_certs"] = str(ca_file)
        # A command that the client repeats by itself might run twice; what may be repeated is decided where it is sent.
        self._client: Redis = Redis.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=ANSWER_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            **tls,
        )

    async def call(self, *command: Any, **options: Any) -> Any:
        """One command's answer; `options` go to the client's parser. Raises RedisAway or RedisRefused."""
        return await self._guard(self._client.execute_command(*command, **options))  # type: ignore[no-untyped-call]

    async def pipeline(self, commands: Sequence[Command], *, atomic: bool = False) -> list[Any]:
        """The commands' answers, in order. A command that is refused has its `RedisRefused` in its place.

        `atomic`: all or none take effect, so the first refusal is raised. Raises RedisAway.
        """
        if not commands:
            return []
        pipe = self._client.pipeline(transaction=atomic)
        for command in commands:
            pipe.execute_command(*command)
        answers: list[Any] = await self._guard(pipe.execute(raise_on_error=atomic))
        return [_refusal(each) if isinstance(each, RedisError) else each for each in answers]

    async def patiently(self, send: Callable[[], Awaitable[T]]) -> T:
        """Repeat `send` until Redis answers."""
        while True:
            try:
                return await send()
            except RedisAway:
                await asyncio.sleep(_PAUSE_S)

    async def close(self) -> None:
        try:
            await self._client.aclose()
        except RedisError:
            logger.debug("closing the connection to Redis failed", exc_info=True)

    async def _guard(self, answer: Awaitable[T]) -> T:
        try:
            value = await answer
        except (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OSError) as error:
            self._away(str(error) or type(error).__name__)
            raise RedisAway(self.failure) from error
        except ResponseError as error:
            self._back()
            raise _refusal(error) from error
        self._back()
        return value

    def _away(self, reason: str) -> None:
        if self.failure is None:
            logger.warning("Redis is away", extra={"redis": self.url, "reason": reason})
        self.failure = f"Redis at {self.url} does not answer ({reason})"

    def _back(self) -> None:
        if self.failure is not None:
            logger.info("Redis is back", extra={"redis": self.url})
            self.failure = None


def _refusal(error: RedisError) -> RedisRefused:
    """Without the command, which the client quotes: it may hold a picture."""
    reason = str(error).rpartition("of pipeline caused error: ")[2]
    return RedisFull(reason) if isinstance(error, OutOfMemoryError) else RedisRefused(reason)
