"""The training loop: draw prompts, sample, score, advantages, update, record.

Axes: P prompts, G group, B = P*G samples of this rank, S trained steps, R rewards.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import wait

from torch import Tensor

from trainer.advantages import ESTIMATORS, RunningSpread
from trainer.config import Config
from trainer.evaluation import rollout_statistics
from trainer.processes.stopping import StopSignals
from trainer.programs.assemble import Run, assemble, is_finished
from trainer.programs.rollout import Drawn, roll_out
from trainer.records.step_metrics import advantage_metrics, reward_metrics, wait_metrics
from trainer.types import Scores, StopTrainingError

LOOK_S = 0.1  # between two looks at whether all ranks have their scores, or are asked to stop
LATE_S = 5.0  # after a signal, a step whose rewards come within it is finished


def train(config: Config, signals: StopSignals | None = None) -> int:
    """Train to `config.max_steps`, from the newest checkpoint when there is one. Returns the process's exit code.

    0: finished, or saved after a signal of `STOP_SIGNALS`. 1: stopped for a reason that was printed; the state before it is
    saved where no update of the step was made.

    Args:
        signals: heard already; None: from here on.

    Raises:
        StartStoppedError: a signal came before there was anything to save.
    """
    if is_finished(config):
        print(f"{config.run_dir} is finished ({config.max_steps} steps): raise max_steps or choose another run_name")
        return 0
    with assemble(config, signals) as run:
        stopped, midway = None, False
        try:
            if run.row is not None:  # of step 0, or of a step whose evaluation an earlier start could not finish
                record(run, run.row)
            while run.step < config.max_steps and not run.stop_requested():
                row = train_step(run)
                if row is None:
                    break
                run.row = row
                keep_step(run, row)
                if run.step % config.logging.report_every == 0 and run.step < config.max_steps:
                    run.build_report()
        except StopTrainingError as error:
            stopped, midway = str(error), error.midway
            if not run.signals.asked:
                run.flight.write(error)
        terminated = run.stop_requested()
        if not midway:
            run.saver.save(run)
        run.saver.wait()
        run.finish(stopped)
        return 1 if stopped and not terminated else 0


def train_step(run: Run) -> dict[str, float | None] | None:
    """One step, from prompts to changed weights. Returns its row of metrics.jsonl.

    None: asked to stop, and its rewards are late. Nothing has changed then, and the next start makes it again.
    """
    started, cpu = time.perf_counter(), time.process_time()
    drawn = run.drawn or roll_out(run, run.step)
    run.drawn = None
    if run.config.sampling.pipeline == "one_step_off" and run.step + 1 < run.config.max_steps:
        run.drawn = roll_out(run, run.step + 1)  # by the weights before this update, while this step is scored
    sampled = time.perf_counter()

    scores = await_scores(run, drawn)
    if scores is None:
        return None
    run.flight.add(run.step + 1, drawn, scores)
    run.stop_together(scores.stop_reason)
    collected = time.perf_counter()

    spread = run.spread.after(scores.scores_BR, scores.valid_BR, reduce=run.world.sum)
    adv_B, weight_B, row = advantages(run, scores, spread, drawn.group_B)
    run.flight.add_advantages(adv_B, weight_B, row)
    row |= run.updater.step(drawn.rollouts, adv_B, weight_B, run.step)
    run.ema.update()
    run.step, run.position, run.spread = run.step + 1, drawn.position, spread
    run.drawn = run.drawn and run.drawn.stale()
    updated = time.perf_counter()

    row |= reward_metrics(scores, run.world) | wait_metrics(scores, updated - started, run.world)
    row |= rollout_statistics(drawn.rollouts, run.world)
    row |= run.gauges.metrics(drawn, updated - collected)
    row |= {
        "step": run.step,
        "time/rollout": sampled - started,
        "time/reward_wait": collected - sampled,
        "time/update": updated - collected,
        "time/total": updated - started,
        "time/cpu": time.process_time() - cpu,
        "images_per_s": len(weight_B) * run.world.size / (updated - started),
    }
    run.totals.add(row)
    return dict(row)


def await_scores(run: Run, drawn: Drawn) -> Scores | None:
    """The scores of a step's rollouts when all ranks have theirs; None when a signal to stop came, and they are late.

    A judge may take as long as its deadline, which is longer than whoever ends the process will wait.
    """
    collecting = run.executor.submit(drawn.batch.collect)
    asked_at = math.inf
    while run.world.any(not collecting.done()):
        if run.signals.asked:
            asked_at = min(asked_at, time.monotonic())
        if run.world.any(time.monotonic() - asked_at > LATE_S):  # all ranks leave together
            return None
        wait([collecting], LOOK_S)
    return collecting.result()


def advantages(
    run: Run, scores: Scores, spread: RunningSpread, group_B: Tensor
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Clamped advantages and loss weights of this rank's samples, with their metrics over all ranks."""
    algorithm = run.config.algorithm
    std_floor_R = spread.floor(algorithm.std_floor) if algorithm.std_floor else None
    adv_B, weight_B = ESTIMATORS[algorithm.type](
        scores.scores_BR,
        scores.valid_BR,
        group_B,
        scores.weights_BR,
        eps=algorithm.eps,
        min_valid=algorithm.min_valid,
        std_floor_R=std_floor_R,
        reduce=run.world.sum,
    )
    clamped_B = adv_B.clamp(-algorithm.adv_clip, algorithm.adv_clip)
    return clamped_B, weight_B, advantage_metrics(scores, group_B, adv_B, weight_B, std_floor_R, algorithm, run.world)


def keep_step(run: Run, row: dict[str, float | None]) -> None:
    """Save, evaluate and record the step that was just made, each where it is due.

    Saved first: an evaluation may take longer than whoever ends the process is willing to wait. A start that goes on from
    there makes the evaluation; after the last step, which has no later checkpoint, `train` saves its results, too.
    """
    last = run.step == run.config.max_steps
    to_save = last or run.step % run.config.checkpoint.save_every == 0
    is_evaluated = run.evaluator.due(run.step)
    if to_save and is_evaluated:
        run.saver.save(run)
    record(run, row)
    run.saver.poll(run.evaluator.pending_step)
    if to_save and not is_evaluated and not last:
        run.saver.save(run)


def record(run: Run, row: dict[str, float | None]) -> None:
    """Write the row of the last step; where an evaluation is due, its results are in it and pictures are kept.

    Raises StopTrainingError when a reward or an alarm says so.
    """
    try:
        row |= evaluation_metrics(run)
    finally:
        run.saver.observe(row)
        run.recorder.record(row)  # the step was taken, whatever became of its evaluation
    run.row = row if run.evaluator.owes(run.step) else None
    run.stop_together(run.evaluator.stop_reason)


def evaluation_metrics(run: Run) -> dict[str, float]:
    """Begin the evaluation after `run.step` steps where it is due; the results of one that is done."""
    results = run.evaluator.after_step(run.step, run.stop_requested)
    if results is None:
        return {}
    run.totals.add_evaluation(results.step, results.means, results.row["time/evaluate"])
    return results.row
