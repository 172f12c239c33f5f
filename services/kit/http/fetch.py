"""Images that a request names by URL. Off unless `--image-url-hosts` lists where they may come from.

What a stranger may make a server fetch is a way into the server's network (server-side request forgery). So: only
listed hosts, only public addresses unless the list says otherwise, checked on the very address that is connected to;
no redirects, no proxies, no credentials; limits on bytes and time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import httpcore

from services.kit.errors import ApiError
from services.kit.guard.image_hosts import ImageHosts, Target, UrlRefused
from services.kit.guard.memory import Hold
from services.kit.http.intake import Parsed, free_names
from services.kit.scorer import Failure
from wire.schema import ErrorCode, ImageRef, ScoreItem
from wire.tls import tls_context, untrusted_note

_AT_ONCE = 16  # downloads of all requests together
_HEADERS = [(b"Accept", b"image/*"), (b"Accept-Encoding", b"identity"), (b"Connection", b"close")]


class ImageFetcher:
    """Downloads images from listed hosts. For one event loop."""

    def __init__(self, hosts: ImageHosts, *, max_bytes: int, timeout_s: float, ca_file: Path | None = None) -> None:
        """Raises ValueError, with the remedy, when the certificates that are named cannot be used."""
        self._hosts = hosts
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._tls = tls_context(ca_file)

    async def fill(self, parsed: Parsed, deadline: float, hold: Hold) -> Parsed:
        """The request with each URL's image as a part. An item whose image cannot be had is in `failed`.

        `deadline` is in `time.monotonic()` seconds. Raises ApiError 413 or 429 when the images need too much memory.
        """
        items = parsed.request.items
        urls = list(dict.fromkeys(ref.url for item in items for ref in item.refs if ref.url is not None))
        if not urls:
            return parsed
        fetched = dict(
            zip(urls, await asyncio.gather(*(self._fetch(url, deadline, hold) for url in urls)), strict=True)
        )
        for outcome in fetched.values():
            if isinstance(outcome, ApiError):
                raise outcome
        names = dict(zip(urls, free_names("url", parsed.parts), strict=False))
        parts = {names[url]: memoryview(got) for url, got in fetched.items() if isinstance(got, bytearray)}
        failed = {
            place: failure for place, item in enumerate(items) if (failure := _failure(item, fetched)) is not None
        }
        request = parsed.request.model_copy(update={"items": [_with_parts(item, names) for item in items]})
        return replace(parsed, request=request, parts=parsed.parts | parts, failed=failed | dict(parsed.failed))

    async def _fetch(self, url: str, deadline: float, hold: Hold) -> bytearray | Failure | ApiError:
        """One image's bytes. Failures are returned, so that the other downloads go on."""
        try:
            target = self._hosts.target(url)
            async with asyncio.timeout(deadline - time.monotonic()), self._slots:
                return await self._download_in_time(target, hold)
        except ApiError as error:
            return error
        except UrlRefused as error:
            return Failure(ErrorCode.BAD_INPUT, f"image URL refused: {error}")
        except TimeoutError:
            return Failure(ErrorCode.TIMEOUT, f"the deadline passed before the image had arrived: {url}")
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            reason = f"{error or type(error).__name__}"
            note = untrusted_note(reason)
            return Failure(ErrorCode.UPSTREAM, f"the image could not be fetched: {reason}{note}: {url}")

    async def _download_in_time(self, target: Target, hold: Hold) -> bytearray | Failure:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._download(target, hold)
        except TimeoutError:
            return Failure(ErrorCode.UPSTREAM, f"the image did not arrive within {self._timeout_s:g} s")

    async def _download(self, target: Target, hold: Hold) -> bytearray | Failure:
        """Each download has a connection of its own: the host is looked up and its address checked every time."""
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        headers = [(b"Host", _host_header(target)), *_HEADERS]
        pool = httpcore.AsyncConnectionPool(self._tls, network_backend=_CheckedBackend(self._hosts))
        async with pool, pool.stream("GET", url, headers=headers) as answer:
            if answer.status != 200:
                code = ErrorCode.UPSTREAM if answer.status >= 500 else ErrorCode.BAD_INPUT
                note = " (redirects are not followed)" if 300 <= answer.status < 400 else ""
                return Failure(code, f"the image's host answered {answer.status}{note}")
            body = bytearray()
            async for chunk in answer.aiter_stream():
                if len(body) + len(chunk) > self._max_bytes:
                    return Failure(ErrorCode.BAD_INPUT, f"the image has more than {self._max_bytes} bytes, the limit")
                hold.take(len(chunk))
                body += chunk
            return body


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Looks up a host, checks all its addresses, and connects to one of these very addresses."""

    def __init__(self, hosts: ImageHosts) -> None:
        self._hosts = hosts
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        for address in addresses:
            self._hosts.check_address(host, port, ipaddress.ip_address(address.partition("%")[0]))
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


def _host_header(target: Target) -> bytes:
    host = f"[{target.host}]" if ":" in target.host else target.host
    return f"{host}:{target.port}".encode("ascii")


def _failure(item: ScoreItem, fetched: dict[str, bytearray | Failure | ApiError]) -> Failure | None:
    outcomes = (fetched[ref.url] for ref in item.refs if ref.url is not None)
    return next((outcome for outcome in outcomes if isinstance(outcome, Failure)), None)


def _with_parts(item: ScoreItem, names: dict[str, str]) -> ScoreItem:
    def as_part(ref: ImageRef) -> ImageRef:
        return ref if ref.url is None else ref.model_copy(update={"url": None, "part": names[ref.url]})

    return item.with_refs(as_part)
