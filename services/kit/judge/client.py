"""Calls to a judge through one bounded pool, each with a deadline. A call gives an answer or says why there is none."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic_core import to_json

from services.kit.judge.answers import Answer, BrokenOffError, read_completion
from services.kit.judge.health import Health
from services.kit.judge.metrics import JudgeMetrics
from services.kit.judge.slots import Slots
from wire.connections import Connections
from wire.schema import ErrorCode
from wire.tls import tls_context, trusts_nobody, untrusted_note

logger = logging.getLogger("services.judge")

Part = Mapping[str, Any]  # a content part of a chat message: {"type": "text", ...} or {"type": "image_url", ...}

_RETRIED = frozenset({429, 500, 502, 503, 504})
_OF_EVERY_CALL = frozenset({401, 403, 404})  # the key, the model or the path is refused: no item is to blame
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_PROBE_S = 5.0
_SILENCE_S = 0.25  # a call that was at the server for less, because its deadline was near, tells nothing of the server
_EARLY_S = 0.05  # who waits for the call may give it up this much before the call's own clock strikes
SILENCE = "no answer in time"
MODELS, CHAT = "/v1/models", "/v1/chat/completions"
_JSON = {"Content-Type": "application/json"}
_KEEP_ALIVE_S = 3.0  # vLLM closes idle connections after 5 s: close them first, or a call meets a closing one


class JudgeError(Exception):
    """A call without an answer. `code` is `upstream` (the server refused or broke) or `timeout`."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class WrongJudgeError(JudgeError):
    """A server answers, and waiting will not help: another model, a wrong key, a certificate that is not believed."""


@dataclass(frozen=True)
class JudgeEndpoint:
    """Where the judge is and how it is asked. `extra` goes into every request body (`chat_template_kwargs`, ...)."""

    url: str
    model: str
    concurrency: int = 64
    attempts: int = 3
    call_timeout_s: float = 120.0
    key: str | None = None
    ca_file: Path | None = None
    extra: Mapping[str, Any] | None = None


def server_url(url: str) -> str:
    """The server's address without `/v1`, with which addresses of OpenAI-compatible servers are often given."""
    parts = urlsplit(url)
    path = parts.path
    for end in ("/chat/completions", "/v1"):
        path = path.rstrip("/").removesuffix(end)
    return f"{parts.scheme}://{parts.netloc}{path.rstrip('/')}"


def _log_waiting(reason: str) -> None:
    logger.info("waiting for the judge", extra={"reason": reason})


@dataclass
class _Call:
    """One question while it is asked. `sent`: when the try that is at the server left, in `time.monotonic()` seconds."""

    body: Mapping[str, Any]
    started: float
    sent: float | None = None


class JudgeClient:
    """One connection pool to one server. All calls of a service share it, first come, first served."""

    def __init__(self, endpoint: JudgeEndpoint, metrics: JudgeMetrics) -> None:
        """Raises ValueError, with the remedy, when the certificates that are named cannot be used."""
        self.endpoint = endpoint
        self._metrics = metrics
        self.slots = Slots(endpoint.concurrency)
        metrics.slots.set(endpoint.concurrency)
        self._url = server_url(endpoint.url)
        self.health = Health(self._url)
        secure = self._url.startswith("https:") or endpoint.ca_file is not None
        tls = tls_context(endpoint.ca_file) if secure else trusts_nobody()
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        self._http = httpx.AsyncClient(
            base_url=self._url,
            headers=headers,
            transport=Connections(_KEEP_ALIVE_S, tls),
            timeout=httpx.Timeout(endpoint.call_timeout_s, connect=10.0),
            trust_env=False,
        )

    @property
    def failure(self) -> str | None:
        """A sentence while the server does not answer, else None."""
        return self.health.failure

    async def check(self) -> None:
        """Raise JudgeError with the remedy unless the server is up and serves the model.

        It is a WrongJudgeError when waiting would not help.
        """
        url = self._url
        try:
            response = await self._http.get(MODELS, timeout=_PROBE_S)
            if response.status_code in (401, 403):
                raise WrongJudgeError(
                    ErrorCode.UPSTREAM,
                    f"the judge at {url} refuses the key (HTTP {response.status_code}): "
                    f"name the file that holds its key with --judge-key-file",
                )
            response.raise_for_status()
            served = [str(each["id"]) for each in response.json()["data"]]
        except httpx.HTTPError as error:
            reason = _reason(error)
            note = untrusted_note(reason)
            raise (WrongJudgeError if note else JudgeError)(
                ErrorCode.UPSTREAM,
                f"no judge answers at {url}/v1/models ({reason}): start it, or correct the URL{note}",
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise JudgeError(ErrorCode.UPSTREAM, f"{url}/v1/models is not an OpenAI-compatible model list") from error
        if self.endpoint.model not in served:
            raise WrongJudgeError(
                ErrorCode.UPSTREAM,
                f"the judge at {url} serves {', '.join(served) or 'no model'}, not {self.endpoint.model!r}: "
                f"start it with --served-model-name {self.endpoint.model}, or give the served name with --model",
            )
        self.health.note_contact()

    async def wait(self, timeout_s: float, say: Callable[[str], None] = _log_waiting) -> None:
        """Wait until `check` passes; `say` gets the reason when there is one and when it changes.

        Raises JudgeError after `timeout_s`, WrongJudgeError at once.
        """
        until = time.monotonic() + timeout_s
        said = ""
        while True:
            try:
                await self.check()
                return
            except WrongJudgeError:
                raise
            except JudgeError as error:
                if time.monotonic() + 1.0 >= until:
                    raise
                if said != str(error):
                    said = str(error)
                    say(said)
                await asyncio.sleep(1.0)

    async def recover(self) -> None:
        """Look whether a lost server is back. One that broke every call is asked something: its list proves nothing."""
        try:
            await self.check()
        except JudgeError as error:
            self.health.note_lost(str(error))
            return
        if self.health.breaks:
            await self._probe()

    async def ask(
        self,
        content: Sequence[Part],
        *,
        max_tokens: int,
        deadline: float,
        schema: Mapping[str, Any] | None = None,
        temperature: float = 0,
        seed: int | None = None,
        top_logprobs: int | None = None,
        has_slot: bool = False,
    ) -> Answer:
        """One user message, answered at `temperature`. `schema` is a JSON schema the answer must follow.

        `top_logprobs`: how many of the likeliest first tokens the answer shall name. `has_slot`: the caller took one of
        `slots` for this call, and gives it back. `deadline` is in `time.monotonic()` seconds and includes the wait for
        a free slot. Refusals that may pass are tried again `attempts` times; a server that cannot be reached is tried
        until the deadline, so that calls live through its restart. Raises JudgeError.
        """
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": [{"role": "user", "content": list(content)}],
            "temperature": temperature,
            "max_tokens": max_tokens,
            **(self.endpoint.extra or {}),
        }
        if seed is not None:
            body["seed"] = seed
        if top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        if schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        call = _Call(body, time.monotonic())
        try:
            async with asyncio.timeout(deadline - call.started):
                if has_slot:
                    answer = await self._ask_until_answered(call)
                else:
                    async with self._slot():
                        answer = await self._ask_until_answered(call)
        except asyncio.CancelledError:  # also by who waits for the answer, and keeps to the same deadline
            if time.monotonic() >= deadline - _EARLY_S:
                self._note_silence(call)
            raise
        except TimeoutError as error:
            self._note_silence(call)
            waited = time.monotonic() - call.started
            last = f"; before that: {self.health.last}" if self.health.unreached else ""
            raise JudgeError(ErrorCode.TIMEOUT, f"no answer within {waited:.1f} s, the deadline{last}") from error
        self._metrics.call_seconds.observe(answer.seconds)
        self._metrics.completion_tokens.inc(answer.completion_tokens)
        return answer

    def forward(
        self, method: str, path: str, content: bytes | None, timeout_s: float
    ) -> AbstractAsyncContextManager[httpx.Response]:
        """Somebody else's request, as it is, with this client's key and outside of its pool. The body is not read yet.

        Entering it raises httpx.HTTPError.
        """
        headers = {} if content is None else _JSON
        return self._http.stream(method, path, content=content, headers=headers, timeout=timeout_s)

    async def aclose(self) -> None:
        await self._http.aclose()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        await self.slots.acquire(self.slots.ticket())
        try:
            yield
        finally:
            self.slots.release()

    async def _ask_until_answered(self, call: _Call) -> Answer:
        self._metrics.in_flight.inc()
        try:
            return await self._try_until_answered(call)
        finally:
            self._metrics.in_flight.dec()

    async def _try_until_answered(self, call: _Call) -> Answer:
        tries = refusals = 0
        while True:
            tries += 1
            pause = random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (tries - 1))
            content = to_json(call.body)
            call.sent = time.monotonic()
            try:
                response = await self._http.post(CHAT, content=content, headers=_JSON)
            except httpx.DecodingError as error:
                raise JudgeError(ErrorCode.UPSTREAM, f"the judge's answer cannot be read: {error}") from error
            except httpx.TransportError as error:
                if isinstance(error, httpx.ReadTimeout):  # it took the call and hangs: not for ever
                    refusals += 1
                self.note_error(error)
                if refusals >= self.endpoint.attempts:
                    silence = f"the judge at {self._url} does not answer ({_reason(error)})"
                    raise JudgeError(ErrorCode.TIMEOUT, f"no answer in {refusals} tries: {silence}") from error
            else:
                answer = self._read(response, tries, time.monotonic() - call.started)
                if isinstance(answer, Answer):
                    return answer
                refusals += 1
                if refusals >= self.endpoint.attempts:
                    raise answer
                pause = max(pause, _retry_after_s(response))
            call.sent = None
            self._metrics.retries.inc()
            await asyncio.sleep(pause)

    def _read(self, response: httpx.Response, tries: int, seconds: float) -> Answer | JudgeError:
        """The answer, or why to ask again. Raises JudgeError where asking again would not help."""
        status = response.status_code
        if status != 200:
            refusal = JudgeError(ErrorCode.UPSTREAM, f"the judge answered {status}: {_message(response)}")
            self.note_status(status)
            if status not in _RETRIED:
                raise refusal
            return refusal
        try:
            answer = read_completion(response.json(), tries, seconds)
        except BrokenOffError as error:
            self.health.note_broken("an answer that it broke off")
            return JudgeError(ErrorCode.UPSTREAM, str(error))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            self.health.note_contact()
            raise JudgeError(ErrorCode.UPSTREAM, "the judge's answer is not a chat completion") from error
        self.health.note_answer()
        return answer

    async def _probe(self) -> None:
        """Ask for one token. A refusal of this question tells nothing of the engine: the next real call has to show it."""
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": [{"role": "user", "content": "Are you there?"}],
            "temperature": 0,
            **(self.endpoint.extra or {}),
            "max_tokens": 1,
        }
        try:
            response = await self._http.post(CHAT, content=to_json(body), headers=_JSON, timeout=_PROBE_S)
            if response.status_code == 200:
                read_completion(response.json())
            if _breaks(response.status_code):
                self.note_status(response.status_code)
            else:
                self.health.note_answer()
        except httpx.TransportError as error:
            self.note_error(error)
        except BrokenOffError:
            self.health.note_broken("an answer that it broke off")
        except (httpx.DecodingError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            self.health.note_broken("an answer that is no chat completion")

    def _note_silence(self, call: _Call) -> None:
        """The call's deadline passed. When the server had it, and was silent, that is a call it did not answer."""
        if call.sent is not None and time.monotonic() - call.sent >= _SILENCE_S:
            self.health.note_broken(SILENCE)

    def note_error(self, error: httpx.TransportError) -> None:
        """A server that takes a call and is silent is up; that it lists its models does not mean that it works."""
        if isinstance(error, httpx.ReadTimeout):
            self.health.note_broken(SILENCE)
        else:
            self.health.note_unreached(_reason(error))

    def note_status(self, status: int) -> None:
        """What the status of a call that was not answered tells of the server."""
        if _breaks(status):
            self.health.note_broken(f"HTTP {status}")
        else:
            self.health.note_contact()


def _breaks(status: int) -> bool:
    """Whether a call failed for what would fail every call."""
    return status >= 500 or status in _OF_EVERY_CALL


def _reason(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def _message(response: httpx.Response) -> str:
    """The server's own words, shortened."""
    try:
        tree = response.json()
        error = tree.get("error", tree)
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        text = response.text
    return str(text)[:300]


def _retry_after_s(response: httpx.Response) -> float:
    given = response.headers.get("retry-after", "")
    return min(30.0, float(given)) if given.isdecimal() else 0.0
