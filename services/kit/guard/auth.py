"""Bearer tokens. Compared in constant time, kept out of logs, process lists and representations."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from services.kit.guard.limits import Allowance

ASSETS = ("/docs/swagger-ui.js", "/docs/swagger-ui.css")  # of the API's page: Swagger UI as it was published
# The two pages hold nothing that is not published, and ask for the token themselves.
OPEN_ROUTES = frozenset(("GET", path) for path in ("/", "/docs", *ASSETS, "/health", "/ready"))
# Clients of the legacy protocols, and many of a judge's own routes, have only a URL to put a token in.
LEGACY_PATHS = frozenset({"/", "/compute"})
PASSED_PATHS = frozenset({"/v1/chat/completions", "/v1/models"})
MIN_TOKEN_LENGTH = 16
LIMITS = tuple(limit.name for limit in fields(Allowance))


@dataclass(frozen=True)
class Client:
    """Who may use a service: a name for the logs, a token, and how much of it."""

    name: str
    token: str = field(repr=False)
    allowance: Allowance


class Tokens:
    """The tokens that may use a service, by client name; none means that everyone may."""

    def __init__(self, clients: Sequence[Client] = ()) -> None:
        self._digests = {client.name: _digest(client.token.encode()) for client in clients}
        self.allowances = {client.name: client.allowance for client in clients}

    @classmethod
    def from_file(cls, path: Path | None) -> Tokens:
        """Read one client per line: `token` or `name:token`, then its limits if it has any.

        For example `lab:TOKEN requests_per_minute=60 items_per_minute=6000`. Empty lines and `#` comments are skipped.
        Raises ValueError when the file cannot be read, holds no token, or a line is wrong.
        """
        if path is None:
            return cls()
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"token file {path} cannot be read: {error}") from error
        clients: dict[str, Client] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.strip().startswith("#"):
                continue
            try:
                client = _client(line, f"line{number}")
            except ValueError as error:
                raise ValueError(f"token file {path}, line {number}: {error}") from error
            if client.name in clients:
                raise ValueError(f"token file {path}, line {number}: the name {client.name!r} appears twice")
            clients[client.name] = client
        if not clients:
            raise ValueError(f"token file {path} holds no token: put one on a line (`openssl rand -hex 32`)")
        return cls(tuple(clients.values()))

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


def _client(line: str, default_name: str) -> Client:
    """One line of a token file. Raises ValueError."""
    name, colon, rest = line.partition(":")
    token, *limits = (rest if colon else line).split() or [""]
    if len(token) < MIN_TOKEN_LENGTH:
        raise ValueError(
            f"a token needs at least {MIN_TOKEN_LENGTH} characters and no white space; this one has {len(token)} "
            f"(make one with `openssl rand -hex 32`)"
        )
    given: dict[str, int] = {}
    for limit in limits:
        key, _, value = limit.partition("=")
        if key not in LIMITS or key in given or not value.isdecimal() or int(value) < 1:
            raise ValueError(
                f"after the token, limits such as {LIMITS[0]}=60 may follow ({', '.join(LIMITS)}), each once"
            )
        given[key] = int(value)
    return Client(name.strip() if colon else default_name, token, Allowance(**given))


def _password(credentials: bytes) -> bytes:
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
