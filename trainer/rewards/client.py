"""The reward client: scores samples over HTTP while the trainer samples the next ones.

It owns an event loop in a background thread, so that the training loop stays synchronous:

    with RewardClient(config, urls=urls) as client:
        batch = client.batch()
        for rollout in ...:
            batch.submit(rollout.samples)  # returns at once
        scores = batch.collect()  # every answer, or its deadline
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from trainer.config import RewardsConfig
from trainer.rewards.answers import OnEvent, RewardEvent, RewardServiceError
from trainer.rewards.asked import Requests
from trainer.rewards.batch import Dispatcher, MicroBatch, Moment, keep_one_scorer
from trainer.rewards.encodings import Encodings
from trainer.rewards.identity import ScorerChange, Scorers
from trainer.rewards.mixture import mix
from trainer.rewards.pause import FailureGuard
from trainer.rewards.startup import check_service, raise_together
from trainer.rewards.tape import TapePlayer, TapeRecorder
from trainer.rewards.transport import ServiceCaller
from trainer.types import Sample, Scores

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_GRACE_S = 15.0
_QUIET = ("ready", "resume", "encoding")
_OF_ALL_RANKS = ("waiting", "hint")


class RewardClient:
    """Asks the services for the rewards of `config`. Use as a context manager, or `start` and `close`.

    Args:
        config: services, columns, timeouts, failure policies.
        urls: service name to base URLs, as `resolve_urls` makes them.
        on_event: called with every RewardEvent, on whichever thread it happens; must be quick and thread-safe. Events
            are logged in any case.
        tape: every answer is recorded there. Where the config says replay, answers come from its tape instead, and no
            service is asked for anything.
        is_main: whether this process says that it waits, and what it was told; all ranks have the same services.
        requests: what training will send; a service that takes less at a time is found at the start.
        encodings: what was measured for services of `image_encoding: auto`; by default nothing yet.
    """

    def __init__(
        self,
        config: RewardsConfig,
        *,
        urls: Mapping[str, Sequence[str]],
        on_event: OnEvent | None = None,
        tape: TapeRecorder | None = None,
        is_main: bool = True,
        requests: Requests | None = None,
        encodings: Encodings | None = None,
    ) -> None:
        for name in config.services:
            if not urls.get(name) and config.tape.mode != "replay":
                raise RewardServiceError(f"service {name} has no URL: set rewards.services.{name}.urls")
        self.config = config
        self.scorers = Scorers(config.columns, self._emit)  # of each column; known after `start`
        self.grouped: frozenset[str] = frozenset()  # columns that compare the samples of a group; known after `start`
        self._urls = urls
        self._listener = on_event
        self._is_main = is_main
        self._requests = requests
        self._encodings = encodings or Encodings()
        self._tape = tape
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="reward-client", daemon=True)
        self._callers: dict[str, ServiceCaller] = {}
        self._dispatcher: Dispatcher | TapePlayer
        self._guard: FailureGuard | TapePlayer
        self._state = "new"

    def start(self) -> None:
        """Wait for every service in parallel and score the canary of every reward.

        Raises:
            RewardServiceError: all that is wrong, each with service, URL and remedy. The client is closed then.
        """
        if self._state != "new":
            raise RuntimeError(f"the reward client is {self._state}; it starts once")
        self._thread.start()
        self._state = "started"
        try:
            self._call(self._open(), self.config.ready_timeout_s + _GRACE_S)
        except BaseException:
            self.close()
            raise

    def batch(self, columns: Sequence[str] | None = None, *, group_size: int | None = None, step: int = 0) -> Batch:
        """A new batch. Without `columns` each sample goes to the rewards in its prompt's `weights`, and the scores have
        every column of the config; with them, all samples go to those and only those, and it is an evaluation's.

        A reward that compares gets whole groups: a group is sent when it has `group_size` samples, at the latest by
        `collect`.

        Args:
            step: the training step that the samples are of, or after which they are evaluated; a tape keeps it.

        Raises:
            ValueError: a column is not in the config.
        """
        if self._state != "started":
            raise RuntimeError(f"the reward client is {self._state}: call start() first")
        moment = Moment("train" if columns is None else "evaluation", step)
        return Batch(self, self._dispatcher, columns, group_size, moment)

    def go_on(
        self, before: Mapping[str, Mapping[str, Any]], changes: Sequence[Mapping[str, Any]], step: int
    ) -> list[str]:
        """Compare every reward with what a checkpoint of `step` was trained against. To be called after `start`.

        Returns the columns that come from another scorer now, where that is accepted.

        Args:
            before: the scorers as `Scorers.state` gave them; a column that is missing is not compared.
            changes: those that the run had until then, to be kept.

        Raises:
            RewardServiceError: a reward is another one, and its `on_change` is stop.
        """
        return self._call(self._go_on(before, changes, step), _GRACE_S)

    async def _go_on(
        self, before: Mapping[str, Mapping[str, Any]], changes: Sequence[Mapping[str, Any]], step: int
    ) -> list[str]:
        if isinstance(self._dispatcher, TapePlayer):
            self._dispatcher.wind_to(step)
        self.scorers.changes[:0] = [ScorerChange.from_dict(change) for change in changes]
        changed = self.scorers.go_on(before, step)
        if self._tape is not None:
            self._tape.note(self.scorers.changes)
        return changed

    def interrupt(self) -> None:
        """End a pause (now or later) at once, with a stop reason. Safe in signal handlers and other threads."""
        if self._state == "started":
            self._loop.call_soon_threadsafe(self._guard.interrupted.set)

    def close(self) -> None:
        """Give up what is under way, close connections, end the thread. May be called more than once."""
        if self._state == "started":
            self._state = "closed"
            self._call(self._shut(), _GRACE_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_GRACE_S)
        if self._tape is not None:
            self._tape.close()
        if not self._loop.is_running():
            self._loop.close()
        self._state = "closed"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, work: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
        """Run on the client's loop and wait; `timeout_s` bounds even a loop that died."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError as error:
            if not future.done():
                future.cancel()
                raise RuntimeError(f"the reward client's event loop did not answer within {timeout_s:.0f} s") from error
            raise

    async def _open(self) -> None:
        if self.config.tape.mode == "replay":
            assert self.config.tape.path is not None, "checked by the configuration"
            path = Path(self.config.tape.path)
            self._dispatcher = self._guard = TapePlayer(path, self.config, self.scorers, self._emit)
            return
        for name, service in self.config.services.items():
            self._callers[name] = ServiceCaller(name, service, self._urls[name], self._emit)
        self._dispatcher = Dispatcher(self.config, self._callers, self.scorers, self._encodings, self._emit)
        texts = () if self._requests is None else self._requests.texts
        self._guard = FailureGuard(self.config, self._callers, self._dispatcher, self.scorers, self._emit, texts=texts)
        checks = []
        for name, caller in self._callers.items():
            columns = {key: column for key, column in self.config.columns.items() if column.service == name}
            limit_s, canary = self.config.ready_timeout_s, self.config.canary
            checks.append(check_service(caller, columns, limit_s, canary, self._emit, self._requests))
        outcomes = await asyncio.gather(*checks, return_exceptions=True)
        raise_together(outcomes)
        for outcome in outcomes:
            if isinstance(outcome, dict):
                for name, scorer in outcome.items():
                    asked = self.config.canary and self.config.columns[name].canary != "none"
                    self.scorers.begin(name, scorer, proven=asked)
                self.grouped |= {name for name, scorer in outcome.items() if scorer.grouped}
        if self._tape is not None:
            self._tape.start(self.scorers.now)

    async def _shut(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for caller in self._callers.values():
            await caller.aclose()
        await self._loop.shutdown_default_executor()

    def _emit(self, event: RewardEvent) -> None:
        quiet = event.kind in _QUIET or (event.kind in _OF_ALL_RANKS and not self._is_main)
        level = logging.INFO if quiet else logging.WARNING
        logger.log(level, "%s: %s: %s", event.kind, event.subject, event.message)
        if self._listener is not None:
            self._listener(event)


class Batch:
    """The samples of one step (or one evaluation). `submit` any number of micro-batches, then `collect` once."""

    def __init__(
        self,
        client: RewardClient,
        dispatcher: Dispatcher | TapePlayer,
        columns: Sequence[str] | None,
        group_size: int | None,
        moment: Moment,
    ) -> None:
        known = client.config.columns
        for name in columns or ():
            if name not in known:
                raise ValueError(f"no reward column {name!r}; rewards.columns has: {', '.join(known) or 'none'}")
        self._client = client
        self._dispatcher = dispatcher
        self._explicit = None if columns is None else list(dict.fromkeys(columns))
        self.names = list(known) if self._explicit is None else self._explicit
        self._group_size = group_size
        self._moment = moment
        self._samples: list[Sample] = []
        self._groups: dict[str, list[Sample]] = {}  # not yet sent to the rewards that compare
        self._micros: list[MicroBatch] = []
        self._futures: list[concurrent.futures.Future[None]] = []
        self._ids: set[str] = set()
        self._collected = False

    def submit(self, samples: Sequence[Sample]) -> None:
        """Hand over a micro-batch; encoding and HTTP happen in the background. The pixels must not change afterwards.

        Raises:
            ValueError: an id came before, an image is not uint8 (H, W, 3), or a prompt names an unknown reward.
            RuntimeError: after `collect`, or the client is closed.
        """
        if self._collected or self._client._state != "started":
            raise RuntimeError("this batch was collected already, or its client is closed")
        for sample in samples:
            self._check(sample)
            self._ids.add(sample.id)
        self._samples += samples
        self._send(samples, [name for name in self.names if name not in self._client.grouped])
        if self._client.grouped.intersection(self.names):
            for sample in samples:
                self._groups.setdefault(sample.group_id, []).append(sample)
            self._send_groups(complete=self._group_size)

    def peek(self, rows: slice) -> Scores | None:
        """The scores of these samples, in the order of submission, where each reward has answered for all of them and none failed;
        else None. It does not wait, and what it gives may change until `collect`: a reward may become another one.
        """
        samples = self._samples[rows]
        ids = {sample.id for sample in samples}
        if any(sample.group_id in self._groups for sample in samples):
            return None
        micros = [
            (micro, future)
            for micro, future in zip(self._micros, self._futures, strict=True)
            if any(sample.id in ids for sample in micro.samples)
        ]
        if any(not future.done() or future.cancelled() or future.exception() for _, future in micros):
            return None
        cells = {name: {i: a for m, _ in micros for i, a in m.answers.get(name, {}).items()} for name in self.names}
        if any(answer.failed for answers in cells.values() for answer in answers.values()):
            return None
        return mix(samples, cells, self._client.config.columns, self.names, shuffle=False)

    def collect(self) -> Scores:
        """Block until every request is answered or past its deadline; rows in the order of submission.

        A reward above its failure rate pauses the call (up to its `patience_s`, and one more time in the queue and
        deadline). Check `stop_reason` of what is returned.
        """
        if self._collected:
            raise RuntimeError("this batch was collected already; make a new one with client.batch()")
        self._collected = True
        self._send_groups()
        started = time.perf_counter()
        reason = self._client._call(self._finish(), self._longest_wait_s())
        waited_s = time.perf_counter() - started
        keep_one_scorer(self._micros, self.names, self._client.scorers.now)
        cells = {name: {i: a for m in self._micros for i, a in m.answers.get(name, {}).items()} for name in self.names}
        if self._client._tape is not None:
            self._client._tape.write(self._moment, self._samples, cells, self._client.scorers.changes)
        config = self._client.config
        # Evaluation names its columns, and must see the truth in a control run, too.
        shuffle = config.shuffle_control and self._explicit is None
        scores = mix(self._samples, cells, config.columns, self.names, shuffle=shuffle)
        scores.latency_ms = {
            name: [1000 * micro.latency_s[name] for micro in self._micros if name in micro.latency_s]
            for name in self.names
        }
        scores.last_latency_s = max(self._micros[-1].latency_s.values(), default=0.0) if self._micros else 0.0
        scores.waited_s = waited_s
        scores.stop_reason = "; ".join(text for text in (reason, scores.stop_reason) if text) or None
        return scores

    def _send_groups(self, complete: int | None = 0) -> None:
        """Send the groups that have `complete` samples (None: none is known to be complete), or all, to the rewards
        that compare."""
        names = [name for name in self.names if name in self._client.grouped]
        for group_id, group in list(self._groups.items()):
            if complete is not None and len(group) >= complete:
                self._send(self._groups.pop(group_id), names)

    def _send(self, samples: Sequence[Sample], names: Sequence[str]) -> None:
        asked = {name: chosen for name in names if (chosen := [s for s in samples if self._asks(s, name)])}
        micro = MicroBatch(list(samples), asked, time.monotonic(), self._moment)
        self._micros.append(micro)
        work = self._dispatcher.score(micro, list(asked), micro.submitted_at)
        self._futures.append(asyncio.run_coroutine_threadsafe(work, self._client._loop))

    async def _finish(self) -> str | None:
        await asyncio.gather(*(asyncio.wrap_future(future) for future in self._futures))
        return await self._client._guard.review(self._micros, self.names, patient=self._explicit is not None)

    def _longest_wait_s(self) -> float:
        config = self._client.config
        columns = [config.columns[name] for name in self.names]
        longest_s = max((config.services[column.service].longest_s for column in columns), default=0.0)
        return 2 * longest_s + max((column.patience_s for column in columns), default=0.0) + _GRACE_S

    def _asks(self, sample: Sample, name: str) -> bool:
        return self._explicit is not None or name in sample.prompt.weights

    def _check(self, sample: Sample) -> None:
        if sample.id in self._ids:
            raise ValueError(f"sample id {sample.id!r} was submitted before; ids must be unique in a batch")
        for image in sample.images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"sample {sample.id}: pixels must be uint8 (H, W, 3); got {image.dtype} {image.shape}")
        unknown = [name for name in sample.prompt.weights if name not in self._client.config.columns]
        if unknown:
            raise ValueError(
                f"prompt {sample.prompt.id} asks for the reward {unknown[0]!r}; rewards.columns has: "
                f"{', '.join(self._client.config.columns) or 'none'}"
            )
