"""Bearer tokens. Compared in constant time, kept out of logs, process lists and representations."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

OPEN_ROUTES = frozenset({("GET", "/"), ("GET", "/health"), ("GET", "/ready")})  # the page asks for the token itself
PASSWORD_PATHS = frozenset({"/", "/compute"})  # clients of the legacy protocols have only a URL to put a token in
MIN_TOKEN_LENGTH = 16


class Tokens:
    """The tokens that may use a service, by name; none means that everyone may."""

    def __init__(self, tokens: Mapping[str, str] | None = None) -> None:
        self._digests = {name: _digest(token.encode()) for name, token in (tokens or {}).items()}

    @classmethod
    def from_file(cls, path: Path | None) -> Tokens:
        """Read one token per line, `token` or `name:token`; empty lines and `#` comments are skipped.

        Raises ValueError when the file cannot be read, holds no token, or a token is too short or has white space.
        """
        if path is None:
            return cls()
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"token file {path} cannot be read: {error}") from error
        tokens: dict[str, str] = {}
        for number, raw in enumerate(lines, 1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            head, colon, tail = line.partition(":")
            name, token = (head.strip(), tail.strip()) if colon else (f"line{number}", line)
            if len(token) < MIN_TOKEN_LENGTH or len(token.split()) != 1:
                raise ValueError(
                    f"token file {path}, line {number}: a token needs at least {MIN_TOKEN_LENGTH} characters and no "
                    f"white space; this one has {len(token)} (make one with `openssl rand -hex 32`)"
                )
            if name in tokens:
                raise ValueError(f"token file {path}, line {number}: the name {name!r} appears twice")
            tokens[name] = token
        if not tokens:
            raise ValueError(f"token file {path} holds no token: put one on a line (`openssl rand -hex 32`)")
        return cls(tokens)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __repr__(self) -> str:
        return f"Tokens({', '.join(self._digests)})"

    def name_of(self, authorization: bytes | None, *, as_password: bool = False) -> str | None:
        """The name of the token in an `Authorization` header, or None. Every token is compared, whatever matched.

        With `as_password` it may also be the password of basic authentication; the user name is ignored.
        """
        scheme, _, given = (authorization or b"").partition(b" ")
        if as_password and scheme.lower() == b"basic":
            scheme, given = b"bearer", _password(given)
        digest = _digest(given.strip())
        found = None
        for name, known in self._digests.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found if scheme.lower() == b"bearer" else None


def _password(credentials: bytes) -> bytes:
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
