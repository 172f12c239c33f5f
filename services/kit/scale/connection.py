"""The way to Redis: one client per process, errors sorted into "not at present" and "refused"."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.kit.settings import without_password

logger = logging.getLogger("services.redis")

Command = tuple[Any, ...]
T = TypeVar("T")

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 5.0  # above every BLOCK we ask for
_PAUSE_S = 0.2
# What Redis answers while it runs another client's script, loads, cannot save, has no memory, too few replicas or no
# primary, or keeps something from us that its operator may give back: errors of the moment, not of the command.
_FOR_NOW = frozenset(
    {"BUSY", "LOADING", "MISCONF", "OOM", "NOREPLICAS", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"}
    | {"UNBLOCKED", "NOPERM", "NOAUTH", "WRONGPASS"}
)
_DISCARDED = "Transaction discarded because of: "


class RedisAway(Exception):
    """Redis does not answer, or refuses everything or every write for the moment: try again later."""


class RedisRefused(Exception):
    """Redis answered with an error that does not pass: a key of another type, a command it does not know."""


class Connection:
    """Sends commands. `failure` is why Redis cannot be used at present, or None."""

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        """`ca_file` names further authorities for rediss://. Raises ValueError for a URL that is none of redis://, rediss:// and unix://."""
        self.url = without_password(url)
        self._silent: str | None = None
        self._refusing: str | None = None
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

    @property
    def failure(self) -> str | None:
        return self._silent or self._refusing

    async def call(self, *command: Any, **options: Any) -> Any:
        """One command's answer; `options` go to the client's parser. Raises RedisAway or RedisRefused."""
        return await self._guard(self._client.execute_command(*command, **options))  # type: ignore[no-untyped-call]

    async def pipeline(
        self, commands: Sequence[Command], *, atomic: bool = False, needed: int | None = None
    ) -> list[Any]:
        """The commands' answers, in order. A command that is refused has its `RedisRefused` in its place.

        `atomic`: all or none take effect, so the first refusal is raised. `needed`: how many of the commands, from the
        first, must be taken; None is all. Raises RedisAway, also when one of these is refused for the moment: others
        of them may have been taken by then.
        """
        if not commands:
            return []
        pipe = self._client.pipeline(transaction=atomic)
        for command in commands:
            pipe.execute_command(*command)
        answers: list[Any] = await self._guard(pipe.execute(raise_on_error=atomic))
        for answer in answers[:needed]:
            if isinstance(answer, RedisError):
                self._check_passing(answer)
        return [RedisRefused(_reason(each)) if isinstance(each, RedisError) else each for each in answers]

    async def patiently(self, send: Callable[[], Awaitable[T]]) -> T:
        """Repeat `send` until Redis takes it."""
        while True:
            try:
                return await send()
            except RedisAway:
                await asyncio.sleep(_PAUSE_S)

    def takes_writes(self) -> None:
        """A write was taken: nothing is refused for the moment any more. Reading says nothing of that."""
        if self._refusing is not None:
            logger.info("Redis takes commands again", extra={"redis": self.url})
            self._refusing = None

    async def close(self) -> None:
        try:
            await self._client.aclose()
        except RedisError:
            logger.debug("closing the connection to Redis failed", exc_info=True)

    async def _guard(self, answer: Awaitable[T]) -> T:
        try:
            value = await answer
        except ResponseError as error:
            self._back()
            self._check_passing(error)
            raise RedisRefused(_reason(error)) from None  # the client's own error quotes the command
        except (RedisConnectionError, RedisTimeoutError, RedisError, OSError) as error:
            self._away(_reason(error) or type(error).__name__)
            raise RedisAway(self.failure) from None
        self._back()
        return value

    def _check_passing(self, error: RedisError) -> None:
        """Raise RedisAway for an error of the moment."""
        reason = _reason(error)
        if reason.partition(" ")[0] not in _FOR_NOW:
            return
        if self._refusing is None:
            logger.warning("Redis refuses for the moment", extra={"redis": self.url, "reason": reason})
        self._refusing = f"Redis at {self.url} refuses commands for the moment ({reason})"
        raise RedisAway(self._refusing) from None

    def _away(self, reason: str) -> None:
        if self._silent is None:
            logger.warning("Redis is away", extra={"redis": self.url, "reason": reason})
        self._silent = f"Redis at {self.url} does not answer ({reason})"

    def _back(self) -> None:
        if self._silent is not None:
            logger.info("Redis is back", extra={"redis": self.url})
            self._silent = None


def _reason(error: Exception) -> str:
    """The error's code and sentence, without the command, which the client quotes: it may hold an image."""
    text = str(error).rpartition("of pipeline caused error: ")[2]
    if quoted := re.fullmatch(
        r"\((['\"])(.*)\1,\)", text
    ):  # the client writes an error of a pipeline as a tuple of one text
        text = quoted[2]
    if text.startswith(_DISCARDED):
        return text.removeprefix(_DISCARDED)
    code = getattr(error, "status_code", None)  # which the client takes off the text of the errors that it knows
    return f"{code} {text}" if code and not text.startswith(f"{code} ") else text
