"""A front: puts jobs into Redis and answers its callers with what comes back."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.kit.dispatch.base import Dispatcher, Entry, Job, QueueFull
from services.kit.dispatch.cache import ScoreCache
from services.kit.dispatch.loops import Loop
from services.kit.metrics import Metrics
from services.kit.scale.connection import Command, RedisAway, RedisRefused
from services.kit.scale.keys import FRONT_TTL_MS
from services.kit.scale.messages import Answer, DamagedMessage, decode_answer, encode_job
from services.kit.scale.outbox import Outbox
from services.kit.scale.plane import Plane
from services.kit.scale.shared_cache import SharedCache
from services.kit.scale.watch import StreamWatch
from wire.schema import ErrorCode

logger = logging.getLogger("services.front")

_AUDIT_S = 2.0
_BLOCK_MS = 500
_REPLIES = 256  # read at a time
_SEND = 16  # jobs sent at a time: they may be of megabytes


@dataclass(eq=False)
class _Sent:
    """A job on its way. `entry_id` is its place in the stream, where known; `tried`: it may be in Redis already."""

    job_id: bytes
    entry: Entry
    tried: bool = False
    confirmed: bool = False
    entry_id: bytes | None = None


class Front(Dispatcher):
    """Has jobs scored by whichever worker takes them. Each is answered once: by the first answer that comes back."""

    def __init__(
        self,
        plane: Plane,
        watch: StreamWatch,
        shared: SharedCache,
        *,
        queue_size: int,
        max_depth: int,
        cache: ScoreCache,
        metrics: Metrics,
    ) -> None:
        super().__init__(queue_size=queue_size, cache=cache, metrics=metrics)
        self._rewards = plane.rewards
        self._connection = plane.connection
        self._keys = plane.keys
        self._scale_metrics = plane.metrics
        self._watch = watch
        self._shared = shared
        self._max_depth = max_depth
        self._name = uuid.uuid4().hex
        self._open = plane.keys.open_jobs(self._name)
        self._replies = plane.keys.replies(self._name)
        self._jobs: dict[bytes, _Sent] = {}
        self._sent: dict[Entry, _Sent] = {}
        self._outbox = Outbox(self._send, _SEND, self._give_up)
        self._listening = Loop("listening for answers", self._listen, said_elsewhere=(RedisAway,))
        self._audited = time.monotonic()

    async def start(self) -> None:
        self._listening.start()

    async def stop(self) -> None:
        """Abandon what still waits, withdraw it from Redis, and remove this front's keys."""
        self.abandon()
        await self._outbox.flush(timeout_s=1.0)
        if self._listening.task is None:
            return
        await self._listening.end()
        try:
            await self._connection.call("DEL", self._open, self._replies)
        except (RedisAway, RedisRefused):
            logger.debug("the keys of this front are left to expire")

    @property
    def lost(self) -> str | None:
        """Why no answers come: the first reward that no live worker serves, or what keeps this front from listening."""
        if self._listening.failure is not None:
            return self._listening.failure
        for name, workers in self._watch.workers.items():
            if workers == 0:
                revision = self._rewards[name].revision
                return (
                    f"no live worker serves reward {name!r} at revision {revision!r}: start one with the same "
                    f"settings and --role worker"
                )
        return None

    def decoded(self, job_id: bytes) -> Job | None:
        """The job that this front has sent under that id and that has no answer yet."""
        sent = self._jobs.get(job_id)
        return None if sent is None else sent.entry.job

    def reserve(self, count: int) -> None:
        """Raises QueueFull also when the streams, which all fronts share, are deep."""
        depth = self._watch.depth
        if depth + count > self._max_depth:
            raise QueueFull(
                f"{depth} jobs of all fronts are in the streams and {count} more would exceed the limit of "
                f"{self._max_depth}",
                self.retry_after_s(),
            )
        super().reserve(count)

    def retry_after_s(self) -> int:
        return self._watch.drain_s()

    async def prefetch(self, jobs: Sequence[Job]) -> None:
        await self._shared.fetch({job.key: len(job.items) for job in jobs if job.key is not None})

    def _accept(self, entry: Entry) -> None:
        sent = _Sent(uuid.uuid4().hex.encode(), entry)
        self._jobs[sent.job_id] = self._sent[entry] = sent
        self._outbox.put(sent)

    def _withdraw(self, entry: Entry) -> None:
        self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        """Whoever leaves without an answer is taken out of Redis, too."""
        super()._forget(entry)
        sent = self._sent.pop(entry, None)
        if sent is not None and self._jobs.pop(sent.job_id, None) is not None:
            self._outbox.put(sent)

    async def _send(self, batch: list[_Sent]) -> None:
        await self._connection.patiently(lambda: self._send_once(batch))

    def _give_up(self, batch: list[_Sent], error: Exception) -> None:
        for sent in batch:
            if sent.job_id in self._jobs:
                self._fail(sent.entry, ErrorCode.INTERNAL, f"the job could not be sent through Redis: {error}")

    async def _send_once(self, batch: list[_Sent]) -> None:
        """Add the jobs that are new, take out those that were withdrawn: all or none."""
        batch = list(dict.fromkeys(batch))
        await self._confirm([sent for sent in batch if sent.tried and not sent.confirmed])
        new = [sent for sent in batch if sent.job_id in self._jobs and not sent.confirmed]
        gone = [sent for sent in batch if sent.job_id not in self._jobs and sent.tried]
        added = await asyncio.to_thread(lambda: [self._add(sent) for sent in new])
        commands: list[Command] = []
        for sent, add in zip(new, added, strict=True):
            sent.tried = True
            commands += [add, ("SADD", self._open, sent.job_id)]
        for sent in gone:
            commands.append(("SREM", self._open, sent.job_id))
            if sent.entry_id is not None:
                commands.append(("XDEL", self._stream(sent), sent.entry_id))
        if commands:
            commands.append(("PEXPIRE", self._open, FRONT_TTL_MS))
        answers = await self._connection.pipeline(commands, atomic=True)
        for number, sent in enumerate(new):
            sent.entry_id, sent.confirmed = answers[2 * number], True

    async def _confirm(self, doubtful: Sequence[_Sent]) -> None:
        """Whether jobs whose sending was cut short have arrived all the same."""
        known = await self._connection.pipeline([("SISMEMBER", self._open, sent.job_id) for sent in doubtful])
        for sent, is_known in zip(doubtful, known, strict=True):
            sent.confirmed = is_known == 1

    def _add(self, sent: _Sent) -> Command:
        wait_ms = max(0, int((sent.entry.deadline - time.monotonic()) * 1000))
        return ("XADD", self._stream(sent), "*", *encode_job(sent.job_id, self._name, sent.entry.job, wait_ms))

    def _stream(self, sent: _Sent) -> str:
        return self._keys.jobs(self._rewards[sent.entry.reward])

    async def _listen(self) -> None:
        await self._read(_BLOCK_MS)
        if time.monotonic() >= self._audited + _AUDIT_S:
            await self._audit()
            self._audited = time.monotonic()

    async def _read(self, block_ms: int | None) -> bool:
        """Deliver the answers that are there. Whether there were any.

        Always from the beginning, and what was read is deleted: ids may run backwards where Redis lost its last second.
        """
        block = () if block_ms is None else ("BLOCK", block_ms)
        found = await self._connection.call("XREAD", "COUNT", _REPLIES, *block, "STREAMS", self._replies, "0")
        if not found:
            return False
        [(_, replies)] = found
        for _, fields in replies:
            self._deliver(fields)
        await self._connection.call("XDEL", self._replies, *(reply_id for reply_id, _ in replies))
        return True

    def _deliver(self, fields: Mapping[bytes, bytes]) -> None:
        sent = self._jobs.get(fields.get(b"job", b""))
        if sent is None:
            self._scale_metrics.duplicates.inc()
            return
        entry = sent.entry
        try:
            answer = decode_answer(fields[b"answer"], len(entry.job.items))
        except Exception as error:  # of whatever kind: it would be read again and again, and no other after it
            logger.error("an answer is damaged", exc_info=not isinstance(error, KeyError | DamagedMessage))
            self._scale_metrics.damaged.inc()
            del self._jobs[sent.job_id]
            self._fail(entry, ErrorCode.INTERNAL, f"the worker's answer could not be read: {error}")
            return
        if answer.expired and entry.deadline > time.monotonic():  # someone joined who waits longer
            self._send_again(sent)
            return
        del self._jobs[sent.job_id]
        self._answer(entry, answer)

    def _answer(self, entry: Entry, answer: Answer) -> None:
        outcome = answer.outcome
        started = time.monotonic() - outcome.compute_s
        self._settle(entry, outcome.results, started, outcome.compute_s, cached=outcome.cached)

    def _send_again(self, sent: _Sent) -> None:
        sent.tried = sent.confirmed = False
        sent.entry_id = None
        self._outbox.put(sent)

    async def _audit(self) -> None:
        """Compare Redis's open jobs with ours: send again what it lost, drop what it has brought back from the past.

        A job leaves the set in the same step that writes its answer, so one that is in neither is lost.
        """
        ours = [sent for sent in self._jobs.values() if sent.confirmed]
        found, *_ = await self._connection.pipeline(
            [
                ("SMEMBERS", self._open),
                ("PEXPIRE", self._open, FRONT_TTL_MS),
                ("PEXPIRE", self._replies, FRONT_TTL_MS),
            ]
        )
        stale = [job_id for job_id in found if job_id not in self._jobs]
        if stale:
            await self._connection.call("SREM", self._open, *stale)
        missing = [sent for sent in ours if sent.job_id not in found]
        while missing and await self._read(None):
            pass
        lost = [sent for sent in missing if self._jobs.get(sent.job_id) is sent and sent.confirmed]
        for sent in lost:
            self._scale_metrics.resent.labels(sent.entry.reward).inc()
            self._send_again(sent)
        if lost:
            logger.warning("Redis lost jobs; they are sent again", extra={"jobs": len(lost)})
