"""What the name or address of a host says of where it is, and which names a server of ours answers to.

A web page may give its own host name the address 127.0.0.1 (DNS rebinding). To the browser a server there is then the
page's own, so that the page may read its answers. The browser still says which name it asked for, in `Host`, and which
page asks, in `Origin`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether `host` is only reachable from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Stranger:
    """Why a request is not answered: the header that says so, and the name in it, empty where there is none."""

    field: Literal["host", "origin"]
    name: str


class HostNames:
    """The names of one server. All names are right where it listens to other machines and none is listed.

    Args:
        host: what it listens on.
        allowed: further names that it is known by.
    """

    def __init__(self, host: str, allowed: Iterable[str] = ()) -> None:
        self._names = frozenset(_bare(name) for name in allowed if name.strip())
        self._checks = bool(self._names) or is_loopback(host)

    def stranger(self, host: str | None, origin: str | None) -> Stranger | None:
        """What is wrong with a request's `Host` (none of the names) or `Origin` (a page of another host); None: nothing.

        Clients that are no browsers send no `Origin`; one that sends no `Host` either is not a browser of this century.
        """
        if not self._checks:
            return None
        name = "localhost" if host is None else _host_of(f"//{host}")
        if not self._is_ours(name) and not _is_address(name):  # no name server gives an address another meaning
            return Stranger("host", name)
        page = name if origin is None else _host_of(origin)
        if page != name and not self._is_ours(page):
            return Stranger("origin", page)
        return None

    def _is_ours(self, name: str) -> bool:
        return name in self._names or name.endswith(".localhost") or is_loopback(name)


def _host_of(url: str) -> str:
    """The host of `//host[:port]` or of an origin, as `_bare` gives it; empty where there is none."""
    try:
        return _bare(urlsplit(url).hostname or "")
    except ValueError:
        return ""


def _bare(name: str) -> str:
    return name.strip().lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
