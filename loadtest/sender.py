"""Sends the load with Locust's HTTP client and statistics, which run on gevent's greenlets.

Importing Locust replaces the blocking calls of the standard library in the whole process, so it is imported only once
a test is about to be made, in a process that does nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from loadtest.measurements import Exchange, Measurements
from loadtest.options import Options, UsageError
from loadtest.workload import Body
from wire.schema import ErrorBody, ScoreResponse, ServiceInfo

if TYPE_CHECKING:
    import ssl

_PATH = "/v1/score"
_GRACE_S = 1.0  # how long after the end a request that waited for its turn may still leave
_LIVE_S = 0.5

OnProgress = Callable[[float, str], None]  # seconds since the start, and a short text


class Sender:
    """One service under load. Raises UsageError when Locust is missing or the service cannot be tested."""

    def __init__(self, options: Options, token: str | None) -> None:
        try:
            from locust.contrib.fasthttp import FastHttpSession
            from locust.env import Environment
            from locust.event import EventHook
        except ImportError as error:
            raise UsageError(
                f"the load test needs Locust ({error}): pip install 'rewards-as-services[loadtest]', in a checkout: pip install "
                "-r requirements/dev.txt"
            ) from error
        self._options = options
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._untrusted_note, context = _tls_of(options)
        self._environment = Environment(user_classes=[], host=options.url)
        self._environment.create_local_runner()  # it listens to the event that fills the statistics
        self._session: Any = FastHttpSession(
            options.url,
            EventHook(),  # type: ignore[no-untyped-call]  # nobody listens: its times start when a request leaves
            None,
            insecure=False,
            ssl_context_factory=lambda: context,
            concurrency=options.max_outstanding,
            connection_timeout=min(10.0, options.timeout),
            network_timeout=options.timeout,
            max_retries=0,
            max_redirects=0,
        )
        self._exchanges: list[Exchange] = []
        self._open: dict[int, tuple[float, float, int]] = {}  # due, sent and items of what is not answered yet

    def info(self) -> ServiceInfo:
        """What the service serves. Raises UsageError when it does not answer, is not ready, or asks for a token."""
        ready = self._session.get("/ready", headers=self._headers)
        if ready.status_code == 0:
            reason = str(ready.error)
            raise UsageError(f"{self._options.url} cannot be reached: {reason}{self._untrusted_note(reason)}")
        if ready.status_code != 200:
            raise UsageError(f"{self._options.url} is not ready: {_error_of(ready.content).message}")
        answer = self._session.get("/v1/info", headers=self._headers)
        if answer.status_code == 401:
            raise UsageError(f"{self._options.url} wants a token: name its file with --token-file")
        try:
            return ServiceInfo.model_validate_json(answer.content or b"")
        except ValidationError as error:
            raise UsageError(f"{self._options.url} is no reward service: /v1/info said {answer.status_code}") from error

    def run(self, times: Iterable[float], make_body: Callable[[], Body], on_progress: OnProgress) -> Measurements:
        """Send a body at each of `times` (seconds, rising). Ctrl-C ends the test and keeps what was measured."""
        import gevent
        from gevent.pool import Pool

        pool = Pool(self._options.max_outstanding)
        last_s = self._options.duration + _GRACE_S
        not_sent: list[int] = []
        start = time.perf_counter()
        telling = gevent.spawn(self._tell, start, on_progress)
        try:
            for number, due in enumerate(times):
                body = make_body()
                gevent.sleep(max(0.0, start + due - time.perf_counter()))
                while pool.full() and time.perf_counter() < start + last_s:
                    pool.wait_available(0.1)
                if pool.full():
                    not_sent.append(body.items)
                else:
                    pool.spawn(self._exchange, number, start, due, body)
            pool.join(self._options.timeout + _GRACE_S)
        except KeyboardInterrupt:
            print("interrupted; what follows is what was measured until now", file=sys.stderr)
        end = time.perf_counter() - start
        telling.kill()
        pool.kill()
        self._session.client.close()
        for due, sent, items in self._open.values():
            self._exchanges.append(Exchange(due, sent, end, items, False, {"client_timeout": items}))
        return Measurements(self._exchanges, self._options.rate, end, len(not_sent), sum(not_sent))

    def _exchange(self, number: int, start: float, due: float, body: Body) -> None:
        sent = time.perf_counter() - start
        self._open[number] = (due, sent, body.items)
        headers = {**self._headers, "Content-Type": body.content_type, "Accept-Encoding": "identity"}
        answer = self._session.post(_PATH, data=body.content, headers=headers)
        done = time.perf_counter() - start
        seen = _judge(answer.status_code, answer.content, getattr(answer, "error", None), body.items)
        exchange = Exchange(due, sent, done, body.items, seen.answered, seen.failed, seen.cached, *seen.service_ms)
        self._exchanges.append(exchange)
        del self._open[number]
        self._environment.events.request.fire(  # type: ignore[no-untyped-call]
            request_type="POST",
            name=_PATH,
            response_time=exchange.latency_ms,
            response_length=len(answer.content or b""),
            exception=None if seen.answered else RuntimeError(", ".join(seen.failed)),
            context={},
        )

    def _tell(self, start: float, on_progress: OnProgress) -> None:
        import gevent

        total = self._environment.stats.total
        while True:
            gevent.sleep(_LIVE_S)
            seconds = time.perf_counter() - start
            p95 = total.get_current_response_time_percentile(0.95) or 0
            text = f"{total.num_requests / seconds:.1f}/s, p95 {p95:.0f} ms, {len(self._open)} waiting"
            on_progress(seconds, text + f", {total.num_failures} failed" * bool(total.num_failures))


def _tls_of(options: Options) -> tuple[Callable[[str], str], ssl.SSLContext]:
    """What to say of a certificate that is not trusted, and what connections trust. Raises UsageError.

    Imported here, because Locust has to replace the standard library's TLS before anybody uses it.
    """
    from wire.tls import tls_context, trusts_nobody, untrusted_note

    secure = options.url.startswith("https:") or options.ca_file is not None
    try:
        return untrusted_note, tls_context(options.ca_file) if secure else trusts_nobody()
    except ValueError as error:
        raise UsageError(str(error)) from error


@dataclass(frozen=True)
class _Seen:
    answered: bool
    failed: Mapping[str, int]
    cached: int = 0
    service_ms: tuple[float | None, float | None] = (None, None)


def _judge(status: int, content: bytes | None, error: BaseException | None, items: int) -> _Seen:
    """What an answer means for the items of its request."""
    if status == 0:
        return _Seen(False, {"no_answer" if "timed out" not in str(error) else "client_timeout": items})
    if status != 200:
        return _Seen(False, {f"{status} {_error_of(content).code}": items})
    try:
        results = ScoreResponse.model_validate_json(content or b"").results
    except ValidationError:
        return _Seen(False, {"bad_answer": items})
    if len(results) != items:
        return _Seen(False, {"bad_answer": items})
    fresh = [each for each in results if not each.cached]
    return _Seen(
        True,
        Counter(each.error.code.value for each in results if each.error is not None),
        len(results) - len(fresh),
        (max((each.queue_ms for each in fresh), default=None), max((each.compute_ms for each in fresh), default=None)),
    )


def _error_of(content: bytes | None) -> Any:
    try:
        return ErrorBody.model_validate(json.loads(content or b"")).error
    except ValueError:
        return ErrorBody.model_validate({"error": {"code": "unknown", "message": "no reason given"}}).error
