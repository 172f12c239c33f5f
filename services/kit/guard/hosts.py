"""The host names that a service answers to. So no web page can read a service on the machine of whoever opens the page.

A page may give its own host name the address 127.0.0.1 (DNS rebinding). To the browser a service there is then the
page's own server, so that the page may read its answers. The browser still says which name it asked for, in `Host`, and
which page asks, in `Origin`.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from services.kit.errors import ApiError
from services.kit.settings import ServiceSettings
from wire.hosts import is_loopback

PROBES = frozenset({"/health", "/ready"})  # asked for by whatever watches over the service, under any name


class Hosts:
    """The names of one service. All names are right where it listens to other machines and none is listed."""

    def __init__(self, settings: ServiceSettings) -> None:
        names = (settings.allowed_hosts or "").split(",")
        self._names = frozenset(_bare(name) for name in names if name.strip())
        self._checks = bool(self._names) or is_loopback(settings.host)

    def check(self, path: str, host: str | None, origin: str | None) -> None:
        """Raise ApiError: 421 for a `Host` that is none of the names, 403 for a page (`Origin`) of another host.

        Clients that are no browsers send no `Origin`; one that sends no `Host` either is not a browser of this century.
        """
        if not self._checks or path in PROBES:
            return
        name = "localhost" if host is None else _host_of(f"//{host}")
        if not self._is_ours(name) and not _is_address(name):  # no name server gives an address another meaning
            raise ApiError(
                421,
                f"this service is not known as {name[:100]!r}: ask for localhost or its address, or start it with "
                f"--allowed-hosts and that name",
                field="host",
            )
        page = name if origin is None else _host_of(origin)
        if page != name and not self._is_ours(page):
            raise ApiError(
                403,
                f"pages of {page[:100] or origin!r} may not use this service: start it with --allowed-hosts and that "
                f"name, if they should",
                field="origin",
            )

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
