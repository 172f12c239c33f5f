"""The judge's own routes, for clients that talk to the bare server: `/v1/chat/completions` and `/v1/models`.

Nothing of a caller's headers reaches the judge and of the judge's only the content type reaches the caller: callers show
a token of this service, the judge is given its own key. Messages may hold images and name none: the judge's server
would fetch whatever address they name, from inside its network.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator

import httpx
from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.kit.errors import ApiError, overloaded
from services.kit.guard.memory import Hold
from services.kit.http.body import read_body
from services.kit.http.intake import read_json
from services.kit.http.service import Service
from services.kit.judge.answers import BrokenOffError
from services.kit.judge.client import CHAT, MODELS, SILENCE, JudgeClient
from services.kit.judge.endings import EventWatch, check_ending
from wire.base64_text import decode_base64, first_bytes
from wire.containers import TooManyPiecesError, media_type_of, read_container

_EVENTS = "text/event-stream"


class PassThrough:
    """Passes requests on. It has slots of its own, so that its callers and the rewards do not starve one another."""

    def __init__(self, client: JudgeClient, limit: int) -> None:
        self._client = client
        self._limit = limit
        self._running = 0

    def add_routes(self, app: FastAPI) -> None:
        """The two routes. They are not in the service's OpenAPI document: their contract is OpenAI's."""
        service: Service = app.state.service

        @app.get(MODELS, include_in_schema=False)
        async def models() -> Response:
            return _Passed(self, service, MODELS)

        @app.post(CHAT, include_in_schema=False)
        async def complete() -> Response:
            return _Passed(self, service, CHAT)

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Room for one request. Raises ApiError 429 when there is none."""
        if self._running >= self._limit:
            raise overloaded(f"{self._running} calls are being passed through, which is the limit", 1)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def relay(self, method: str, path: str, body: bytes | None, seconds: float, send: Send) -> None:
        """Send the judge's answer as it comes. Raises ApiError when there is none, or none that is whole."""
        started = False
        health = self._client.health

        async def start(upstream: httpx.Response, more: bytes, done: bool) -> None:
            nonlocal started
            if not started:
                kind = upstream.headers.get("content-type", "application/json").encode("latin-1")
                headers = [(b"content-type", kind)]
                headers += [(b"content-length", str(len(more)).encode())] if done else []
                await send({"type": "http.response.start", "status": upstream.status_code, "headers": headers})
                started = True
            await send({"type": "http.response.body", "body": more, "more_body": not done})

        try:
            async with asyncio.timeout(seconds), self._client.forward(method, path, body, seconds) as upstream:
                if path == CHAT and upstream.status_code >= 500:  # a refusal may be of what this caller asks for
                    self._client.note_status(upstream.status_code)
                if upstream.headers.get("content-type", "").startswith(_EVENTS):
                    watch = EventWatch()
                    async for chunk in upstream.aiter_bytes():
                        if lines := watch.take(chunk):
                            await start(upstream, lines, False)
                    await start(upstream, watch.end(), True)
                    if watch.error is not None:
                        health.note_broken(watch.error)
                    else:
                        health.note_answer()
                else:
                    whole = await upstream.aread()
                    if path == CHAT and upstream.status_code == 200:
                        await asyncio.to_thread(check_ending, whole)
                        health.note_answer()
                    await start(upstream, whole, True)
        except (TimeoutError, httpx.HTTPError, BrokenOffError) as error:
            self._note(error, silent=path == CHAT and not started)
            failure = _failure(error, seconds)
            if not started:
                raise failure from error
            event = json.dumps({"error": {"code": failure.code, "message": failure.message}})  # too late for a status
            await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode()})

    def _note(self, error: Exception, *, silent: bool) -> None:
        """What a call that failed tells of the server. `silent`: a question of which nothing was answered yet."""
        if isinstance(error, BrokenOffError):
            self._client.health.note_broken("an answer that it broke off")
        elif isinstance(error, httpx.TransportError):
            self._client.note_error(error)
        elif isinstance(error, TimeoutError) and silent:
            self._client.health.note_broken(SILENCE)


class _Passed(Response):
    """A request passed on and its answer, from reading the body to the last byte of a stream."""

    def __init__(self, owner: PassThrough, service: Service, path: str) -> None:
        super().__init__()
        self._owner = owner
        self._service = service
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings, hold = self._service.settings, self._service.hold()
        if self._service.draining:
            raise ApiError(503, f"{self._service.name} is shutting down")
        try:
            with self._owner.slot():
                body = None
                if scope["method"] == "POST":
                    request = Request(scope, receive)
                    body = bytes(await read_body(request, settings.max_body_bytes, settings.body_timeout_s, hold))
                    await asyncio.to_thread(check_urls, body, settings.max_image_pixels, hold)
                relay = self._owner.relay(scope["method"], self._path, body, settings.request_timeout_s, send)
                await _unless_gone(asyncio.ensure_future(relay), receive)
        finally:
            hold.release()


def check_urls(body: bytes, max_pixels: int, hold: Hold) -> None:
    """Look at every `url`, `image_url`, `video_url`, ... of the messages. `hold` is charged with what the body becomes.

    Raises ApiError: 400 not JSON, 413 or 429 for want of memory, 422 for a URL that is no data URL, or an image that
    would cost the judge more than an image may cost here.
    """
    tree = read_json(body, hold)
    left: list[object] = [tree.get("messages")] if isinstance(tree, dict) else []
    while left:
        value = left.pop()
        if isinstance(value, list):
            left.extend(value)
        elif isinstance(value, dict):
            left.extend(value.values())
            for name, given in value.items():
                if not name.endswith("url") or not isinstance(given, str):
                    continue
                if not given.startswith("data:"):
                    raise ApiError(
                        422,
                        f"`{name}` is {given[:80]!r}: pictures are not fetched here, send their bytes as a data URL",
                        field="messages",
                    )
                if (problem := _too_costly(given, max_pixels)) is not None:
                    raise ApiError(422, f"`{name}` holds what the judge is not given: {problem}", field="messages")


def _too_costly(url: str, max_pixels: int) -> str | None:
    """Why an image is too much work to decode. What is no image, or a damaged one, is for the judge to refuse."""
    text = url.partition(",")[2]
    media_type = media_type_of(first_bytes(text, 16))
    if media_type is None:
        return None
    try:
        found = read_container(decode_base64(text), media_type)
    except TooManyPiecesError as error:
        return str(error)
    except ValueError:
        return None
    if found.width * found.height <= max_pixels:
        return None
    return f"{found.width}x{found.height} pixels; the limit is {max_pixels}"


def _failure(error: Exception, seconds: float) -> ApiError:
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return ApiError(504, f"the judge did not finish within {seconds:g} s")
    if isinstance(error, BrokenOffError):
        return ApiError(503, f"{error}: try again", headers={"Retry-After": "1"})
    return ApiError(503, f"the judge does not answer ({type(error).__name__}): try again", headers={"Retry-After": "1"})


async def _unless_gone(task: asyncio.Task[None], receive: Receive) -> None:
    """Wait for the task; cancel it, and with it the judge's work, when the caller leaves: nobody reads an answer then."""
    gone = asyncio.ensure_future(_until_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait({task, gone})


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
