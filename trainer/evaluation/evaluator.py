"""Evaluates while training goes on: what is due when, scoring in the background, and what is made of the results."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.evaluation.alarms import REMEDY
from trainer.evaluation.files import (
    discard_after,
    discard_samples,
    has_samples,
    read_outcomes,
    step_dir,
    steps_with_files,
)
from trainer.evaluation.results import Results
from trainer.evaluation.rounds import Rounds, Scored
from trainer.processes.distributed import World
from trainer.records.recorder import Recorder
from trainer.types import StopTrainingError

_POLL_S = 1.0


@dataclass
class Pending:
    """An evaluation whose samples are being scored."""

    step: int
    scored: Future[Scored]
    seconds: float


class Evaluator:
    """The evaluations of one run.

    With `evaluation.wait` false the samples are written to the run folder and scored by a thread of `executor`, at most
    `max_in_flight` at a time. Results are taken up when they are there, at the latest before the next evaluation and
    before the last step, and come in the row of that step, with `eval/step` telling whose weights they are of. The last
    evaluation is always waited for; the step before it has none of its own, so that no row holds the results of two.

    Args:
        averaged: makes the policy hold the averaged weights inside a `with` block.
        config: `run_dir` is where `eval/` is.
    """

    def __init__(
        self,
        rounds: Rounds,
        config: Config,
        averaged: Callable[[], AbstractContextManager[None]],
        world: World,
        recorder: Recorder,
        executor: Executor,
    ) -> None:
        self.sets = rounds.sets
        self.last: dict[str, float] = {}  # row entries of the last finished evaluation
        self.stop_reason: str | None = None  # of an alarm with `action: stop`
        self._rounds, self._config, self._averaged = rounds, config, averaged
        self._world, self._recorder, self._executor = world, recorder, executor
        self._pending: Pending | None = None
        self._settled: int | None = None  # the step of the last finished evaluation
        self._best: tuple[int, float] | None = None
        self._saved: int | None = None  # the pending step that the last checkpoint names; its samples must stay

    @property
    def pending_step(self) -> int | None:
        """The step whose samples are being scored."""
        return None if self._pending is None else self._pending.step

    def due(self, step: int) -> bool:
        """Whether the weights after `step` steps are evaluated: at the start, at the end, and in between."""
        last = self._config.max_steps
        if not self.sets or step in (0, last):
            return bool(self.sets)
        return step % self._config.evaluation.every == 0 and (self._config.evaluation.wait or step != last - 1)

    def owes(self, step: int) -> bool:
        """Whether a result belongs into this step's row that is not there: the row must be written again after a restart.

        That is its own evaluation's, or before the last step that of the one being scored: the last row has its own.
        """
        awaited = self._pending is not None and step == self._config.max_steps - 1
        return awaited or (self.due(step) and self._settled != step)

    def after_step(self, step: int, stop_requested: Callable[[], bool]) -> Results | None:
        """Take up the results that are there, begin what is due. All ranks together.

        Returns:
            The results for this step's row, if there are any. An evaluation that a stop interrupts has none and is owed.

        Raises:
            StopTrainingError: a reward says so; the evaluation is made up for when the run goes on.
        """
        last, due = self._config.max_steps, self.due(step)
        results = self._take_up(must=due or step >= last - 1, stop_requested=stop_requested)
        if due and self._pending is None:
            if self._config.evaluation.wait or step >= last - 1:
                return self._evaluate(step, stop_requested)
            self._begin(step, stop_requested)
        return results

    def intervals(self) -> dict[str, dict[str, Any]]:
        """Of the last evaluation, for summary.json: `interval` [low, high] of each mean, and `gain` since the start."""
        gains = {
            name: [self.last[f"{name}/{end}"] for end in ("gain", "gain_low", "gain_high")]
            for key in self.last
            if (name := key.removesuffix("/gain_low")) != key
        }
        means = {
            name: [self.last[f"{name}/low"], self.last[f"{name}/high"]]
            for key in self.last
            if (name := key.removesuffix("/low")) != key
        }
        return {
            "interval": {name.removeprefix("eval/"): ends for name, ends in means.items()},
            "gain": {
                name.removeprefix("eval/"): {"gain": gain, "low": low, "high": high}
                for name, (gain, low, high) in gains.items()
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """JSON for a checkpoint; the scores themselves are in the run folder."""
        self._saved = self.pending_step
        return {"pending": self.pending_step, "best": self._best, "last": self.last}

    def begin_anew(self) -> None:
        """Remove what an earlier start left that was never saved."""
        if self._world.is_main:
            discard_after(self._config.run_dir, -1)
        self._world.barrier()  # no rank may write before what is old is gone

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on from a checkpoint of `step`: evaluations of later steps are given up, a pending one is sent again."""
        self._best = None if state["best"] is None else (int(state["best"][0]), float(state["best"][1]))
        self.last, pending = dict(state["last"]), state["pending"]
        if self._world.is_main:
            discard_after(self._config.run_dir, step)
        if pending is None or pending == step:  # of this very step: its row is still to be written, and starts it anew
            return
        if self._world.any(not has_samples(self._folder(pending), self.sets)):
            self._recorder.note(f"samples of the evaluation after step {pending} are gone: it has no results")
            return
        self._saved = pending
        self._score_later(pending, 0.0)

    def _evaluate(self, step: int, stop_requested: Callable[[], bool]) -> Results | None:
        started = time.perf_counter()
        with self._averaged():
            scored = self._rounds.draw_and_score(
                self._folder(step), step, final=self._final(step), stop_requested=stop_requested
            )
        if scored is None:
            self._give_up(step)
            return None
        return self._finish(step, scored, started)

    def _begin(self, step: int, stop_requested: Callable[[], bool]) -> None:
        """Draw the samples and leave scoring to the executor."""
        started = time.perf_counter()
        with self._averaged():
            drawn = self._rounds.draw_to(self._folder(step), stop_requested)
        if drawn:
            self._score_later(step, time.perf_counter() - started)
        else:
            self._give_up(step)

    def _give_up(self, step: int) -> None:
        self._recorder.note(f"The evaluation after step {step} is left unfinished; the next start makes it")

    def _score_later(self, step: int, seconds: float) -> None:
        scored = self._executor.submit(self._rounds.score_saved, self._folder(step), step, final=self._final(step))
        self._pending = Pending(step, scored, seconds)

    def _take_up(self, *, must: bool, stop_requested: Callable[[], bool]) -> Results | None:
        """The results of the pending evaluation when all ranks have theirs; waits for them when they `must` be there."""
        if self._pending is None:
            return None
        started = time.perf_counter()
        while self._world.any(not self._pending.scored.done()):
            if not must or stop_requested():
                return None
            wait([self._pending.scored], timeout=_POLL_S)
        problem = self._pending.scored.exception()
        problems = [each for each in self._world.gather(problem and f"{type(problem).__name__}: {problem}") if each]
        if problems:
            raise StopTrainingError(
                f"the samples of the evaluation after step {self._pending.step} could not be scored ({problems[0]}); it is "
                "made up for when the run goes on"
            )
        results = self._finish(self._pending.step, self._pending.scored.result(), started - self._pending.seconds)
        results.row["eval/step"] = float(self._pending.step)
        self._pending = None
        return results

    def _finish(self, step: int, scored: Scored, started: float) -> Results:
        """Put all ranks' outcomes together; write files; look for alarms."""
        start = [] if step == 0 else read_outcomes(self._folder(0))
        results = self._rounds.put_together(scored, self._folder(step), step, start)
        for alarm in results.alarms:
            self._recorder.note(f"ALARM {alarm.name} after step {step}: {alarm.text}")
        hacked = any(not alarm.is_own for alarm in results.alarms)  # what one of the user's own means is theirs to say
        if hacked:
            self._recorder.note(REMEDY)
        if results.alarms and self._config.evaluation.alarms.action == "stop":
            self.stop_reason = f"evaluation.alarms.action = stop, and after step {step}: {results.alarms[0].text}{f' {REMEDY}' * hacked}"
        self._recorder.save_samples(step, scored.shown)
        self.last = dict(results.row)
        self._settled = step
        self._keep_samples(step, results.best_of)
        results.row["time/evaluate"] = time.perf_counter() - started
        return results

    def _keep_samples(self, step: int, value: float | None) -> None:
        """Of the last two evaluations, of the best, and of one that a checkpoint would have to send again."""
        if value is not None and (self._best is None or value > self._best[1]):
            self._best = (step, value)
        if self._world.is_main:
            kept = [*steps_with_files(self._config.run_dir)[-2:], self._saved, self._best and self._best[0]]
            discard_samples(self._config.run_dir, [each for each in kept if each is not None])

    def _folder(self, step: int) -> Path:
        return step_dir(self._config.run_dir, step)

    def _final(self, step: int) -> bool:
        return step in (0, self._config.max_steps)
