"""One service over HTTP: each request is tried again while that can help and the deadline allows."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from wire.client.batches import Request
from wire.client.errors import (
    DeadlineError,
    InvalidAnswerError,
    NoServiceError,
    NotAServiceError,
    NotReadyError,
    OverloadedError,
    RefusedError,
    RewardClientError,
    UnauthorizedError,
)
from wire.schema import SCHEMA_VERSION, ErrorBody, RequestError, ScoreResponse, ServiceInfo
from wire.tls import tls_context, trusts_nobody, untrusted_note

CONNECT_S = 10.0
BACKOFF_FIRST_S, BACKOFF_MOST_S = 0.2, 5.0
LEAST_ATTEMPT_S = 0.05  # with less time left an attempt could only turn one reason into another
ANSWER_MARGIN_S = 0.25  # what the service has by its own deadline still reaches us before ours
_RETRIED = frozenset({429, 502, 503, 504})
T = TypeVar("T")


class _AgainError(Exception):
    """An attempt failed, and another may do better: `error` is what is raised when there is no time for one."""

    def __init__(self, error: RewardClientError, retry_after_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after_s = retry_after_s


class Transport:
    """Requests to one service. Deadlines are times of `time.monotonic`.

    Raises ValueError for a URL that cannot be one, a token that no header can hold, and a `ca_file` that cannot be read.
    """

    def __init__(self, url: str, token: str | None, ca_file: Path | None) -> None:
        self.url = checked_url(url)
        self._token = token is not None
        self._met = False  # whether anything ever answered there
        self._random = random.Random()  # spreads retries; results do not depend on it
        secure = self.url.startswith("https:")
        self._http = httpx.AsyncClient(
            headers=_authorization(token),
            verify=tls_context(ca_file) if secure else trusts_nobody(),
            timeout=httpx.Timeout(None, connect=CONNECT_S),  # each request has the call's deadline
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def info(self, deadline: float) -> ServiceInfo:
        """What the service offers, and its limits. Raises RewardClientError."""
        response = await self._patiently(lambda: self._send("GET", "/v1/info", deadline), deadline)
        try:
            info = ServiceInfo.model_validate_json(response.content)
        except ValidationError as error:
            raise self._stranger(response, "/v1/info") from error
        if info.schema_version != SCHEMA_VERSION:
            raise InvalidAnswerError(
                f"{self.url} speaks version {info.schema_version} of the contract, this client {SCHEMA_VERSION}: "
                f"install the client of that version"
            )
        return info

    async def readiness(self, deadline: float) -> str | None:
        """None when the service can score, else its own sentence on why it cannot. Raises RewardClientError."""
        try:
            response = await self._attempt("GET", "/ready", deadline)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.status_code == 200:
            return None
        if response.status_code == 503:
            return _error_of(response).message
        raise self._stranger(response, "/ready")

    async def score(self, request: Request, reward: str, deadline: float) -> ScoreResponse:
        """One answer for each item of a request. Raises RewardClientError."""

        async def attempt() -> httpx.Response:
            left_s = deadline - time.monotonic()
            body = {
                "items": [item.model_dump(mode="json", exclude_none=True) for item in request.items.values()],
                "reward": reward,
                "deadline_ms": max(1, int(1000 * (left_s - min(ANSWER_MARGIN_S, 0.05 * left_s)))),
            }
            files = {name: (name, part.data, part.media_type) for name, part in request.parts.items()}
            files["request"] = ("request.json", json.dumps(body).encode(), "application/json")  # type: ignore[assignment]
            return await self._send("POST", "/v1/score", deadline, files=files)

        response = await self._patiently(attempt, deadline)
        try:
            answer = ScoreResponse.model_validate_json(response.content)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise InvalidAnswerError(f"{self.url} broke the contract: {where}: {problem['msg']}") from error
        sent, got = sorted(item.id for item in request.items.values()), sorted(each.id for each in answer.results)
        if sent != got:
            raise InvalidAnswerError(
                f"{self.url} broke the contract: {len(got)} results for {len(sent)} items, or for others"
            )
        return answer

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], deadline: float) -> T:
        """Try until it works, cannot work, or would not be done by the deadline."""
        pause_s = BACKOFF_FIRST_S
        while True:
            try:
                return await attempt()
            except _AgainError as again:
                wait_s = max(pause_s * self._random.uniform(0.5, 1.0), again.retry_after_s)
                if time.monotonic() + wait_s + LEAST_ATTEMPT_S >= deadline:
                    raise again.error from again
                await asyncio.sleep(wait_s)
                pause_s = min(2 * pause_s, BACKOFF_MOST_S)

    async def _send(self, method: str, path: str, deadline: float, files: object = None) -> httpx.Response:
        """One attempt; its answer is 200. Raises _AgainError and RewardClientError."""
        try:
            response = await self._attempt(method, path, deadline, files)
        except httpx.TransportError as error:
            lost = self._unreachable(error)
            if not self._met:  # a wrong address is not worth waiting for
                raise lost from error
            raise _AgainError(lost) from error
        if response.status_code == 200:
            self._met = True
            return response
        raise self._failure(response, path)

    async def _attempt(self, method: str, path: str, deadline: float, files: object = None) -> httpx.Response:
        left_s = deadline - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                return await self._http.request(method, self.url + path, files=files)  # type: ignore[arg-type]
        except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise DeadlineError(f"{self.url} gave no answer to {method} {path} by the deadline") from error

    def _failure(self, response: httpx.Response, path: str) -> Exception:
        """What an answer that is not 200 means."""
        status, error = response.status_code, _error_of(response)
        said = f"{self.url} answered {status} ({error.code}): {error.message}"
        if error.code == _NO_ERROR_BODY and status not in (502, 503, 504):  # a proxy gives those in its own words
            return self._stranger(response, path)
        self._met = True
        if status == 401:
            remedy = "give another token" if self._token else "give one: RewardClient(url, token=...)"
            why = "does not know this token" if self._token else "wants a token"
            return UnauthorizedError(f"{self.url} {why}: {remedy}")
        if status in _RETRIED:
            kinds = {429: OverloadedError, 503: NotReadyError}
            return _AgainError(kinds.get(status, DeadlineError)(said), _retry_after_s(response))
        if status >= 500:
            return InvalidAnswerError(said)
        return RefusedError(f"{said} (field {error.field})" if error.field else said, status=status, field=error.field)

    def _unreachable(self, error: httpx.TransportError) -> NoServiceError:
        reason = str(error) or type(error).__name__
        return NoServiceError(
            f"no answer from {self.url} ({reason}{untrusted_note(reason)}): is the service started, and this its address?"
        )

    def _stranger(self, response: httpx.Response, path: str) -> NotAServiceError:
        there = f", a redirection to {response.headers['location']}" if "location" in response.headers else ""
        return NotAServiceError(
            f"{self.url} is no reward service: GET {path} gave {response.status_code}{there}, "
            f"{response.headers.get('content-type', 'no content type')}; give the service's base URL, such as "
            f"http://127.0.0.1:18082"
        )


def checked_url(url: str) -> str:
    """A base URL without its last slash. Raises ValueError."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"{url!r} is no URL of a service: write it as in http://127.0.0.1:18082")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a URL with a password, a query or a fragment is no service's: give the token as `token`")
    base = url.rstrip("/")
    if parts.path.rstrip("/").endswith("/v1/score"):
        raise ValueError(f"{url!r} names a route: give the base URL, {base.removesuffix('/v1/score')}")
    return base


_NO_ERROR_BODY = "none"


def _error_of(response: httpx.Response) -> RequestError:
    try:
        return ErrorBody.model_validate_json(response.content).error
    except ValidationError:
        start = response.content[:120].decode("utf-8", "replace")
        return RequestError(code=_NO_ERROR_BODY, message=" ".join(start.split()) or "no words")


def _authorization(token: str | None) -> dict[str, str]:
    if token is None:
        return {}
    clean = token.strip()
    if not clean or not clean.isascii() or not clean.isprintable() or " " in clean:
        raise ValueError("the token is empty, or has characters that no token has: give it without `Bearer` and blanks")
    return {"Authorization": f"Bearer {clean}"}


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds of a Retry-After header, as our services write it; 0 where there is none."""
    given = response.headers.get("retry-after", "")
    return float(given) if given.isdecimal() else 0.0
