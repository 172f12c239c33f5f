"""What every program of a run shares, whatever its step is: model, optimizer, average, evaluation, records, checkpoints."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from trainer.checkpoint.saver import Kept, Saver, Stateful
from trainer.config import Config
from trainer.engine import Engine
from trainer.evaluation.evaluator import Evaluator
from trainer.policies.base import Policy
from trainer.processes.distributed import World
from trainer.processes.stopping import StopSignals
from trainer.programs.closing import closing_lines
from trainer.programs.reporting import ReportBuilder
from trainer.programs.scorer_records import ScorerRecords
from trainer.records import keys
from trainer.records.flight.recorder import FlightRecorder
from trainer.records.hardware import Gauges
from trainer.records.recorder import Recorder
from trainer.rewards import RewardClient
from trainer.types import StopTrainingError
from trainer.update.ema import Ema

if TYPE_CHECKING:
    from trainer.programs.rollout_servers import RolloutServers

Row = dict[str, float | None]


@dataclass
class Totals:
    """Sums over the whole run, kept through restarts; summary.json is made of them."""

    train_s: float = 0.0
    evaluate_s: float = 0.0
    reward_wait_s: float = 0.0
    failed: dict[str, dict[str, int]] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)

    def add(self, row: Mapping[str, float | None]) -> None:
        """Take in a training step's row."""
        self.train_s += row["time/total"] or 0.0
        self.reward_wait_s += row.get("time/reward_wait") or 0.0
        for key, count in row.items():
            if (read := keys.failed_of(key)) is not None and count:
                name, code = read
                codes = self.failed.setdefault(name, {})
                codes[code] = codes.get(code, 0) + int(count)

    def add_evaluation(self, step: int, means: dict[str, float], seconds: float) -> None:
        """Take in an evaluation after `step` steps; step 0 is `before`."""
        self.evaluate_s += seconds
        if step == 0:
            self.before = dict(means)
        self.after = dict(means)

    def state_dict(self) -> dict[str, Any]:
        return vars(self)

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        vars(self).update(vars(Totals(**state)))


@dataclass
class Session:
    """The half of a run that does not depend on what a step is.

    Attributes:
        client: the rewards; evaluation asks for them in every program, training in some.
        executor: its threads wait for scores.
        closing: what is taken down when the run ends, whatever happens; a program adds what it opened.
        servers: those that draw answers with copies of the weights; None where the policy draws.
        step: the number of finished steps.
        row: the last step's row of metrics.jsonl as long as its evaluation is not done; a checkpoint keeps it.
        saver: set once the program is there, which has states of its own to be saved.
    """

    config: Config
    world: World
    policy: Policy
    engine: Engine
    ema: Ema
    evaluator: Evaluator
    client: RewardClient
    scorers: ScorerRecords
    recorder: Recorder
    report: ReportBuilder
    flight: FlightRecorder
    gauges: Gauges
    signals: StopSignals
    executor: Executor
    closing: ExitStack
    servers: RolloutServers | None = None
    step: int = 0
    row: Row | None = field(default_factory=lambda: Row(step=0))
    totals: Totals = field(default_factory=Totals)
    saver: Saver = field(init=False)

    def states(self) -> dict[str, Stateful]:
        """What a checkpoint keeps of it. The evaluation comes last: restoring it may begin to score images."""
        return {
            "totals": self.totals,
            "row": Kept(lambda: _without_clock(self.row), lambda row: setattr(self, "row", row)),
            **self.scorers.states(lambda: self.step),
            "evaluation": Kept(
                self.evaluator.state_dict, lambda state: self.evaluator.load_state_dict(state, self.step)
            ),
        }

    def stop_requested(self) -> bool:
        """Whether a signal to stop reached any rank."""
        return self.world.any(self.signals.asked)

    def weights_changed(self, row: Mapping[str, float | None]) -> dict[str, float]:
        """Called after every update, with its row: whoever draws with copies of the weights must get them. What is shown of it."""
        return {} if self.servers is None else self.servers.after_update(self.step, row)

    def stop_together(self, reason: str | None) -> None:
        """Raise StopTrainingError on every rank when any rank has a reason."""
        reasons = [r for r in self.world.gather(reason) if r]
        if reasons:
            raise StopTrainingError(reasons[0])

    def save(self) -> None:
        """Begin to write a checkpoint of the state as it is. Raises CheckpointError: the one before failed."""
        self.scorers.take()
        self.saver.save(self.step, self.evaluator.pending_step)

    def record(self, row: Row) -> None:
        """Write the row of the last step; where an evaluation is due, its results are in it and images are kept.

        Raises:
            StopTrainingError: a reward or an alarm says so.
        """
        try:
            row |= self._evaluate()
        finally:
            self.saver.observe(row)
            self.recorder.record(row)  # the step was taken, whatever became of its evaluation
        self.row = row if self.evaluator.owes(self.step) else None
        self.stop_together(self.evaluator.stop_reason or (None if self.servers is None else self.servers.stop_reason))

    def _evaluate(self) -> dict[str, float]:
        """Begin the evaluation after `step` steps where it is due; the results of one that is done."""
        results = self.evaluator.after_step(self.step, self.stop_requested)
        if results is None:
            return {}
        self.totals.add_evaluation(results.step, results.means, results.row["time/evaluate"])
        return results.row

    def finish(self, stopped: str | None = None) -> None:
        """Write summary.json and the report; say where they are."""
        totals = self.totals
        summary = {
            "eval": {"before": totals.before, "after": totals.after, **self.evaluator.intervals()},
            "steps": self.step,
            "wall_s": totals.train_s + totals.evaluate_s,
            "train_s": totals.train_s,
            "evaluate_s": totals.evaluate_s,
            "reward_wait_share": totals.reward_wait_s / totals.train_s if totals.train_s else 0.0,
            "failed_rewards": sum(sum(codes.values()) for codes in totals.failed.values()),
            "failed_by_reward": totals.failed,
            "seed": self.config.seed,
            "eval_prompts": sum(len(each.prompts) for each in self.evaluator.sets),
            "stopped": stopped,
            "owed": None if self.row is None else self.step,
            "about_base": self.policy.about,
            "hardware": hardware(self.world),
        }
        self.recorder.write_summary(summary)
        self.report.finish()
        self.recorder.farewell(closing_lines(self.config, summary))


def hardware(world: World) -> str:
    """The machine in a line."""
    if world.device.type == "cuda":
        return f"{world.size} x {torch.cuda.get_device_name(world.device)}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} torch threads per process"


def _without_clock(row: Row | None) -> Row | None:
    """The row without what its own saving took: with it the state that was just saved would be another."""
    return row and {key: value for key, value in row.items() if key != "time/checkpoint"}
