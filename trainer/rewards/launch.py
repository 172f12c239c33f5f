"""Reward services on this machine: started as child processes, watched, and stopped whatever happens."""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from machine.own import is_code
from trainer.config import URL_VARIABLES, RewardsConfig, ServiceConfig
from trainer.config.service_names import flags_of_own
from trainer.processes.children import Child, environment
from trainer.rewards.answers import RewardServiceError

MAX_RESTARTS = 5
_POLL_S = 0.1
_LISTENING = re.compile(rb"listening on (http://\S+)")
_PROGRESS_S = 10.0
_HEAD_START_S = 10.0  # for services that run a user's file, before the others are started


class LocalServices:
    """Starts every service of `config` that has a `module` and no `urls`; a context manager, or `start` and `stop`; `begin` and
    `wait_ready` where something else can be done meanwhile.

    Each runs as `python -m services.<module>` on 127.0.0.1 and a free port of its own choice, its output in
    `log_dir/<name>.log`. With `config.restart` a service that dies comes back on the same port, up to MAX_RESTARTS
    times. None outlives this process, not even one that is killed with SIGKILL.

    Args:
        notify: takes a line about each start, restart and death; by default they go to stderr.
    """

    def __init__(self, config: RewardsConfig, log_dir: Path, notify: Callable[[str], None] | None = None) -> None:
        self._config = config
        self._log_dir = Path(log_dir)
        self._notify = notify or _say
        self._services: dict[str, _LocalService] = {}
        self._began_at = 0.0
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def urls(self) -> dict[str, tuple[str, ...]]:
        """The started services' addresses, by name."""
        return {name: (service.url,) for name, service in self._services.items()}

    def start(self) -> None:
        """`begin`, and `wait_ready`. Raises RewardServiceError, as these do."""
        self.begin()
        self.wait_ready()

    def begin(self) -> None:
        """Start all; they become ready while the caller does something else.

        Those that run a file of the user's come first: whether the file runs at all is known before anything else is started.

        Raises:
            RewardServiceError: such a file cannot be run; the message has the end of its log. None is left running.
        """
        self._log_dir.mkdir(parents=True, exist_ok=True)
        atexit.register(self.stop)
        with self._stopped_on_error():
            self._began_at = time.monotonic()
            local = {n: each for n, each in self._config.services.items() if each.module is not None and not each.urls}
            own = {name: each for name, each in local.items() if _runs_a_users_file(each)}
            for each in (own, {name: service for name, service in local.items() if name not in own}):
                for name, service in each.items():
                    self._services[name] = _LocalService(name, service, self._log_dir / f"{name}.log")
                    self._services[name].start(port=None)
                self._wait_listening(own)

    def wait_ready(self, notify: Callable[[str], None] | None = None) -> None:
        """Wait until every `/ready` answers; from then on look after them.

        Args:
            notify: takes lines from now on.

        Raises:
            RewardServiceError: one died or was not ready in time; the message has the end of its log. None is left
                running.
        """
        self._notify = notify or self._notify
        with self._stopped_on_error():
            self._wait_ready()
        if self._config.restart and self._services:
            self._watcher = threading.Thread(target=self._watch, name="service-watcher", daemon=True)
            self._watcher.start()

    def stop(self) -> None:
        """Stop all, in parallel. May be called more than once."""
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
        for service in self._services.values():
            service.terminate()
        for service in self._services.values():
            service.wait()
        atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @contextmanager
    def _stopped_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def _wait_listening(self, names: Collection[str]) -> None:
        """Until these have an address, which a service says once the user's file has been run, or the time for it is over."""
        while any(not self._services[name].listens() for name in names):
            for name in names:
                self._services[name].check_alive()
            if time.monotonic() - self._began_at > _HEAD_START_S:
                return
            time.sleep(_POLL_S)

    def _wait_ready(self) -> None:
        limit_s = self._config.ready_timeout_s
        waiting = dict(self._services)
        next_report_s = _PROGRESS_S
        if waiting:
            self._notify(f"waiting for {', '.join(waiting)}")
        with httpx.Client(trust_env=False, timeout=5.0) as http:
            while waiting:
                passed_s = time.monotonic() - self._began_at
                for name, service in list(waiting.items()):
                    service.check_alive()
                    if service.ready(http):
                        self._notify(f"{name} is ready at {service.url} after {passed_s:.1f} s")
                        del waiting[name]
                if waiting and passed_s > limit_s:
                    name, service = next(iter(waiting.items()))
                    raise RewardServiceError(
                        f"service {name} was not ready within rewards.ready_timeout_s = {limit_s:g} s; raise it if the "
                        f"service only needs longer. Its log ({service.log_path}):\n{service.tail()}"
                    )
                if waiting and passed_s > next_report_s:
                    next_report_s = passed_s + _PROGRESS_S
                    self._notify(f"still waiting for {', '.join(waiting)} ({passed_s:.0f} of {limit_s:g} s)")
                if waiting:
                    time.sleep(_POLL_S)

    def _watch(self) -> None:
        while not self._stopping.wait(_POLL_S):
            for name, service in self._services.items():
                try:
                    self._look_after(name, service)
                except (
                    Exception
                ) as error:  # a full disk, no process ids: said, tried again, and the others looked after
                    service.given_up = service.restarts >= MAX_RESTARTS
                    self._notify(f"{name} cannot be started again ({type(error).__name__}: {error})")

    def _look_after(self, name: str, service: _LocalService) -> None:
        if service.given_up or service.alive():
            return
        service.reap()
        if service.restarts == MAX_RESTARTS:
            service.given_up = True
            self._notify(f"{name} died {MAX_RESTARTS + 1} times and stays down; its log:\n{service.tail()}")
            return
        self._notify(f"{name} died; starting it again on {service.url}. Its last words:\n{service.tail(3)}")
        # A service that dies at once must not use up its restarts in a second.
        if self._stopping.wait(0.5 * 2**service.restarts):
            return
        service.restarts += 1
        service.start(port=int(service.url.rpartition(":")[2]))


class _LocalService(Child):
    """One service's process and its log."""

    def __init__(self, name: str, config: ServiceConfig, log_path: Path) -> None:
        super().__init__(log_path, nice=config.nice)
        self.restarts = 0
        self.given_up = False
        self.url = ""
        self._name = name
        self._config = config

    def start(self, port: int | None) -> None:
        """Start the process; `port` None lets it take a free one, which it prints."""
        module, own = flags_of_own(self._config.module or "")
        flags: dict[str, str | int | float | bool] = {"host": "127.0.0.1", "port": 0, **own, **self._config.args}
        if port is not None:
            flags["port"] = port
        command = [sys.executable, "-m", f"services.{module}", *to_flags(flags)]
        self.spawn(command, environment())

    def check_alive(self) -> None:
        """Raises RewardServiceError with the end of its log when it has ended."""
        if not self.alive():
            raise RewardServiceError(
                f"service {self._name} ended while it started; its log ({self.log_path}):\n{self.tail()}"
            )

    def listens(self) -> bool:
        """Whether it has said its address."""
        if not self.url and (found := _LISTENING.search(self.written())):
            self.url = found[1].decode()
        return bool(self.url)

    def ready(self, http: httpx.Client) -> bool:
        if not self.listens():
            return False
        try:
            return http.get(self.url + "/ready").status_code == 200
        except httpx.HTTPError:
            return False


def _runs_a_users_file(service: ServiceConfig) -> bool:
    return is_code(service.module or "") or "functions" in service.args


def to_flags(args: Mapping[str, str | int | float | bool]) -> list[str]:
    """Command-line flags of the service kit: `max_items: 4` is `--max-items=4`, `legacy: true` is `--legacy`."""
    flags = []
    for key, value in args.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags.append(f"--{name}={value}")
    return flags


def resolve_urls(
    config: RewardsConfig, launched: Mapping[str, Sequence[str]] | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, tuple[str, ...]]:
    """Every service's base URLs: the config's, else those of a started service, else an environment variable's.

    A variable may hold several addresses with commas between them. Trailing slashes are cut off.

    Raises:
        RewardServiceError: a service has none, or an address is not http(s)://host[:port][/path].
    """
    environ = os.environ if environ is None else environ
    launched = launched or {}
    resolved = {}
    for name, service in config.services.items():
        variable = URL_VARIABLES.get(name, "")
        from_environment = [url for url in environ.get(variable, "").split(",") if url.strip()]
        urls = service.urls or launched.get(name) or from_environment
        if not urls:
            hint = f", or the variable {variable}" if variable else ""
            raise RewardServiceError(
                f"service {name} has no address: set rewards.services.{name}.urls{hint}, or launch: local with a module"
            )
        resolved[name] = tuple(_base_url(name, url) for url in urls)
    return resolved


def _base_url(name: str, text: str) -> str:
    text = text.strip()
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise RewardServiceError(f"service {name}: {text!r} is not a URL: {error}") from error
    if url.userinfo:
        raise RewardServiceError(
            f"service {name}: the address at {url.host} carries a password, which would end up in logs; put a token "
            f"into a file and name it in rewards.services.{name}.token_file"
        )
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise RewardServiceError(f"service {name}: {text!r} is no address; write it like http://127.0.0.1:18082")
    return text.rstrip("/")


def _say(line: str) -> None:
    print(f"[rewards] {line}", file=sys.stderr, flush=True)
