"""One service behind its routes: takes a request's bytes, answers with one result per item."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from fastapi import Request
from starlette.requests import ClientDisconnect

from rewards import __version__
from services.kit.dispatch.base import Job, Outcome, QueueFull, StartError
from services.kit.dispatch.cache import ScoreCache
from services.kit.dispatch.caller import Caller, NotAwaited
from services.kit.dispatch.decoding import Decoded, Decoding
from services.kit.dispatch.described import Described
from services.kit.dispatch.jobs import check_groups, make_plan
from services.kit.dispatch.loops import Loop
from services.kit.errors import ApiError, overloaded
from services.kit.guard.audit import AuditLog, prompts_sha256
from services.kit.guard.auth import Tokens
from services.kit.guard.image_hosts import ImageHosts
from services.kit.guard.limits import RateLimits
from services.kit.guard.memory import Hold, MemoryBudget
from services.kit.http.body import read_body
from services.kit.http.dispatchers import make_parts
from services.kit.http.fetch import ImageFetcher
from services.kit.http.intake import Parsed, parse_request
from services.kit.metrics import Metrics
from services.kit.samples import Sample
from services.kit.scorer import AsyncScorer, Failure, Scorer
from services.kit.settings import ServiceSettings
from wire.images import ImageLimits
from wire.schema import ErrorCode, ItemResult, ScoreRequest, ScoreResponse, ScorerInfo, ServiceInfo

logger = logging.getLogger("services.service")

_DECODERS = 4
_WATCH_S = 0.5
_LOOK_S = 0.05  # how often an impatient request looks whether there is still somebody to wait for
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Body = bytes | bytearray
Parse = Callable[[Body, str, ServiceSettings, Hold], Parsed]  # body, content type, ..., charged with its memory


class Service:
    """Everything a service is, apart from HTTP routing."""

    def __init__(self, scorer: Scorer | AsyncScorer, name: str, settings: ServiceSettings) -> None:
        self.name = name
        self.settings = settings
        self.metrics = Metrics()
        self.metrics.started.set(time.time())
        self.metrics.build.labels(name, __version__, settings.role).set(1)
        for collector in getattr(scorer, "collectors", ()):
            self.metrics.registry.register(collector)
        self.tokens = Tokens.from_file(settings.token_file)
        self.rate_limits = RateLimits(self.tokens.allowances)
        self.audit = AuditLog(settings.audit_log, name, self.metrics.audit_failures) if settings.audit_log else None
        self.rewards: dict[str, ScorerInfo] = dict(scorer.rewards)
        self.default_reward = next(iter(self.rewards))
        self._described = Described(scorer)
        self.image_only = frozenset(self._described.image_only)
        self.legacy_rows = self._described.legacy_rows
        self.draining = False
        self.failure: str | None = None
        self._ready = False
        self._watching = Loop("watching the scorer", self._watch, pause_s=_WATCH_S)
        self._cache = ScoreCache(settings.cache_entries)
        self._limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
        self._fetcher = _make_fetcher(settings)
        self._threads = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="read")  # so that no body waits for images
        self._parts, self._dispatcher = make_parts(scorer, name, settings, self._cache, self.metrics, self.hold)
        self._memory = MemoryBudget(settings.max_memory_bytes, self.metrics, self._dispatcher.retry_after_s)

    @property
    def ready(self) -> bool:
        """Loaded, warmed up, able to score, and not shutting down."""
        return self._ready and not self.draining and self._lost is None

    @property
    def in_flight(self) -> int:
        """Items accepted and not yet answered."""
        return sum(part.in_flight for part in self._parts)

    @property
    def _lost(self) -> str | None:
        return next((part.lost for part in self._parts if part.lost is not None), self._watching.failure)

    async def start(self) -> None:
        """Load and warm up; the service is ready afterwards. Raises StartError."""
        started = time.monotonic()
        try:
            for part in self._parts:
                await part.start()
        except StartError as error:
            self.failure = str(error)
            raise
        except Exception as error:
            logger.exception("bug while starting")
            self.failure = f"starting raised {type(error).__name__}: {error}"
            raise StartError(self.failure) from error
        self._ready = True
        self.metrics.ready.set(1)
        self._watching.start()
        logger.info("ready", extra={"seconds": round(time.monotonic() - started, 3)})

    async def stop(self) -> None:
        """Stop at once; call `drain` before to let queued work finish."""
        self.drain()
        await self._watching.end()
        for part in reversed(self._parts):
            await part.stop()
        if self.audit is not None:
            self.audit.close()
        for threads in (self._readers, self._threads):
            threads.shutdown(wait=False, cancel_futures=True)

    def hold(self) -> Hold:
        """A share of the memory for one request; empty at first, to be released by who took it."""
        return self._memory.hold()

    def drain(self) -> None:
        """Take no new work; what is in flight goes on."""
        self.draining = True
        self.metrics.ready.set(0)
        for part in self._parts:
            part.drain()

    def check_ready(self) -> None:
        """Raise ApiError 503 with the reason when no request can be taken."""
        if self.draining:
            raise ApiError(503, f"{self.name} is shutting down")
        if self.failure is not None:
            raise ApiError(503, f"{self.name} did not start: {self.failure}")
        if not self._ready:
            raise ApiError(503, f"{self.name} is loading; poll /ready", headers={"Retry-After": "1"})
        if self._lost is not None:
            raise ApiError(503, f"{self.name} cannot score at present: {self._lost}", headers={"Retry-After": "1"})

    async def _watch(self) -> None:
        """Let a scorer that lost its workers try to come back: a service that is not ready gets no work to do it."""
        self.metrics.ready.set(self.ready)
        for part in self._parts:
            if part.lost is not None:
                await part.recover()

    def abandon(self) -> None:
        """Answer all that is in flight now; what has no score yet is `overloaded`."""
        for part in reversed(self._parts):
            part.abandon()

    def render_metrics(self) -> bytes:
        self.metrics.worker_restarts.set(sum(part.restarts for part in self._parts))
        for client, unit, allowed, left in self.rate_limits.left():
            self.metrics.allowance.labels(client, unit).set(allowed)
            self.metrics.allowance_left.labels(client, unit).set(left)
        return self.metrics.render()

    async def info(self) -> ServiceInfo:
        limits = {
            name: float(getattr(self.settings, name))
            for name in (
                "max_body_bytes",
                "max_items",
                "max_group_items",
                "max_images_per_item",
                "max_image_bytes",
                "max_image_pixels",
                "queue_size",
            )
        }
        return ServiceInfo(
            service=self.name,
            rewards=list(self.rewards.values()),
            default_reward=self.default_reward,
            limits=limits,
            about=await asyncio.to_thread(self._described.all_about),
        )

    def samples(self) -> dict[str, Sample]:
        """By reward, of those that are served, an input that it scores well; not every reward has one."""
        known = self._described.samples
        return {name: known[name] for name in self.rewards if name in known}

    def sample(self, reward: str | None) -> ScoreRequest:
        """A request that the named reward, else the default one, scores well. Raises ApiError 404."""
        name = reward or self.default_reward
        self.info_of(name)
        sample = self.samples().get(name)
        if sample is None:
            raise ApiError(404, f"the reward {name!r} has no sample: its author gave none", field="reward")
        return sample.request(name)

    def info_of(self, reward: str) -> ScorerInfo:
        """What a reward is. Raises ApiError 404."""
        info = self.rewards.get(reward)
        if info is None:
            known = ", ".join(self.rewards)
            raise ApiError(404, f"no reward {reward!r} here; {self.name} serves: {known}", field="reward")
        return info

    async def score(
        self, request: Request, arrived: float, parse: Parse = parse_request, leaves_after_s: float | None = None
    ) -> ScoreResponse:
        """Answer one scoring request that arrived at `arrived` (time.monotonic()). Raises ApiError.

        `parse` reads the body, in a thread: other protocols have their own. A client that `leaves_after_s` without
        having said so is answered before, and at once when the server behind the scorer is lost.
        """
        if self.settings.role == "worker":
            raise ApiError(503, f"this {self.name} is a worker, which takes its jobs from Redis: ask a front")
        self.check_ready()
        settings, hold = self.settings, self.hold()
        gone: asyncio.Future[None] | None = None
        try:
            body = await read_body(request, settings.max_body_bytes, settings.body_timeout_s, hold)
            gone = asyncio.ensure_future(_until_disconnect(request))
            kind = request.headers.get("content-type", "")
            parsed = await self._read(parse, body, kind, settings, hold)
            del body
            return await self._score(request, parsed, arrived, hold, gone, leaves_after_s)
        finally:
            if gone is not None:
                gone.cancel()
            hold.release()

    async def _score(
        self,
        request: Request,
        parsed: Parsed,
        arrived: float,
        hold: Hold,
        gone: asyncio.Future[None],
        leaves_after_s: float | None,
    ) -> ScoreResponse:
        wanted = parsed.request
        reward = wanted.reward or self.default_reward
        info = self.info_of(reward)
        request_id = wanted.request_id or request.scope.get("request_id") or uuid.uuid4().hex
        count = len(wanted.items)
        request.scope.update(request_id=request_id, reward=reward, items=count)
        if self.audit is not None:
            request.scope["prompts_sha256"] = await self._read(prompts_sha256, [item.prompt for item in wanted.items])
        allowed = min(self.settings.request_timeout_s, leaves_after_s or math.inf)
        if wanted.deadline_ms is not None:
            allowed = min(allowed, wanted.deadline_ms / 1000)
        if info.grouped:
            check_groups(wanted.items, self.settings.max_group_items)
        caller = Caller(arrived + allowed, patient=leaves_after_s is None)
        try:
            self._dispatcher.reserve(count)
        except QueueFull as error:
            raise overloaded(str(error), error.retry_after_s) from error
        try:
            self.rate_limits.take_items(request.scope.get("caller"), count)
            if self._fetcher is not None:
                filled = self._fetcher.fill(parsed, caller.deadline, hold)
                parsed = await caller.wait_for(filled, gone, late=True)
            plan = make_plan(await self._decode(parsed, info, hold, caller, gone), parsed.parts, info)
            outcomes = await self._outcomes(reward, plan.jobs, caller, gone)
        finally:
            caller.leave()
            self._dispatcher.release(count)
        results = plan.results([item.id for item in wanted.items], outcomes)
        self._count(reward, parsed, results)
        await self._check_upstream(results)
        if all(result.error is not None and result.error.code is ErrorCode.TIMEOUT for result in results):
            raise ApiError(504, f"none of {count} items had a result within {allowed * 1000:.0f} ms")
        request.scope["failed_items"] = sum(result.error is not None for result in results)
        return ScoreResponse(results=results, scorer=info, request_id=request_id)

    async def _check_upstream(self, results: Sequence[ItemResult]) -> None:
        """Raise ApiError 503 when nothing has a score because the server behind the scorer is lost.

        Another replica may have one that is not, and a client goes there after a 503. One item that breaks each call
        must not look like that, so it is asked whether the server works.
        """
        codes = {None if result.error is None else result.error.code for result in results}
        if None in codes or ErrorCode.UPSTREAM not in codes:
            return
        for part in self._parts:
            if part.upstream_lost is not None:
                await part.recover()
                self.check_ready()

    async def _decode(
        self, parsed: Parsed, info: ScorerInfo, hold: Hold, caller: Caller, gone: asyncio.Future[None]
    ) -> Sequence[Decoded]:
        """Decode a request's images, several at a time, until the deadline or the client's leaving."""
        items, keyed = parsed.request.items, info if self._cache.enabled else None
        decoding = Decoding(items, parsed.parts, self._limits, hold, caller, info=keyed, failed=parsed.failed)

        async def strand() -> list[Decoded] | bool:
            while (result := await self._in_thread(decoding.turn)) is True:
                pass
            return result

        strands = decoding.split(_DECODERS)
        work: Awaitable[Sequence[list[Decoded] | bool]] = asyncio.gather(*(strand() for _ in range(strands)))
        try:
            ended = await caller.wait_for(work, gone)
        except (TimeoutError, NotAwaited):
            late = Failure(ErrorCode.TIMEOUT, "the deadline passed before the item's images were decoded")
            return [Decoded(parsed.failed.get(place, late), item) for place, item in enumerate(items)]
        return next(result for result in ended if isinstance(result, list))

    async def _outcomes(
        self, reward: str, jobs: Sequence[Job], caller: Caller, gone: asyncio.Future[None]
    ) -> list[Outcome]:
        """Submit the jobs and wait for all of them, the deadline, or the client's leaving.

        Raises ApiError 503 as soon as the server behind the scorer is lost, if the caller does not wait for that.
        """
        await self._dispatcher.prefetch(jobs)
        futures = [self._dispatcher.submit(reward, job, caller.deadline) for job in jobs]
        finished = _all_done(futures)
        try:
            step = math.inf if caller.patient else _LOOK_S
            while (left := caller.deadline - time.monotonic()) > 0:
                timeout = min(left, step)
                done, _ = await asyncio.wait({finished, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    break
                if not caller.patient and any(part.upstream_lost is not None for part in self._parts):
                    self.check_ready()
            if gone.done() and not finished.done():
                raise ClientDisconnect
        finally:
            for future in futures:
                future.cancel()  # of no effect on those that are done
        late = Failure(ErrorCode.TIMEOUT, "the deadline passed before the item had a result")
        return [
            Outcome((late,) * len(job.items)) if future.cancelled() else future.result()
            for job, future in zip(jobs, futures, strict=True)
        ]

    async def _read(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, call, *args)

    async def _in_thread(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *args)

    def _count(self, reward: str, parsed: Parsed, results: list[ItemResult]) -> None:
        groups: dict[str, list[float]] = defaultdict(list)
        for item, result in zip(parsed.request.items, results, strict=True):
            code = "ok" if result.error is None else result.error.code.value
            self.metrics.items.labels(reward, code).inc()
            if item.group_id is not None and result.score is not None:
                groups[item.group_id].append(result.score)
        for scores in groups.values():
            if len(scores) > 1:
                self.metrics.groups.labels(reward).inc()
                if min(scores) == max(scores):
                    self.metrics.constant_groups.labels(reward).inc()


def _make_fetcher(settings: ServiceSettings) -> ImageFetcher | None:
    if settings.image_url_hosts is None:
        return None
    hosts = ImageHosts(settings.image_url_hosts)
    return ImageFetcher(
        hosts,
        max_bytes=settings.max_image_bytes,
        timeout_s=settings.image_url_timeout_s,
        ca_file=settings.ca_file,
    )


def _all_done(futures: list[asyncio.Future[Outcome]]) -> asyncio.Future[None]:
    """A future for the moment when all are done; one callback each, however many wake-ups there are."""
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    left = sum(not future.done() for future in futures)

    def on_done(_future: asyncio.Future[Outcome]) -> None:
        nonlocal left
        left -= 1
        if left == 0 and not finished.done():
            finished.set_result(None)

    for future in futures:
        if not future.done():
            future.add_done_callback(on_done)
    if left == 0:
        finished.set_result(None)
    return finished


async def _until_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
