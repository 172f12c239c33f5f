"""Reads a request's body within its limits, as it streams in."""

from __future__ import annotations

import asyncio

from fastapi import Request

from services.common.errors import ApiError
from services.common.memory import Hold


async def read_body(request: Request, limit: int, timeout_s: float, hold: Hold) -> bytearray:
    """The body, at most `limit` bytes, refused as early as it is known to be larger.

    Raises ApiError 408, 413, 415 (compressed) or 429, and ClientDisconnect.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise ApiError(
            415, f"content encoding {encoding} is not served: send the body as it is", field="content-encoding"
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise ApiError(413, f"a body of {declared} bytes; the limit is {limit} bytes: send fewer items in one request")
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise ApiError(
                        413, f"a body of more than {limit} bytes, which is the limit: send fewer items in one request"
                    )
                hold.take(len(chunk))
                body += chunk
    except TimeoutError as error:
        raise ApiError(408, f"the body did not arrive within {timeout_s:g} s") from error
    request.scope["body_read"], request.scope["body_bytes"] = True, len(body)
    return body
