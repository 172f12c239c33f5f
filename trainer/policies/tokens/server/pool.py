"""Several servers as one: answers are dealt to those that hold the right weights, and a server that fails loses its share."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from trainer.policies.tokens.server.client import RefusedError, Server, ServerError
from trainer.policies.tokens.server.questions import UnfitAnswerError
from trainer.types import StopTrainingError

_T = TypeVar("_T")
LOOK_S = 0.5  # between two looks whether a server that failed can draw again
ATTEMPTS = 4  # at one answer, from servers that work
_UNSEEN = "it does not hold the current weights"


@dataclass
class _Member:
    """A server as one draw knows it.

    Attributes:
        reason: why it is not asked for answers; None while it is.
        said: whether that was said; a draw begins by looking at each server, and only what is found is said.
        lock: of the thread that looks whether it may be asked.
    """

    server: Server
    reason: str | None = _UNSEEN
    said: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Pool:
    """Asks servers for answers.

    Args:
        max_in_flight: how many answers one server draws at once.
        patience_s: how long nothing may be drawn because no server can.
        notify: takes a line when a server fails and when it is asked again.
        stop_asked: whether the run is to stop; a draw that waits for servers then gives up.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        max_in_flight: int,
        patience_s: float,
        notify: Callable[[str], None],
        stop_asked: Callable[[], bool],
    ) -> None:
        self.servers = tuple(servers)
        self._max_in_flight, self._patience_s = max_in_flight, patience_s
        self._notify, self._stop_asked = notify, stop_asked

    def draw(
        self, jobs: Sequence[Callable[[Server], _T]], holds: Callable[[Server], bool], what: Callable[[int], str]
    ) -> list[_T]:
        """The results of all jobs, in order.

        Args:
            jobs: each may be called for any server, several times; it raises ServerError, UnfitAnswerError or RefusedError.
            holds: whether a server has the weights that are drawn from. Each is looked at first, and again after it has failed:
                one whose push failed may die of any other request.
            what: the name of a job, for messages.

        Raises:
            StopTrainingError: no server could draw for `patience_s`; an answer was refused, or unfit `ATTEMPTS` times; or the
                run is to stop.
        """
        return _Draw(self, jobs, holds, what).run()


class _Draw(Generic[_T]):
    """One call of `Pool.draw`."""

    def __init__(
        self,
        pool: Pool,
        jobs: Sequence[Callable[[Server], _T]],
        holds: Callable[[Server], bool],
        what: Callable[[int], str],
    ) -> None:
        self.pool, self.jobs, self.holds, self.what = pool, jobs, holds, what
        self.members = [_Member(server) for server in pool.servers]
        self.waiting = deque(range(len(jobs)))
        self.results: dict[int, _T] = {}
        self.attempts = [0] * len(jobs)
        self.failure: str | None = None
        self.moved_at = time.monotonic()  # when a server last drew something, or could
        self.changed = threading.Condition()

    def run(self) -> list[_T]:
        # Evenly from the start: a server must not take what another one, as idle, could draw beside it.
        each = min(self.pool._max_in_flight, -(-len(self.jobs) // max(len(self.members), 1)))
        with ThreadPoolExecutor(max(each * len(self.members), 1), "rollout") as threads:
            for _ in range(each):
                for member in self.members:
                    threads.submit(self._work, member)
            with self.changed:
                while not self._over():
                    self.changed.wait(LOOK_S)
                    self._look()
        if self.failure is not None:
            raise StopTrainingError(self.failure)
        return [self.results[number] for number in range(len(self.jobs))]

    def _over(self) -> bool:
        return self.failure is not None or len(self.results) == len(self.jobs)

    def _look(self) -> None:
        """Give up where nothing can be drawn any more."""
        if any(member.reason is None for member in self.members):
            self.moved_at = time.monotonic()
            return
        reasons = "; ".join(f"{member.server.url}: {member.reason}" for member in self.members)
        if self.pool._stop_asked():
            self.failure = f"asked to stop while no rollout server could draw ({reasons})"
        elif time.monotonic() - self.moved_at > self.pool._patience_s:
            self.failure = (
                f"no rollout server could draw for sampling.vllm.patience_s = {self.pool._patience_s:g} s: {reasons}. Start them "
                "again and continue the run"
            )

    def _work(self, member: _Member) -> None:
        """Draw from one server until all is drawn."""
        while True:
            number = None
            with self.changed:
                if self._over():
                    return
                if member.reason is None and self.waiting:
                    number = self.waiting.popleft()
                elif member.reason is None or member.lock.locked():
                    self.changed.wait(LOOK_S)
                    continue
            if number is None:
                self._look_again(member)
            else:
                self._draw(member, number)

    def _draw(self, member: _Member, number: int) -> None:
        reason = unfit = refused = None
        try:
            result = self.jobs[number](member.server)
        except ServerError as error:
            reason = str(error)
        except UnfitAnswerError as error:
            unfit = f"{member.server.url}: {error}"
        except RefusedError as error:
            refused = str(error)
        except Exception as error:  # a thread's error is lost unless it is carried out
            refused = f"{type(error).__name__}: {error}"
        with self.changed:
            if reason is None and unfit is None and refused is None:
                self.results[number] = result
            elif refused is not None:
                self.failure = self.failure or f"{self.what(number)} cannot be drawn: {refused}"
            else:
                self.waiting.appendleft(number)
                self.attempts[number] += unfit is not None
                if self.attempts[number] >= ATTEMPTS:
                    self.failure = (
                        self.failure or f"{self.what(number)}: no answer of {ATTEMPTS} was fit to train on; {unfit}"
                    )
            if reason is not None:
                member.reason = reason
            self.changed.notify_all()
        if reason is not None:
            self._say(member)

    def _say(self, member: _Member) -> None:
        with self.changed:
            told, member.said = member.said, True
        if not told:
            self.pool._notify(f"rollout server {member.server.url} is left out, others draw its share: {member.reason}")

    def _look_again(self, member: _Member) -> None:
        """See whether a server that failed holds the weights now; one thread of it does so at a time."""
        if not member.lock.acquire(blocking=False):
            return
        try:
            back, found = False, _UNSEEN
            try:
                back = self.holds(member.server)
            except (ServerError, RefusedError) as error:
                found = str(error)
            with self.changed:
                if back:
                    member.reason, told, member.said = None, member.said, False
                    self.changed.notify_all()
                elif member.reason == _UNSEEN:
                    member.reason = found
        finally:
            member.lock.release()
        if not back:
            self._say(member)
            with self.changed:
                if not self._over():
                    self.changed.wait(LOOK_S)
        elif told:
            self.pool._notify(f"rollout server {member.server.url} has the current weights and draws again")
