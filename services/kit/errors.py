"""The one place where errors become HTTP answers. Every answer that is not 2xx carries an `ErrorBody`."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from wire.schema import ErrorBody, ImageRef, RequestError, ScoreItem, ScoreRequest

_UNKNOWN = "extra_forbidden"  # pydantic's name for a field that there is not
_LONGEST_NAME = 64  # characters of a wrong value that are repeated
LINGER_S = 2.0  # how long a refused body is read and thrown away, so that the client gets to read the answer

_MODELS: dict[str, type[BaseModel]] = {"items": ScoreItem, "images": ImageRef, "source_images": ImageRef}

CODES = {  # of a refusal, by its status
    400: "malformed",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    413: "too_large",
    415: "unsupported_media_type",
    421: "misdirected",
    422: "invalid",
    429: "overloaded",
    500: "internal",
    503: "not_ready",
    504: "timeout",
}


# Of each status: when it is given, and a message as it may read.
_ABOUT = {
    400: (
        "Not JSON, or not multipart with a `request` part.",
        "the body is not JSON: expected value at line 1 column 1",
    ),
    401: (
        "No bearer token, or a wrong one. Only where the service was started with --token-file.",
        "send `Authorization: Bearer <token>` with a token of this service",
    ),
    403: (
        "Asked by a web page of another host.",
        "pages of example.com may not use this service: start it with --allowed-hosts and that name, if they should",
    ),
    404: ("No such path or reward.", "no reward 'strict2' here; ocr serves: multi, strict"),
    405: ("The path exists, the method does not.", "GET is not allowed on /v1/score"),
    408: ("The body did not arrive in time.", "the body did not arrive within 60 s"),
    413: (
        "Above a limit; the message has both numbers.",
        "2000 items; the limit is 1024: split the request",
    ),
    415: (
        "Neither application/json nor multipart/form-data.",
        "content type text/plain is not served: send application/json or multipart/form-data",
    ),
    421: (
        "Asked for under a host name that is not the service's.",
        "this service is not known as 'rewards.example.com': ask for localhost or its address, or start it with "
        "--allowed-hosts and that name",
    ),
    422: (
        "A field is wrong; `field` names it, such as items.3.images.0.data.",
        "no such field; did you mean `images`?",
    ),
    429: (
        "The queue is full or the client above its limit; see `Retry-After` (seconds).",
        "4096 items are in flight and 8 more would exceed the limit of 4096; try again in 1 s",
    ),
    500: ("A bug.", "a bug; its trace is in the log under request id 3f2a"),
    503: ("Loading or shutting down.", "ocr is loading; poll /ready"),
    504: (
        "The deadline passed before any item had a result.",
        "none of 8 items had a result within 2000 ms",
    ),
}
_FIELDS = {413: "items", 415: "content-type", 421: "host", 403: "origin", 422: "items.0.image", 404: "reward"}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Of these statuses, or of all: what OpenAPI says of them, each with an example."""
    return {
        status: {
            "model": ErrorBody,
            "description": _ABOUT[status][0],
            "content": {"application/json": {"example": _example(status)}},
        }
        for status in statuses or _ABOUT
    }


def _example(status: int) -> dict[str, Any]:
    error = RequestError(code=CODES[status], message=_ABOUT[status][1], field=_FIELDS.get(status))
    return ErrorBody(error=error).model_dump(exclude_none=True)


class ApiError(Exception):
    """An answer that is not 2xx: its status, message, and the field at fault. `code` is the status's own if not given."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code or CODES.get(status, "error")
        self.message = message
        self.field = field
        self.headers = dict(headers or {})


def overloaded(message: str, retry_after_s: int) -> ApiError:
    return ApiError(429, f"{message}; try again in {retry_after_s} s", headers={"Retry-After": str(retry_after_s)})


def invalid(error: ValidationError) -> ApiError:
    """The first problem of a request's validation, with its field's path; says how many more there are.

    A field that there is not comes first: it is often the misspelt one of a field that is said to be missing.
    """
    problems = error.errors(include_url=False, include_context=False)
    first = next((each for each in problems if each["type"] == _UNKNOWN), problems[0])
    message = first["msg"].removeprefix("Value error, ") + _given(first)
    if first["type"] == _UNKNOWN:
        message = _did_you_mean(first)
    if len(problems) > 1:
        message += f" (and {len(problems) - 1} more)"
    return ApiError(422, message, field=".".join(str(part)[:_LONGEST_NAME] for part in first["loc"]) or None)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The one of `known` that `name` was probably meant to be."""
    by_folded = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(name[:_LONGEST_NAME].casefold(), by_folded, n=1)
    return by_folded[near[0]] if near else None


def _did_you_mean(problem: ErrorDetails) -> str:
    *above, name = problem["loc"]
    inside = next((str(part) for part in reversed(above) if isinstance(part, str)), "")
    known = list(_MODELS.get(inside, ScoreRequest).model_fields)
    near = nearest(str(name), known)
    return f"no such field; did you mean `{near}`?" if near else f"no such field; there are: {', '.join(known)}"


def _given(problem: ErrorDetails) -> str:
    """What was sent, where it is a number, a length or a name. Prompts and images are not repeated."""
    value = problem["input"]
    if problem["type"] == "string_too_long":
        return f"; got {len(value)}"
    if isinstance(value, int | float) or (problem["type"] == "literal_error" and len(str(value)) <= _LONGEST_NAME):
        return f"; got {value!r}"
    return ""


class ErrorResponse(Response):
    """An `ErrorBody`. Reads on for a while what the client is still sending, then closes the connection.

    Closing at once would reset the connection and the client, busy sending, might never see why.
    """

    media_type = "application/json"

    def __init__(self, error: ApiError) -> None:
        super().__init__(self.body_of(error), status_code=error.status, headers=error.headers)
        self.error_code = error.code

    def body_of(self, error: ApiError) -> str | bytes:
        """The answer's body; other protocols have their own."""
        body = ErrorBody(error=RequestError(code=error.code, message=error.message, field=error.field))
        return body.model_dump_json(exclude_none=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["error_code"] = self.error_code
        unread = not scope.get("body_read", False) and _has_body(scope)
        if unread:
            self.raw_headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": unread})
        if unread:
            await _discard(receive)
            await send({"type": "http.response.body", "body": b""})


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


async def _discard(receive: Receive) -> None:
    until = time.monotonic() + LINGER_S
    try:
        async with asyncio.timeout(LINGER_S):
            while time.monotonic() < until:  # the timeout alone would not end a stream that is always ready
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _near_path(app: FastAPI, path: str) -> str:
    near = nearest(path, [route.path for route in app.routes if isinstance(route, Route)])
    return f"; did you mean {near}?" if near else ""


def install_error_map(app: FastAPI) -> None:
    """Turn every exception a route may raise into an `ErrorBody`."""

    async def on_api_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return ErrorResponse(error)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {
            404: f"no such path: {request.url.path}{_near_path(app, request.url.path)}",
            405: f"{request.method} is not allowed on {request.url.path}",
        }.get(error.status_code, str(error.detail))
        headers = dict(error.headers or {})
        if "GET" in headers.get("Allow", ""):
            headers["Allow"] += ", HEAD"  # which is answered as GET wherever that is
        return ErrorResponse(ApiError(error.status_code, message, headers=headers))

    async def on_client_gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; it makes the log line right

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(ClientDisconnect, on_client_gone)
