"""Which hosts images may be fetched from, and which addresses their names may stand for."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORTS = {"https": 443, "http": 80}
# Addresses of these carry an IPv4 address inside, which might be a private one.
_TUNNELS = tuple(map(ipaddress.ip_network, ("64:ff9b::/32", "2002::/16", "2001::/32")))


class UrlRefused(ValueError):
    """The URL, or the address its host stands for, is not on the list; the message says why."""


@dataclass(frozen=True)
class Target:
    """Where to ask for an image. `path` includes the query."""

    scheme: str
    host: str
    port: int
    path: str


class ImageHosts:
    """The allow-list of `--image-url-hosts`: entries `[http://]host[:port][=network]`, separated by commas.

    Without a scheme, https. Without a network, the host's name must stand for public addresses only; `=10.0.0.0/8`
    says that it stands for addresses of that network. An address may itself be a host, and then stands for itself.
    Raises ValueError for a wrong entry.
    """

    def __init__(self, text: str) -> None:
        self._networks: dict[tuple[str, str, int], Network | None] = {}
        for entry in filter(None, (part.strip() for part in text.split(","))):
            scheme, host, port, network = _entry(entry)
            self._networks[scheme, host, port] = network
        if not self._networks:
            raise ValueError("--image-url-hosts names no host: give some, such as images.example.com, or leave it out")

    def target(self, url: str) -> Target:
        """Take a URL apart once, so that what was checked is what is asked for. Raises UrlRefused."""
        if not url.isascii() or not url.isprintable() or any(sign in url for sign in " \\"):
            raise UrlRefused("a URL has printable ASCII characters only, without spaces and backslashes")
        parts = _split(url)
        scheme, host, port = _origin(parts)
        if (scheme, host, port) not in self._networks:
            raise UrlRefused(f"{scheme}://{host}:{port} is not among the hosts of --image-url-hosts")
        query = f"?{parts.query}" if parts.query else ""
        return Target(scheme, host, port, (parts.path or "/") + query)

    def check_address(self, host: str, port: int, address: Address) -> None:
        """Raise UrlRefused unless the host, which is on the list, may stand for the address."""
        inner = getattr(address, "ipv4_mapped", None) or address
        for (_, known, known_port), network in self._networks.items():
            if (known, known_port) == (host, port) and _is_allowed(inner, network):
                return
        raise UrlRefused(f"{host} stands for {address}, which is not public; list it as {host}=NETWORK if it should")


def _is_allowed(address: Address, network: Network | None) -> bool:
    if network is not None:
        return address in network
    tunnelled = any(address in tunnel for tunnel in _TUNNELS)
    return address.is_global and not address.is_multicast and not tunnelled


def _entry(entry: str) -> tuple[str, str, int, Network | None]:
    place, given, network = entry.partition("=")
    try:
        parts = _split(place if "://" in place else f"https://{place}")
        scheme, host, port = _origin(parts)
        if parts.path not in ("", "/") or parts.query:
            raise ValueError("a host has no path")
        if given:
            return scheme, host, port, ipaddress.ip_network(network)
    except ValueError as error:
        raise ValueError(
            f"--image-url-hosts: {entry!r} is not [http://]host[:port][=network], such as images.example.com or "
            f"http://minio:9000=10.0.0.0/8: {error}"
        ) from error
    try:
        return scheme, host, port, ipaddress.ip_network(host)
    except ValueError:
        return scheme, host, port, None


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise UrlRefused(f"not a URL: {error}") from error


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    """Scheme, host and port. Raises UrlRefused."""
    if parts.scheme not in _PORTS:
        raise UrlRefused("a URL begins with https:// (or http://, where the list says so)")
    if "@" in parts.netloc:
        raise UrlRefused("a URL with a user or password is not fetched")
    try:
        port = parts.port or _PORTS[parts.scheme]
    except ValueError as error:
        raise UrlRefused(f"not a URL: {error}") from error
    if not parts.hostname:
        raise UrlRefused("the URL names no host")
    return parts.scheme, parts.hostname.rstrip("."), port
