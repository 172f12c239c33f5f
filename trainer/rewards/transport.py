"""One service over HTTP: attempts, retries, hedging, all inside one hard deadline that begins when a request is sent.

What waits in this client's own queue, because `max_in_flight` requests are under way, has a bound of its own and speaks
against nobody.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple

import httpx
from pydantic import ValidationError

from trainer.config import ServiceConfig
from trainer.rewards.answers import (
    Answer,
    ClientCode,
    OnEvent,
    RewardEvent,
    RewardServiceError,
    all_failed,
    readable,
)
from trainer.rewards.certificates import ssl_context
from trainer.rewards.checks import InvalidResponseError, check_response
from trainer.rewards.endpoint import Endpoint, EndpointPool, backoff_s, parse_retry_after
from trainer.rewards.payload import Call, multipart
from trainer.rewards.slots import LoopClock, SlotQueue
from wire.connections import Connections
from wire.schema import ErrorBody, ErrorCode, ScorerInfo

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
KEEPALIVE_S = 4.0  # below the usual server's 5 s, so that the server rarely closes a connection we are about to use
ANSWER_MARGIN_S = 0.25
LEAST_WAIT_S = 0.1  # a full queue is not asked more often than this, even when it says 0 seconds
LEAST_ATTEMPT_S = 0.05  # with less time left an attempt could only turn one reason into another
_RETRIED = {502: ClientCode.UNAVAILABLE, 503: ClientCode.UNAVAILABLE, 504: ErrorCode.TIMEOUT}


class AttemptError(Exception):
    """One attempt failed. `retry`: another may do better. `blame`: it speaks against the URL. `status`: that refused the request."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry: bool,
        blame: bool = True,
        retry_after_s: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry = retry
        self.blame = blame
        self.retry_after_s = retry_after_s
        self.status = status

    @property
    def full(self) -> bool:
        """The service works and said when it has room again."""
        return self.code == ErrorCode.OVERLOADED and self.retry_after_s is not None


class Scored(NamedTuple):
    """An answer for every id of a request; what scored them and where, None and empty where nothing did."""

    answers: dict[str, Answer]
    scorer: ScorerInfo | None = None
    url: str = ""


class ServiceCaller:
    """Scores requests at one service. Lives on one event loop."""

    def __init__(self, name: str, config: ServiceConfig, urls: Sequence[str], on_event: OnEvent) -> None:
        self.name = name
        self.config = config
        self.pool = EndpointPool(urls, config.breaker_failures, config.breaker_reset_s)
        self._on_event = on_event
        self._queue = SlotQueue(config.max_in_flight, self._why_leave_queue)
        self._clock = LoopClock()  # deadlines are times of this clock
        self._rng = random.Random()  # jitter only; results do not depend on it
        self._http = httpx.AsyncClient(
            headers={"Accept-Encoding": "identity", **_authorization(name, config)},
            # As many as there are slots, and one more for each that is hedged.
            transport=Connections(KEEPALIVE_S, ssl_context(urls, config.ca_file, f"rewards.services.{name}.ca_file")),
            trust_env=False,
            follow_redirects=False,
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def get(self, url: str, path: str, timeout_s: float) -> httpx.Response:
        """A small GET. Raises httpx.HTTPError, or TimeoutError past `timeout_s`."""
        return await self._clock.within(
            timeout_s, self._http.get(url + path, timeout=_timeouts(self.config, timeout_s))
        )

    def slot(self) -> AbstractAsyncContextManager[None]:
        """Wait until fewer than `max_in_flight` requests are under way, and be one of them inside the block.

        Raises:
            AttemptError: that took `queue_timeout_s`; or no URL has answered for as long as a request may take.
        """
        return self._queue.slot()

    def _why_leave_queue(self, since: float) -> AttemptError | None:
        if time.monotonic() >= since + self.config.queue_timeout_s:
            message = (
                f"not sent: for queue_timeout_s = {self.config.queue_timeout_s:g} s there were max_in_flight = "
                f"{self.config.max_in_flight} other requests of this process to {self.name} under way. Raise "
                f"rewards.services.{self.name}.queue_timeout_s or .max_in_flight, or give it more urls"
            )
            return AttemptError(ClientCode.CLIENT_QUEUE, message, retry=False, blame=False)
        if self.pool.is_gone(since, self.config.timeout_s):
            return AttemptError(ClientCode.UNREACHABLE, f"every URL of {self.name} has failed lately", retry=False)
        return None

    async def score(self, call: Call) -> Scored:
        """An answer for every id of `call`, at the latest after `timeout_s`. For the holder of a `slot`."""
        try:
            with self._clock.watched():
                return await self._with_retries(call, self._clock.now() + self.config.timeout_s)
        except AttemptError as error:
            return Scored(all_failed(call.ids, error.code, error.message))

    async def score_at(self, endpoint: Endpoint, call: Call, timeout_s: float) -> tuple[dict[str, Answer], ScorerInfo]:
        """One attempt at one URL, which knows nothing of the breaker. Raises AttemptError."""
        margin = min(ANSWER_MARGIN_S, 0.05 * timeout_s)  # what the service has by then still reaches us in time
        json_part = call.body(int((timeout_s - margin) * 1000), uuid.uuid4().hex).encode()
        try:
            response, body = await self._clock.within(timeout_s, self._post(endpoint.url, json_part, call, timeout_s))
        except TimeoutError as error:
            raise AttemptError(
                ErrorCode.TIMEOUT, f"{endpoint.url} gave no answer within {timeout_s:.1f} s", retry=False
            ) from error
        except httpx.HTTPError as error:
            message = f"{endpoint.url}: {reason_of(error)}"
            raise AttemptError(ClientCode.UNREACHABLE, message, retry=True) from error
        if response.status_code != 200:
            raise _status_error(endpoint.url, response, body)
        try:
            return check_response(body, call.ids)
        except InvalidResponseError as error:
            raise AttemptError(
                ClientCode.INVALID_RESPONSE, f"{endpoint.url} broke the contract: {error}", retry=False
            ) from error

    async def _post(self, url: str, json_part: bytes, call: Call, timeout_s: float) -> tuple[httpx.Response, bytes]:
        boundary = uuid.uuid4().hex
        pieces = multipart(json_part, call.parts, boundary)
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(sum(map(len, pieces))),
        }
        timeouts = _timeouts(self.config, timeout_s)
        async with self._http.stream(
            "POST", url + "/v1/score", content=_each(pieces), headers=headers, timeout=timeouts
        ) as response:
            return response, await _read(response)

    async def _with_retries(self, call: Call, deadline: float) -> Scored:
        failures = 0
        last: AttemptError | None = None
        while True:
            endpoint = self.pool.pick()
            if endpoint is None:
                wait, open_breaker = self.pool.free_in()
                if self._clock.now() + wait + LEAST_ATTEMPT_S >= deadline:
                    # Another request was told to come back later than this one can wait: ask rather than give up.
                    endpoint = self.pool.pick(cooling=True)
            if endpoint is None:
                failures += open_breaker
                last = last or AttemptError(
                    ClientCode.UNREACHABLE, f"every URL of {self.name} has failed lately", retry=True
                )
            else:
                try:
                    return await self._hedged(endpoint, call, deadline)
                except AttemptError as error:
                    last = error
                if not last.retry:
                    raise last
                failures += not last.full
                wait = self._wait_after(last, failures)
            if failures >= self.config.max_attempts or self._clock.now() + wait + LEAST_ATTEMPT_S >= deadline:
                raise last
            await asyncio.sleep(wait * self._rng.uniform(1.0, 1.1))

    def _wait_after(self, error: AttemptError, failures: int) -> float:
        if not error.full:
            return backoff_s(failures, self._rng)
        # A full queue is not a failure: it is waited out as long as the deadline allows, or another URL is asked.
        return 0.0 if self.pool.pick() is not None else error.retry_after_s or 0.0

    async def _hedged(self, first: Endpoint, call: Call, deadline: float) -> Scored:
        """One attempt; past the usual latency a second one at another URL, and the first good answer counts."""
        after_s = self.pool.hedge_after_s() if self.config.hedge else None
        if after_s is None or len(self.pool.endpoints) < 2:
            return await self._attempt(first, call, deadline)
        tasks = [asyncio.ensure_future(self._attempt(first, call, deadline))]
        try:
            await asyncio.wait(tasks, timeout=after_s)
            other = None if tasks[0].done() else self.pool.pick(exclude=first)
            if other is not None:
                tasks.append(asyncio.ensure_future(self._attempt(other, call, deadline)))
            done, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if running and all(task.exception() is not None for task in done):
                done, _ = await asyncio.wait(running)
            return min(done, key=lambda task: task.exception() is not None).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _attempt(self, endpoint: Endpoint, call: Call, deadline: float) -> Scored:
        """One attempt, entered in the books of its URL."""
        breaker = endpoint.breaker
        trial = breaker.state != "closed"
        breaker.acquire()
        endpoint.outstanding += 1
        started, lost_s = time.monotonic(), self._clock.lost_s
        verdict: Callable[[], object] = breaker.release
        try:
            if trial:
                await self._check_ready(endpoint, deadline)
            answers, scorer = await self.score_at(endpoint, call, deadline - self._clock.now())
            verdict = breaker.success
            self.pool.answered(time.monotonic() - started)
            if trial:
                self._on_event(RewardEvent("breaker", self.name, f"{endpoint.url} answers again"))
            return Scored(answers, scorer, endpoint.url)
        except AttemptError as error:
            if error.retry_after_s is not None:
                endpoint.not_before = time.monotonic() + error.retry_after_s
            if error.blame and self._clock.lost_s - lost_s > (time.monotonic() - started) / 2:
                raise  # this process was away for most of the time: it says nothing about the URL
            verdict = breaker.failure if error.blame else breaker.success
            raise
        finally:
            endpoint.outstanding -= 1
            if verdict() is True:
                text = f"{endpoint.url} failed {self.config.breaker_failures} times in a row; it rests for {self.config.breaker_reset_s} s"
                self._on_event(RewardEvent("breaker", self.name, text))

    async def _check_ready(self, endpoint: Endpoint, deadline: float) -> None:
        timeout_s = min(self.config.connect_timeout_s, deadline - self._clock.now())
        try:
            response = await self.get(endpoint.url, "/ready", timeout_s)
        except (httpx.HTTPError, TimeoutError) as error:
            message = f"{endpoint.url}/ready: {reason_of(error)}"
            raise AttemptError(ClientCode.UNREACHABLE, message, retry=True) from error
        if response.status_code != 200:
            raise _status_error(endpoint.url, response, response.content)


def _status_error(url: str, response: httpx.Response, body: bytes) -> AttemptError:
    status = response.status_code
    message = f"{url} answered {status}: {error_text(body)}"
    if status == 429:
        after = parse_retry_after(response.headers.get("retry-after"))
        after = None if after is None else max(after, LEAST_WAIT_S)
        return AttemptError(ErrorCode.OVERLOADED, message, retry=True, blame=False, retry_after_s=after)
    if status in _RETRIED:
        after = parse_retry_after(response.headers.get("retry-after")) if status == 503 else None
        return AttemptError(_RETRIED[status], message, retry=True, retry_after_s=after)
    if 400 <= status < 500:
        return AttemptError(ClientCode.REFUSED, message, retry=False, blame=False, status=status)
    return AttemptError(ClientCode.SERVER_ERROR, message, retry=False)


def error_text(body: bytes) -> str:
    """The message of an error body, or the start of whatever it is."""
    try:
        error = ErrorBody.model_validate_json(body).error
    except ValidationError:
        return repr(body[:120].decode("utf-8", "replace"))
    return readable(f"{error.message} (field {error.field})" if error.field else error.message)


def reason_of(error: Exception) -> str:
    """Why a connection failed, in words: many of these errors have none of their own."""
    if isinstance(error, httpx.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "no answer in time"
    return str(error) or type(error).__name__


async def _each(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _read(response: httpx.Response) -> bytes:
    """The body, up to a limit: a service gone mad must not fill the trainer's memory."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > MAX_RESPONSE_BYTES:
            raise AttemptError(
                ClientCode.INVALID_RESPONSE, f"{response.url} answers more than {MAX_RESPONSE_BYTES} bytes", retry=False
            )
        chunks.append(chunk)
    return b"".join(chunks)


def _timeouts(config: ServiceConfig, remaining_s: float) -> httpx.Timeout:
    """Of a request that ends by itself after `remaining_s`: only connecting has a limit of its own."""
    return httpx.Timeout(None, connect=min(config.connect_timeout_s, max(remaining_s, 0.001)))


def _authorization(name: str, config: ServiceConfig) -> dict[str, str]:
    if config.token_file is None:
        return {}
    path = Path(config.token_file)
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RewardServiceError(f"rewards.services.{name}.token_file = {path} cannot be read: {error}") from error
    if len(token.split()) != 1 or not token.isascii():
        raise RewardServiceError(f"rewards.services.{name}.token_file = {path} must hold one ASCII token, nothing else")
    return {"Authorization": f"Bearer {token}"}
