"""What surrounds every request: its id, its token, its log line, its metrics, and the last catch for bugs."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.kit.errors import ApiError, ErrorResponse
from services.kit.guard.auth import ASSETS, LEGACY_PATHS, OPEN_ROUTES, PASSED_PATHS
from services.kit.guard.hosts import PROBES, Hosts
from services.kit.http.service import Service

logger = logging.getLogger("services.access")
request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)

_SAFE_ID = re.compile(r"[\x21-\x7e]{1,256}")
_QUIET = frozenset({*PROBES, "/metrics"})
_SCORING = frozenset({"/v1/score", "/", "/compute"})
_KNOWN = frozenset({*_QUIET, *_SCORING, "/v1/info", "/v1/sample", "/docs", "/openapi.json", *ASSETS})
# Characters in the logs. A request line may have 64 KiB, and needs no token to be logged.
_LONGEST_METHOD, _LONGEST_PATH = 32, 256
_AUDITED = ("reward", "prompts_sha256", "body_bytes")  # beside what the access log has


class Shell:
    """ASGI middleware, the outermost."""

    def __init__(
        self, app: ASGIApp, service: Service, errors_of: Mapping[tuple[str, str], type[ErrorResponse]] | None = None
    ) -> None:
        """`errors_of`: how errors are written for a method and path whose clients read another form than ours."""
        self._app = app
        self._service = service
        self._errors_of = errors_of or {}
        self._hosts = Hosts(service.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        asked = scope["method"]
        if asked == "HEAD":  # the server goes by the scope that it gave, and sends no body
            scope = {**scope, "method": "GET"}
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
            elif asked == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            self._admit(headers, scope)
            await self._app(scope, receive, send_marked)
        except ApiError as refusal:
            await self._refusal(scope, refusal)(scope, receive, send_marked)
        except Exception:
            logger.exception("bug while answering")
            if status:
                raise
            bug = ApiError(500, f"a bug; its trace is in the log under request id {scope['request_id']}")
            await self._refusal(scope, bug)(scope, receive, send_marked)
        finally:
            self._record(scope, asked, status, time.monotonic() - started)

    def _refusal(self, scope: Scope, error: ApiError) -> ErrorResponse:
        """The answer in the protocol of who asked."""
        return self._errors_of.get((scope["method"], scope["path"]), ErrorResponse)(error)

    def _admit(self, headers: Headers, scope: Scope) -> None:
        """Find out who asks, and whether the request is one.

        Raises ApiError: 400 for a body that ends where each sees fit, 401 for a stranger, 403 for a page and 421 for a
        host name that is not ours, 429 for a client above its limit.
        """
        if "transfer-encoding" in headers and ("content-length" in headers or scope.get("http_version") == "1.0"):
            raise ApiError(
                400,
                "`Transfer-Encoding` beside `Content-Length`, or in HTTP/1.0: two readers may see two ends of such a "
                "body; send one of the two",
                field="transfer-encoding",
            )
        self._hosts.check(scope["path"], headers.get("host"), headers.get("origin"))
        if (scope["method"], scope["path"]) in OPEN_ROUTES:
            return
        if self._service.tokens:
            self._identify(headers, scope)
        on_admitted = scope.get("state", {}).get("on_admitted")
        if on_admitted is not None:
            on_admitted()

    def _identify(self, headers: Headers, scope: Scope) -> None:
        path, authorization = scope["path"], headers.get("authorization")
        scope["caller"] = self._service.tokens.name_of(
            authorization.encode("latin-1") if authorization else None,
            as_password=path in PASSED_PATHS or (self._service.settings.legacy and path in LEGACY_PATHS),
        )
        if scope["caller"] is None:
            raise ApiError(
                401,
                "send `Authorization: Bearer <token>` with a token of this service",
                headers={"WWW-Authenticate": "Bearer"},
            )
        self._service.rate_limits.take_request(scope["caller"])

    def _record(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in _KNOWN else "other"
        self._service.metrics.requests.labels(path, str(status or 499)).inc()
        if scope["method"] == "POST" and path in _SCORING:
            self._service.metrics.request_seconds.observe(seconds)
        quiet = path in _QUIET and status < 400
        extra = {
            "method": method[:_LONGEST_METHOD],
            "path": scope["path"][:_LONGEST_PATH],
            "status": status or 499,
            "ms": round(seconds * 1e3, 2),
        }
        for name in ("caller", "items", "failed_items", "error_code"):
            if scope.get(name) is not None:
                extra[name] = scope[name]
        extra["request_id"] = scope["request_id"]
        logger.log(logging.DEBUG if quiet else logging.INFO, "request", extra=extra)
        is_open = (scope["method"], scope["path"]) in OPEN_ROUTES
        if self._service.audit is not None and not quiet and not is_open:
            more = {name: scope[name] for name in _AUDITED if scope.get(name) is not None}
            self._service.audit.write(extra | more | {"address": (scope.get("client") or ("unknown",))[0]})
