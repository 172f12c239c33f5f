"""The training loop: while steps remain, take one, record it, save, report. What a step is, the program says."""

from __future__ import annotations

from trainer.config import Config
from trainer.processes.stopping import StopSignals
from trainer.programs.assemble import assemble, is_finished
from trainer.programs.session import Row, Session
from trainer.types import StopTrainingError


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
    with assemble(config, signals) as program:
        session, stopped, midway = program.session, None, False
        try:
            if session.row is not None:  # of step 0, or of a step whose evaluation an earlier start could not finish
                session.record(session.row)
            while session.step < config.max_steps and not session.stop_requested():
                row = program.step()
                if row is None:
                    break
                session.row = row
                keep_step(session, row)
                if session.step % config.logging.report_every == 0 and session.step < config.max_steps:
                    session.report.begin()
        except StopTrainingError as error:
            stopped, midway = str(error), error.midway
            if not session.signals.asked:
                session.flight.write(error)
        terminated = session.stop_requested()
        if not midway:
            session.save()
        session.saver.wait()
        if session.step == config.max_steps and not stopped:
            program.end()
        session.finish(stopped)
        return 1 if stopped and not terminated else 0


def keep_step(session: Session, row: Row) -> None:
    """Save, evaluate and record the step that was just made, each where it is due.

    Saved first: an evaluation may take longer than whoever ends the process is willing to wait. A start that goes on from
    there makes the evaluation; after the last step, which has no later checkpoint, `train` saves its results, too.
    """
    last = session.step == session.config.max_steps
    to_save = last or session.step % session.config.checkpoint.save_every == 0
    is_evaluated = session.evaluator.due(session.step)
    if to_save and is_evaluated:
        session.save()
    session.record(row)
    session.saver.poll(session.evaluator.pending_step)
    if to_save and not is_evaluated and not last:
        session.save()
