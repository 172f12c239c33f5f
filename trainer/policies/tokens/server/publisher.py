"""Gives servers the current version of the weights, and again whenever one has lost it. Only the main rank does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from trainer.policies.tokens.server.client import RefusedError, Server, ServerError
from trainer.policies.tokens.server.launch import LaunchedServers
from trainer.policies.tokens.server.versions import Pushed, Transfer, Version

LOOK_S = 1.0


class Publisher:
    """Pushes versions, and keeps every server at the current one: a thread looks after servers that died, were started again
    by whomever, or could not take a push, and pushes before they may draw.

    Args:
        launched: servers that this run started; None where they were given.
        notify: takes a line about what happened.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        transfer: Transfer,
        launched: LaunchedServers | None,
        notify: Callable[[str], None],
    ) -> None:
        self._servers, self._transfer, self._launched, self._notify = tuple(servers), transfer, launched, notify
        self._locks = {server.url: threading.Lock() for server in servers}  # one push at a time for each
        self._said: dict[str, str] = {}  # the last reason by server, so that it is said once
        self._current: Version | None = None
        self._before: Version | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="rollout-servers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def publish(self, version: Version) -> Pushed:
        """Push to all servers at once. One that fails is left to the thread, which tries again until it succeeds."""
        self._before, self._current = self._current, version
        pushed = Pushed()
        with ThreadPoolExecutor(max(len(self._servers), 1), "push") as threads:
            for server, outcome in zip(self._servers, threads.map(self._push, self._servers), strict=True):
                if isinstance(outcome, float):
                    pushed.worst[server.url] = outcome
                else:
                    pushed.failed[server.url] = outcome
        return pushed

    def _push(self, server: Server) -> float | str:
        """The probe's largest difference, or why the push failed."""
        with self._locks[server.url]:
            version = self._current  # inside: no older version may follow a newer one
            assert version is not None
            try:
                worst = self._transfer.push(server, version, after=self._before)
            except (ServerError, RefusedError) as error:
                self._say(
                    server,
                    f"weights {version.label} did not reach {server.url}, which is left out until they do: {error}",
                )
                return str(error)
        if self._launched is not None:
            self._launched.has_weights(server.url)
        if self._said.pop(server.url, None) is not None:
            self._notify(f"{server.url} has the weights {version.label} now")
        return worst

    def _say(self, server: Server, sentence: str) -> None:
        if self._said.get(server.url) != sentence:
            self._said[server.url] = sentence
            self._notify(sentence)

    def _keep(self) -> None:
        while not self._stopping.wait(LOOK_S):
            try:
                if self._launched is not None:
                    self._launched.look_after()
                for server in self._servers:
                    self._catch_up(server)
            except (
                Exception
            ) as error:  # a full disk, no process ids: said and tried again; the thread must not end of it
                self._notify(f"rollout servers cannot be looked after ({type(error).__name__}: {error})")

    def _catch_up(self, server: Server) -> None:
        """Push where the server answers and does not hold the current version."""
        version = self._current
        if version is None or self._locks[server.url].locked():
            return
        try:
            if self._transfer.holds(server, version):
                return
        except (ServerError, RefusedError):
            return  # it is down or starting; who draws from it says so
        if not self._stopping.is_set():
            self._push(server)
