"""The host names that a service answers to. So no web page can read a service on the machine of whoever opens the page."""

from __future__ import annotations

from services.kit.errors import ApiError
from services.kit.settings import ServiceSettings
from wire.hosts import HostNames

PROBES = frozenset({"/health", "/ready"})  # asked for by whatever watches over the service, under any name


class Hosts:
    """The names of one service. All names are right where it listens to other machines and none is listed."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._names = HostNames(settings.host, (settings.allowed_hosts or "").split(","))

    def check(self, path: str, host: str | None, origin: str | None) -> None:
        """Raise ApiError: 421 for a `Host` that is none of the names, 403 for a page (`Origin`) of another host."""
        stranger = None if path in PROBES else self._names.stranger(host, origin)
        if stranger is None:
            return
        if stranger.field == "host":
            raise ApiError(
                421,
                f"this service is not known as {stranger.name[:100]!r}: ask for localhost or its address, or start it with "
                f"--allowed-hosts and that name",
                field="host",
            )
        raise ApiError(
            403,
            f"pages of {stranger.name[:100] or origin!r} may not use this service: start it with --allowed-hosts and that "
            f"name, if they should",
            field="origin",
        )
