"""A worker: takes jobs from the streams, has the process's own dispatcher score them, and answers the fronts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from services.kit.dispatch.base import Dispatcher, Job, Outcome
from services.kit.dispatch.caller import Caller, NotAwaited
from services.kit.dispatch.decoding import Decoding
from services.kit.dispatch.loops import Loop
from services.kit.dispatch.parts import Part
from services.kit.errors import ApiError
from services.kit.guard.memory import Hold
from services.kit.scale import scripts
from services.kit.scale.claims import Claims, Delivery, Overdue
from services.kit.scale.connection import Command, RedisAway, RedisRefused
from services.kit.scale.keys import FRONT_TTL_MS, GROUP
from services.kit.scale.messages import Answer, DamagedMessage, JobMessage, decode_job, encode_answer
from services.kit.scale.outbox import Outbox
from services.kit.scale.plane import Plane
from services.kit.scale.shared_cache import SharedCache
from services.kit.scale.watch import StreamWatch
from services.kit.scorer import Failure, Item, Score
from wire.images import ImageLimits
from wire.schema import ErrorCode

logger = logging.getLogger("services.worker")

_ANSWERS = 64  # sent at a time
_SUSPECT = 2  # deliveries that came to nothing, after which a job is taken alone: it may be what ends workers


@dataclass(eq=False)
class _Held:
    """A job this worker has, until its answer is in Redis."""

    delivery: Delivery
    message: JobMessage
    task: asyncio.Task[None] | None = None
    answer: Answer | None = None

    @property
    def place(self) -> tuple[str, bytes]:
        return self.delivery.place


@dataclass(frozen=True)
class WorkerLimits:
    """`room`: jobs held at a time. `max_deliveries`: a job given out that often without an answer is given up."""

    room: int
    max_deliveries: int
    visibility_timeout_s: float
    images: ImageLimits


class Worker(Part):
    """Reads while it has room, reports several times per visibility timeout, claims what silent workers left."""

    def __init__(
        self,
        plane: Plane,
        local: Dispatcher,
        claims: Claims,
        watch: StreamWatch,
        shared: SharedCache,
        limits: WorkerLimits,
        *,
        hold: Callable[[], Hold],
        needed: Callable[[], bool],
        decoded: Callable[[bytes], Job | None],
    ) -> None:
        """`needed`: whether to go on reading while the process drains, because its own front has jobs in the streams.
        `decoded`: the job of that id where this process's own front has sent it, whose images are decoded already.
        """
        self._local = local
        self._claims = claims
        self._connection = plane.connection
        self._keys = plane.keys
        self._rewards = plane.rewards
        self._metrics = plane.metrics
        self._watch = watch
        self._shared = shared
        self._limits = limits
        self._hold = hold
        self._needed = needed
        self._decoded = decoded
        self._held: dict[tuple[str, bytes], _Held] = {}
        self._freed = asyncio.Event()
        self._outbox = Outbox(self._finish, _ANSWERS, self._give_up)
        self._draining = self._left = False
        self._serving = Loop(
            "reading jobs",
            self._turn,
            said_elsewhere=(RedisAway,),
            goes_on=lambda: not self._draining or self._needed(),
            last=self._leave,
        )
        self._reporting = Loop(
            "reporting to the fronts",
            self._report,
            pause_s=min(1.0, limits.visibility_timeout_s / 4),
            said_elsewhere=(RedisAway,),
        )
        self._next_claim = 0.0

    async def start(self) -> None:
        with suppress(RedisAway, RedisRefused):  # both tasks go on trying
            await self._claims.forget_the_dead()
            await self._report()
            await self._watch.poll()
        self._serving.start()
        self._reporting.start()

    async def stop(self) -> None:
        """Stop reading, send the answers that are there, hand back the rest."""
        self._draining = True
        self.abandon()
        if self._serving.task is None:
            return
        await asyncio.wait({self._serving.task}, timeout=1.0)
        await self._serving.end()
        await self._reporting.end()
        self.abandon()  # what its last reading brought
        await self._outbox.flush(timeout_s=2.0)
        try:
            await self._claims.leave()
            count = await self._claims.hand_back()
        except (RedisAway, RedisRefused) as error:
            logger.warning("jobs could not be handed back", extra={"reason": str(error), "jobs": len(self._held)})
        else:
            logger.info("left", extra={"handed_back": count})

    def drain(self) -> None:
        """Read no more; what is held goes on."""
        self._draining = True

    def abandon(self) -> None:
        """Give up what has no answer yet: another worker is to do it."""
        for held in self._held.values():
            if held.task is not None:
                held.task.cancel()

    @property
    def in_flight(self) -> int:
        return len(self._held)

    @property
    def lost(self) -> str | None:
        """What keeps this worker from reading jobs, or from being counted among the live ones."""
        return self._serving.failure or self._reporting.failure

    async def _leave(self) -> None:
        self._left = True
        with suppress(RedisAway, RedisRefused):
            await self._claims.leave()

    async def _turn(self) -> None:
        room = self._limits.room - len(self._held)
        if room <= 0 or self._local.lost is not None:  # what cannot score here is left to others
            await self._until_freed()
            return
        if time.monotonic() >= self._next_claim:
            self._next_claim = time.monotonic() + self._limits.visibility_timeout_s / 4
            await self._take_over(room)
        room = self._limits.room - len(self._held)
        if room > 0:
            await self._take(await self._claims.read(room))

    async def _take_over(self, room: int) -> None:
        """Claim what silent workers left. A job that may have ended them runs alone, so that no other shares its fate."""
        overdue = [each for each in await self._claims.overdue(room) if each.place not in self._held]
        suspects = [each for each in overdue if _SUSPECT <= each.deliveries < self._limits.max_deliveries]
        await self._take(await self._claims.claim([each for each in overdue if each not in suspects]))
        for suspect in suspects:
            await self._take_alone(suspect)

    async def _take_alone(self, suspect: Overdue) -> None:
        while self._held:
            await self._until_freed()
        await self._take(await self._claims.claim([suspect]))
        while self._held:
            await self._until_freed()

    async def _until_freed(self) -> None:
        self._freed.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._freed.wait(), 0.5)

    async def _take(self, deliveries: Sequence[Delivery]) -> None:
        """Begin to score those of the jobs that somebody waits for, and take the others out of the stream."""
        taken: list[_Held] = []
        for delivery in deliveries:
            self._metrics.claimed.labels(delivery.reward).inc()
            if delivery.deliveries > 1:
                self._metrics.redelivered.labels(delivery.reward).inc()
            try:
                taken.append(_Held(delivery, decode_job(delivery.fields)))
            except DamagedMessage as error:
                await self._connection.patiently(partial(self._drop, delivery, error))
        asked = [("SISMEMBER", self._keys.open_jobs(held.message.front), held.message.job_id) for held in taken]
        awaited = await self._connection.patiently(lambda: self._connection.pipeline(asked))
        sizes = {held.message.key: len(held.message.items) for held in taken if held.message.key is not None}
        await self._shared.fetch(sizes)
        for held, is_open in zip(taken, awaited, strict=True):
            self._held[held.place] = held
            if is_open == 0:
                self._outbox.put(held)
            else:
                held.task = asyncio.create_task(self._score(held))
        self._metrics.held.set(len(self._held))

    async def _drop(self, delivery: Delivery, error: DamagedMessage) -> None:
        """There is no telling who waits for it; whoever does gets a timeout."""
        logger.error(
            "a message in a job stream is damaged", extra={"entry": str(delivery.entry_id), "reason": str(error)}
        )
        self._metrics.damaged.inc()
        stream = self._keys.jobs(self._rewards[delivery.reward])
        await self._connection.pipeline(
            [("XACK", stream, GROUP, delivery.entry_id), ("XDEL", stream, delivery.entry_id)]
        )

    async def _score(self, held: _Held) -> None:
        try:
            held.answer = await self._answer(held)
        except Exception as error:
            logger.exception("a job raised")
            held.answer = _failed(held, ErrorCode.INTERNAL, f"the worker raised {type(error).__name__}: {error}")
        self._outbox.put(held)

    async def _answer(self, held: _Held) -> Answer:
        message, delivery = held.message, held.delivery
        if delivery.deliveries > self._limits.max_deliveries:
            self._metrics.poison.labels(delivery.reward).inc()
            tries = delivery.deliveries - 1
            return _failed(
                held,
                ErrorCode.INTERNAL,
                f"given up: {tries} workers took the job and none of them answered; it may be what ended them",
            )
        deadline = time.monotonic() + (delivery.sent_ms + message.wait_ms - self._watch.now_ms()) / 1000
        if deadline <= time.monotonic():
            return _failed(held, ErrorCode.TIMEOUT, "the deadline passed while the job was queued", expired=True)
        hold, caller = self._hold(), Caller(deadline)
        try:
            job: Job | Failure | None = self._decoded(message.job_id)
            if job is None:
                job = await asyncio.to_thread(self._decode, message, hold, caller)
            if isinstance(job, Failure):
                return _failed(held, job.code, job.message)
            outcome = await self._local.submit(delivery.reward, job, deadline, counted=False)
        except NotAwaited:
            return _failed(held, ErrorCode.TIMEOUT, "the deadline passed before the images were decoded", expired=True)
        finally:
            caller.leave()
            hold.release()
        late = all(isinstance(each, Failure) and each.code is ErrorCode.TIMEOUT for each in outcome.results)
        return Answer(outcome, expired=late and time.monotonic() >= deadline)

    def _decode(self, message: JobMessage, hold: Hold, caller: Caller) -> Job | Failure:
        """The job as a front's own request would have made it; the key is the front's. Raises NotAwaited."""
        items: list[Item] = []
        try:
            hold.take(sum(len(part) for part in message.parts.values()))
            for each in Decoding(message.items, message.parts, self._limits.images, hold, caller).run():
                if isinstance(each.item, Failure):
                    return each.item
                items.append(each.item)
        except ApiError as error:
            return Failure(ErrorCode.OVERLOADED, f"the worker has no memory for the job: {error.message}")
        return Job(tuple(items), message.key)

    async def _finish(self, done: list[_Held]) -> None:
        """Take jobs out of their streams and answer those that are still open; save their scores for all."""
        saves = [self._save_command(held) for held in done]
        commands = [self._finish_command(held) for held in done] + [save for save in saves if save is not None]
        answers = await self._connection.patiently(lambda: self._connection.pipeline(commands, needed=len(done)))
        for held, delivered in zip(done, answers[: len(done)], strict=True):
            if isinstance(delivered, RedisRefused):
                logger.error("Redis refused an answer", extra={"reason": str(delivered)})
            elif delivered == 0 and held.answer is not None:
                self._metrics.duplicates.inc()
            self._held.pop(held.place, None)
        for saved in answers[len(done) :]:
            self._shared.check(saved)
        self._metrics.held.set(len(self._held))
        self._freed.set()

    def _give_up(self, done: list[_Held], _error: Exception) -> None:
        """Hold jobs no longer whose answers could not be sent: silent from now on, they go to another."""
        for held in done:
            self._held.pop(held.place, None)
        self._metrics.held.set(len(self._held))
        self._freed.set()

    def _finish_command(self, held: _Held) -> Command:
        info, message = self._rewards[held.delivery.reward], held.message
        keys = (
            self._keys.jobs(info),
            self._keys.open_jobs(message.front),
            self._keys.replies(message.front),
            self._keys.answered(info),
        )
        answer = b"" if held.answer is None else encode_answer(held.answer)
        return scripts.finish(keys, held.delivery.entry_id, message.job_id, answer, replies_ttl_ms=FRONT_TTL_MS)

    def _save_command(self, held: _Held) -> Command | None:
        key = held.message.key
        if key is None or held.answer is None or held.answer.outcome.cached:
            return None
        scores = [each for each in held.answer.outcome.results if isinstance(each, Score) and each.cacheable]
        return self._shared.command(key, scores) if len(scores) == len(held.message.items) else None

    async def _report(self) -> None:
        """Say that we live and what we work on; learn what nobody waits for any more, and leave that."""
        takes_jobs = not self._left and self._local.lost is None
        if not takes_jobs:
            await self._claims.leave()
        running = [held for held in self._held.values() if held.task is not None and not held.task.done()]
        asked = [("SISMEMBER", self._keys.open_jobs(held.message.front), held.message.job_id) for held in running]
        reports = self._claims.report(self._held, takes_jobs=takes_jobs)
        answers = await self._connection.pipeline([*asked, *reports])
        for held, is_open in zip(running, answers[: len(asked)], strict=True):
            if is_open == 0 and held.task is not None and not held.task.done():
                held.task.cancel()
                self._outbox.put(held)
        for answer in answers:
            if isinstance(answer, RedisRefused):
                raise answer


def _failed(held: _Held, code: ErrorCode, message: str, *, expired: bool = False) -> Answer:
    return Answer(Outcome((Failure(code, message),) * len(held.message.items)), expired)
