"""Who is answered: the host names that the server is known by, tokens, and the headers that keep a page to itself."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.config import ConfigError
from wire.hosts import HostNames

MIN_TOKEN_LENGTH = 16
_MAX_QUERY = 16 * 1024  # bytes
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_OPEN = ("/enter", "/assets/")  # what the page that asks for a token needs


class Guard:
    """What stands before every request.

    Args:
        host: what the server listens on.
        tokens: one of them is asked for, where there are any, as `Authorization: Bearer` or once in the page's form.
    """

    def __init__(self, host: str, tokens: Sequence[str] = ()) -> None:
        self._names = HostNames(host)
        self._digests = [_digest(token) for token in tokens]
        # A page's cookie proves a token without holding it, and ends with the server.
        self._key = secrets.token_bytes(32)
        self.stopping = False  # streams end with the server

    def around(self, app: ASGIApp, ask: Callable[[int], Response]) -> ASGIApp:
        """The application behind the guard; `ask` makes the page that asks for a token."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            refusal = self._refusal(scope, ask)
            await (refusal or app)(scope, receive, _marked(send))

        return guarded

    def enter(self, token: str, headers: Headers) -> Response | None:
        """The way in for who has typed a token, with the headers of the request that brought it; None where it is none."""
        if (digest := self._known(token)) is None:
            return None
        answer = RedirectResponse("/", status_code=303)
        answer.set_cookie(cookie_of(headers), self._proof(digest), httponly=True, samesite="strict")
        return answer

    def _refusal(self, scope: Scope, ask: Callable[[int], Response]) -> Response | None:
        headers = Headers(scope=scope)
        stranger = self._names.stranger(headers.get("host"), headers.get("origin"))
        if stranger is not None and stranger.field == "host":
            return PlainTextResponse("this server is not known by that name: ask for localhost or its address\n", 421)
        if stranger is not None:
            return PlainTextResponse("pages of other hosts may not use this server\n", 403)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("GET is all that is answered\n", 405)
        if len(scope["query_string"]) > _MAX_QUERY:
            return PlainTextResponse(f"a query has at most {_MAX_QUERY} bytes\n", 414)
        if self._digests and not scope["path"].startswith(_OPEN) and not self._is_known(headers):
            return ask(401)
        return None

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._known(token.strip()) is not None:
            return True
        try:
            given = SimpleCookie(headers.get("cookie", "")).get(cookie_of(headers))
        except CookieError:
            return False
        proofs = [self._proof(digest) for digest in self._digests]
        # Every one is compared, whatever matched.
        return given is not None and any(
            [hmac.compare_digest(given.value.encode(), proof.encode()) for proof in proofs]
        )

    def _known(self, token: str) -> bytes | None:
        given, found = _digest(token), None
        for digest in self._digests:
            if hmac.compare_digest(digest, given):
                found = digest
        return found

    def _proof(self, digest: bytes) -> str:
        return hmac.new(self._key, digest, hashlib.sha256).hexdigest()


def cookie_of(headers: Headers) -> str:
    """Name of the cookie of the address that was asked for: a browser keeps those of a host together, whatever their ports, and
    several pages may be open, of one machine or by tunnels of several. The port is the one that the browser sees."""
    port = headers.get("host", "").rpartition(":")[2]
    return f"rewards_{port}" if port.isascii() and port.isdecimal() else "rewards"


def read_tokens(path: Path | None, flag: str = "--token-file") -> list[str]:
    """One token a line; empty lines and `#` comments are passed over. Raises ConfigError, which names the flag: none, or one
    that is too short."""
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag}: {path} cannot be read: {error}") from error
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise ConfigError(f"{flag}: {path} holds no token; put one on a line (`openssl rand -hex 32`)")
    for token in tokens:
        if len(token) < MIN_TOKEN_LENGTH:
            raise ConfigError(
                f"{flag}: a token in {path} has {len(token)} characters, and needs at least {MIN_TOKEN_LENGTH} (make one "
                f"with `openssl rand -hex 32`)"
            )
    return tokens


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _marked(send: Send) -> Send:
    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("Content-Security-Policy", _POLICY)
            headers.setdefault("Cache-Control", "no-store")
            headers["Referrer-Policy"] = "same-origin"
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Cross-Origin-Resource-Policy"] = "same-origin"
        await send(message)

    return send_marked
