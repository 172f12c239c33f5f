"""One look at one service: is it ready, what does it say of itself, what has it counted. Each answer may be missing alone.

`/ready` needs no token; `/v1/info` and `/metrics` may. A service that hangs costs its deadline and no other row.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import dataclass, field
from typing import Literal

import httpx
from pydantic import BaseModel, ValidationError

from rewards.plane.exposition import Exposition, ExpositionError, parse
from rewards.plane.targets import SourceError, Target
from wire.schema import ErrorBody, Status
from wire.tls import tls_context, trusts_nobody, untrusted_note

MAX_BYTES = 4 << 20  # of one answer: a program that is none of ours may send without end

STARTED = "reward_start_time_seconds"

State = Literal[
    "ready", "not ready", "no answer", "unreachable", "not trusted", "no service", "wrong service", "not started"
]


class _Reward(BaseModel):
    name: str
    revision: str


class Told(BaseModel):
    """What is read of `/v1/info`. Another version may say more, which is passed over."""

    service: str
    schema_version: str
    rewards: list[_Reward]
    default_reward: str
    limits: dict[str, float] = {}

    def revision(self, reward: str | None) -> str | None:
        """That of a reward, or of the default one; None where it is not served."""
        wanted = self.default_reward if reward is None else reward
        return next((each.revision for each in self.rewards if each.name == wanted), None)


@dataclass(frozen=True)
class Seen:
    """What a look found. Where `told` or `metrics` is None, the sentence beside it says why.

    `at`: when, in `time.monotonic()` seconds. `locked`: it refused the token, or wants one.
    """

    state: State
    reason: str = ""
    told: Told | None = None
    no_told: str = ""
    metrics: Exposition | None = None
    no_metrics: str = ""
    locked: bool = False
    at: float = field(default_factory=time.monotonic)


class _Unanswered(Exception):
    """A request has no answer that can be read: the state that this means, and a sentence."""

    def __init__(self, state: State, reason: str) -> None:
        super().__init__(reason)
        self.state, self.reason = state, reason


class Asker:
    """Asks one target again and again over one connection. Raises SourceError: its certificates cannot be read."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        self.target, self._timeout_s = target, timeout_s
        self._told: Told | None = None
        self._started: float | None = None  # of the process that has told it
        secure = target.url.startswith("https:")
        try:
            verify = tls_context(target.ca_file) if secure else trusts_nobody()
        except ValueError as error:
            raise SourceError(f"{target.group}: {error}") from error
        headers = {} if target.token is None else {"Authorization": f"Bearer {target.token}"}
        self._http = httpx.AsyncClient(
            headers={"Accept-Encoding": "identity", **headers},
            verify=verify,
            timeout=None,  # each look has a deadline of its own
            follow_redirects=False,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def look(self) -> Seen:
        """Ask, for at most the timeout all together. Never raises for what the service does."""
        if not self.target.url:
            return Seen("not started", self.target.absent, no_told=self.target.absent, no_metrics=self.target.absent)
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            reason = await self._readiness(deadline)
        except _Unanswered as lost:
            return Seen(lost.state, lost.reason, no_told="it does not answer", no_metrics="it does not answer")
        metrics, no_metrics, shut = await self._metrics(deadline)
        started = None if metrics is None else metrics.total(STARTED)
        if self._told is None or started is None or started != self._started:
            told, no_told, stranger, locked = await self._info(deadline)
            if stranger:
                return Seen("no service", stranger, no_told=stranger, no_metrics=stranger)
            self._told, self._started = told, started
        else:  # the same process: what it is has not changed, and asking would count against the token's limits
            told, no_told, locked = self._told, "", False
        state: State = "not ready" if reason else "ready"
        expects = self.target.expects
        if told is not None and expects is not None and told.service != expects:
            state, reason = "wrong service", f"this is the service {told.service}, and {expects} is to be there"
        elif told is not None:
            missing = sorted(
                f"{reward or 'its default'} (column {column})"
                for column, reward in self.target.columns.items()
                if told.revision(reward) is None
            )
            if missing:
                serves = ", ".join(each.name for each in told.rewards)
                state, reason = "wrong service", f"it does not serve {', '.join(missing)}; it serves {serves}"
        return Seen(state, reason, told, no_told, metrics, no_metrics, locked=locked or shut)

    async def _readiness(self, deadline: float) -> str:
        """Why it is not ready; empty where it is. Raises _Unanswered."""
        status, kind, body = await self._get("/ready", deadline)
        if status == 200 and _is_ready(body):
            return ""
        said = _error(body)
        if said is not None:
            return said
        if status in (502, 503, 504):  # a proxy before it, in words of its own
            return f"what stands before it answered {status}: {_words(body)}"
        raise _Unanswered("no service", f"another program: GET /ready gave {status}, {kind}: {_words(body)}")

    async def _info(self, deadline: float) -> tuple[Told | None, str, str, bool]:
        """What it says of itself, else why there is nothing; why it is no reward service; whether a token is the matter."""
        try:
            status, kind, body = await self._get("/v1/info", deadline)
        except _Unanswered as lost:
            return None, f"/v1/info: {lost.reason}", "", False
        if status == 200:
            try:
                return Told.model_validate_json(body), "", "", False
            except ValidationError:
                return None, "", f"another program: GET /v1/info gave {kind}: {_words(body)}", False
        said = _error(body)
        if said is None and status not in (502, 503, 504):
            return None, "", f"another program: GET /v1/info gave {status}, {kind}: {_words(body)}", False
        reason, locked = self._refused(status, said or _words(body))
        return None, reason, "", locked

    async def _metrics(self, deadline: float) -> tuple[Exposition | None, str, bool]:
        try:
            status, _, body = await self._get("/metrics", deadline)
        except _Unanswered as lost:
            return None, f"/metrics: {lost.reason}", False
        if status != 200:
            reason, locked = self._refused(status, _error(body) or _words(body))
            return None, reason, locked
        try:
            return parse(body.decode("utf-8")), "", False
        except (ExpositionError, UnicodeDecodeError) as error:
            return None, f"/metrics is not Prometheus' text: {error}", False

    def _refused(self, status: int, said: str) -> tuple[str, bool]:
        if status not in (401, 403):
            return f"it answered {status}: {said}", False
        if self.target.token is not None:
            return "it does not know the token that was sent", True
        return self.target.no_token or "it wants a token, and none was given (--token-file)", True

    async def _get(self, path: str, deadline: float) -> tuple[int, str, bytes]:
        """Status, content type and body. Raises _Unanswered."""
        url = self.target.url + path
        try:
            async with asyncio.timeout_at(deadline), self._http.stream("GET", url) as response:
                body = b""
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > MAX_BYTES:
                        raise _Unanswered("no service", f"GET {path} gave more than {MAX_BYTES} bytes")
                return response.status_code, response.headers.get("content-type", "no content type"), body
        except TimeoutError as error:
            raise _Unanswered("no answer", f"no answer to GET {path} within {self._timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise _lost(error, url) from error
        except ValueError as error:  # what httpx raises of headers and addresses that cannot be
            raise _Unanswered("no service", f"GET {path}: {error}") from error


def _lost(error: httpx.HTTPError, url: str) -> _Unanswered:
    reason = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return _Unanswered("not trusted", f"its certificate is not trusted ({reason}){untrusted_note(reason)}")
    if "WRONG_VERSION_NUMBER" in reason or "RECORD_LAYER_FAILURE" in reason:
        return _Unanswered("not trusted", f"it does not speak TLS ({reason}): write http:// if that is meant")
    if isinstance(error, httpx.ConnectError):
        return _Unanswered("unreachable", f"no connection: {_cause(error) or reason}")
    if isinstance(error, httpx.RemoteProtocolError):
        hint = ": if it speaks TLS, write https://" if url.startswith("http:") else ""
        return _Unanswered("no service", f"it does not speak HTTP ({reason}){hint}")
    return _Unanswered("unreachable", f"the connection was lost: {reason}")


def _cause(error: BaseException) -> str:
    """What the system said, of which the messages above it speak in general."""
    seen: BaseException | None = error
    found = ""
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:  # a name that is not known has no number of the system's
            found = seen.strerror if isinstance(seen, socket.gaierror) or not seen.errno else os.strerror(seen.errno)
        seen = seen.__cause__ or seen.__context__
    return found


def _is_ready(body: bytes) -> bool:
    try:
        return Status.model_validate_json(body).status == "ready"
    except ValidationError:
        return False


def _error(body: bytes) -> str | None:
    """The sentence of an error of ours; None where the body is none."""
    try:
        return ErrorBody.model_validate_json(body).error.message
    except ValidationError:
        return None


def _words(body: bytes) -> str:
    """The beginning of what a stranger says, on one line and without anything that a terminal obeys."""
    text = " ".join(body[:400].decode("utf-8", "replace").split())
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)[:100]
    return repr(shown) if shown else "no words"
