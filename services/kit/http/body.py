"""Reads a request's body within its limits, as it streams in."""

from __future__ import annotations

import asyncio

from fastapi import Request
from starlette.requests import ClientDisconnect

from services.kit.errors import ApiError
from services.kit.guard.memory import Hold
from services.kit.http.pour import LEAST_POURED

_MOST_CHUNKS = 4096  # of a body that drips in byte by byte, the chunks would weigh more than the bytes


async def read_body(request: Request, limit: int, timeout_s: float, hold: Hold) -> bytes | bytearray:
    """The body, at most `limit` bytes, refused as early as it is known to be larger.

    Raises ApiError 408, 413, 415 (compressed) or 429, and ClientDisconnect.
    """
    encoding = request.headers.get("content-encoding", "")
    if any(each.strip().lower() not in ("", "identity") for each in encoding.split(",")):
        raise ApiError(
            415, f"content encoding {encoding} is not served: send the body as it is", field="content-encoding"
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise ApiError(413, f"a body of {declared} bytes; the limit is {limit} bytes: send fewer items in one request")
    try:
        async with asyncio.timeout(timeout_s):
            poured = await _poured(request, declared, hold)
            body = await _streamed(request, limit, hold) if poured is None else poured
    except TimeoutError as error:
        raise ApiError(408, f"the body did not arrive within {timeout_s:g} s") from error
    request.scope["body_read"], request.scope["body_bytes"] = True, len(body)
    return body


async def _poured(request: Request, declared: str, hold: Hold) -> bytearray | None:
    """A large body of known length, where the server can pour it."""
    pour = request.scope.get("state", {}).get("pour")
    if pour is None or not declared.isdecimal() or int(declared) < LEAST_POURED:
        return None
    pouring = pour(int(declared), hold.take)
    try:
        return None if pouring is None else await pouring
    except ConnectionResetError as error:
        raise ClientDisconnect from error


async def _streamed(request: Request, limit: int, hold: Hold) -> bytes:
    chunks: list[bytes] = []  # joined at the end: a buffer that grows with each is copied again and again
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise ApiError(
                413, f"a body of more than {limit} bytes, which is the limit: send fewer items in one request"
            )
        hold.take(len(chunk))
        chunks.append(chunk)
        if len(chunks) > _MOST_CHUNKS:
            chunks = [b"".join(chunks)]
    return b"".join(chunks)
