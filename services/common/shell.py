"""What surrounds every request: its id, its token, its log line, its metrics, and the last catch for bugs."""

from __future__ import annotations

import logging
import re
import time
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.auth import OPEN_ROUTES, PASSWORD_PATHS
from services.common.errors import ApiError, ErrorResponse
from services.common.service import Service

logger = logging.getLogger("services.access")
request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)

_SAFE_ID = re.compile(r"[\x21-\x7e]{1,256}")
_QUIET = frozenset({"/health", "/ready", "/metrics"})
_KNOWN = frozenset({*_QUIET, "/v1/score", "/v1/info", "/docs", "/openapi.json", "/", "/compute"})


class Shell:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"], scope["arrived"] = request_id, started
        request_id_var.set(request_id)
        status = 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                chosen = str(scope["request_id"])
                MutableHeaders(scope=message)["X-Request-ID"] = chosen if _SAFE_ID.fullmatch(chosen) else request_id
            await send(message)

        try:
            is_open = (scope["method"], scope["path"]) in OPEN_ROUTES
            if self._service.tokens and not is_open and not self._is_known(headers, scope):
                refusal = ApiError(
                    401,
                    "send `Authorization: Bearer <token>` with a token of this service",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await ErrorResponse(refusal)(scope, receive, send_marked)
            else:
                await self._app(scope, receive, send_marked)
        except Exception:
            logger.exception("bug while answering")
            if status:
                raise
            await ErrorResponse(
                ApiError(500, f"a bug; its trace is in the log under request id {scope['request_id']}")
            )(scope, receive, send_marked)
        finally:
            self._record(scope, status, time.monotonic() - started)

    def _is_known(self, headers: Headers, scope: Scope) -> bool:
        authorization = headers.get("authorization")
        scope["caller"] = self._service.tokens.name_of(
            authorization.encode("latin-1") if authorization else None,
            as_password=self._service.settings.legacy and scope["path"] in PASSWORD_PATHS,
        )
        return scope["caller"] is not None

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in _KNOWN else "other"
        self._service.metrics.requests.labels(path, str(status or 499)).inc()
        if path == "/v1/score":
            self._service.metrics.request_seconds.observe(seconds)
        level = logging.DEBUG if path in _QUIET and status < 500 else logging.INFO
        extra = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status or 499,
            "ms": round(seconds * 1e3, 2),
        }
        for name in ("caller", "items", "failed_items", "error_code"):
            if scope.get(name) is not None:
                extra[name] = scope[name]
        logger.log(level, "request", extra=extra | {"request_id": scope["request_id"]})
