"""Above a reward's failure rate the run pauses: it waits for the service, then asks once more, or stops with a reason.

An evaluation is made of few scores and nothing trains meanwhile, so it waits out every outage, whatever the rate. Its
batches come one after another, and other ranks wait for the last: an outage costs them `patience_s` once, not each.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence

from trainer.config import RewardsConfig
from trainer.rewards.answers import Answer, ClientCode, OnEvent, RewardEvent, RewardServiceError
from trainer.rewards.batch import Dispatcher, MicroBatch
from trainer.rewards.failure_rate import FailureWindow
from trainer.rewards.identity import Scorers
from trainer.rewards.startup import POLL_S, WaitingLine, check_canary, wait_ready
from trainer.rewards.transport import ServiceCaller

_OUTAGES = (ClientCode.UNREACHABLE, ClientCode.UNAVAILABLE)


class FailureGuard:
    """Watches the failure rate of every reward over the batches of a run. Lives on one event loop."""

    def __init__(
        self,
        config: RewardsConfig,
        callers: Mapping[str, ServiceCaller],
        dispatcher: Dispatcher,
        scorers: Scorers,
        on_event: OnEvent,
        *,
        texts: Collection[str] = (),
    ) -> None:
        """`texts`: the rewards whose samples are texts, so that their probes are, too."""
        self._texts = texts
        self._config = config
        self._callers = callers
        self._dispatcher = dispatcher
        self._scorers = scorers
        self._on_event = on_event
        self._windows = {name: FailureWindow(column.failure_window) for name, column in config.columns.items()}
        self._outages: dict[str, tuple[float, float]] = {}  # when one that did not end began, and was last seen
        self.interrupted = asyncio.Event()

    async def review(self, micros: Sequence[MicroBatch], names: Sequence[str], *, patient: bool) -> str | None:
        """Enter a finished batch; pause for the rewards above their rate. The reason to stop, or None.

        A reward that became another one is not waited for: that does not pass.

        Args:
            patient: pause also, below the rate, for services that did not answer.
        """
        reasons = await asyncio.gather(*(self._review_one(micros, name, patient) for name in names))
        return "; ".join(reason for reason in reasons if reason) or None

    async def _review_one(self, micros: Sequence[MicroBatch], name: str, patient: bool) -> str | None:
        if name in self._scorers.refused:
            return self._scorers.refused[name]
        window, limit = self._windows[name], self._config.columns[name].max_failure_rate
        window.add(_answers(micros, name))
        bearable = window.rate <= limit
        if bearable and not (patient and any(answer.code in _OUTAGES for answer in _answers(micros, name))):
            self._outages.pop(name, None)
            return None
        caller = self._callers[self._config.columns[name].service]
        urls = ", ".join(endpoint.url for endpoint in caller.pool.endpoints)
        state = f"{window.rate:.0%} of the last {len(window)} scores failed (max_failure_rate {limit:.0%}, at {urls})"
        self._on_event(RewardEvent("pause", name, f"{state}; waiting for service {caller.name}"))
        started = time.monotonic()
        problem = await self._wait(name, caller)
        if problem is None:
            self._on_event(
                RewardEvent(
                    "resume", name, f"service {caller.name} scores again after {time.monotonic() - started:.1f} s"
                )
            )
            await self._ask_again(micros, name)
            if name in self._scorers.refused:
                return self._scorers.refused[name]
            # The outage is over: it must not count against the scores that come now.
            window.clear()
            window.add(_answers(micros, name))
            if window.rate <= limit:
                return None
            problem = (
                f"the service is ready and the canary scores, yet {window.rate:.0%} of this step's {len(window)} scores "
                f"failed again ({_first_failure(micros, name)})"
            )
        if bearable:
            return None
        reason = (
            f"reward {name}: {state}; {problem}. Look at the log of service {caller.name}, then start the run again: "
            f"it goes on from its checkpoint. To wait longer or to bear more failures raise "
            f"rewards.columns.{name}.patience_s or .max_failure_rate"
        )
        self._on_event(RewardEvent("stop", name, reason))
        return reason

    async def _wait(self, name: str, caller: ServiceCaller) -> str | None:
        """Wait until a URL is ready and scores the canary. None then; else why the wait ended.

        An outage that has used its patience up is looked at once: a service that is ready again has as long for the canary.
        """
        patience_s, now = self._config.columns[name].patience_s, time.monotonic()
        began, seen = self._outages.pop(name, (now, now))
        began = began if now - seen <= patience_s else now
        deadline = began + patience_s
        canary_by = deadline if deadline > now else now + patience_s
        waiting = asyncio.ensure_future(self._any_url_scores(name, caller, deadline, canary_by))
        interrupted = asyncio.ensure_future(self.interrupted.wait())
        await asyncio.wait({waiting, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        interrupted.cancel()
        if not waiting.done():
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            return "the wait was interrupted"
        problem = waiting.result()
        if problem is not None:
            self._outages[name] = began, time.monotonic()
        return problem and f"it did not come back within patience_s = {patience_s:g} s: {problem}"

    async def _any_url_scores(self, name: str, caller: ServiceCaller, deadline: float, canary_by: float) -> str | None:
        column = self._config.columns[name]
        line = WaitingLine(name, f"service {caller.name}", deadline - time.monotonic(), self._on_event)
        while True:
            problems = []
            for endpoint in caller.pool.endpoints:
                remaining = deadline - time.monotonic()
                try:
                    await wait_ready(caller, endpoint.url, max(POLL_S, min(remaining, 4 * POLL_S)))
                    if column.canary != "none":
                        texts = name in self._texts
                        await check_canary(caller, endpoint, name, column, canary_by, self._on_event, texts=texts)
                except RewardServiceError as error:
                    problems.append(str(error))
                else:
                    caller.pool.reset()
                    return None
            if time.monotonic() + POLL_S >= deadline:
                return "; ".join(problems)
            line.look("; ".join(problems))
            await asyncio.sleep(POLL_S)

    async def _ask_again(self, micros: Sequence[MicroBatch], name: str) -> None:
        failed = [micro for micro in micros if any(answer.failed for answer in micro.answers.get(name, {}).values())]
        now = time.monotonic()
        await asyncio.gather(*(self._dispatcher.score(micro, [name], now) for micro in failed))


def _answers(micros: Sequence[MicroBatch], name: str) -> list[Answer]:
    """In the order of submission, so that the window does not depend on who answered first."""
    return [micro.answers[name][sample.id] for micro in micros if name in micro.asked for sample in micro.asked[name]]


def _first_failure(micros: Sequence[MicroBatch], name: str) -> str:
    answer = next(answer for answer in _answers(micros, name) if answer.failed)
    return f"{answer.code}: {answer.message}"
