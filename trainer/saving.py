"""Saves a run and takes it up again: what belongs to its state, and how ranks agree on a checkpoint to go on from."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointWriter,
    Retention,
    begins_at,
    discard_after,
    find_resume,
    tidy,
)
from trainer.config import Config
from trainer.distributed import World

if TYPE_CHECKING:
    from trainer.assemble import Run


class Saver:
    """Writes a run's checkpoints in the background and knows which of them stay."""

    def __init__(self, config: Config, group: World) -> None:
        folder = config.run_dir / "checkpoints"
        self.retention = Retention(folder, config.checkpoint)
        self.writer = CheckpointWriter(folder, group, self.retention)
        self._saved = ""  # the state that was saved last
        self._blocked_s = 0.0

    def observe(self, row: dict[str, float | None]) -> None:
        """Take note of the metric that tells the best checkpoints; add to the row how long saving held training up.

        Raises:
            ConfigError: checkpoint.keep_best names a metric that this run does not measure.
        """
        if self._blocked_s:
            row["time/checkpoint"], self._blocked_s = self._blocked_s, 0.0
        self.retention.observe(row)

    def save(self, run: Run) -> None:
        """Copy the state after `step` steps and begin to write it; weights that are not finite stay unwritten.

        Raises:
            CheckpointError: the save before failed, on any rank.
        """
        started = time.perf_counter()
        state = json.dumps(_state(run), indent=1)
        if state != self._saved:
            parameters = _share(run)
            if parameters is None:
                run.recorder.note(f"the weights after step {run.step} are not finite: they were not saved")
                return
            self.writer.begin(run.step, parameters, _random_state(run.world), state, run.evaluator.pending_step)
            self._saved = state
        self._blocked_s += time.perf_counter() - started

    def poll(self) -> None:
        """At a step boundary: raise CheckpointError on all ranks when the save on its way failed on any."""
        self.writer.poll()

    def wait(self) -> None:
        """Until what was begun is written. Raises as `poll` does."""
        self.writer.wait()

    def close(self) -> None:
        """For any end of the run, an exception's too: let the save on its way end where it can."""
        self.writer.close()


def _state(run: Run) -> dict[str, Any]:
    """What is saved besides tensors: JSON."""
    return {
        "step": run.step,
        "ranks": run.world.size,
        "begun_at": begins_at(run.config.resume),
        "sampler": run.position,
        "columns": list(run.config.rewards.columns),
        "spread": {key: value.tolist() for key, value in run.spread.state_dict().items()},
        "totals": vars(run.totals),
        "row": run.row,
        "revisions": run.client.revisions,
        "evaluation": run.evaluator.state_dict(),
    }


def _share(run: Run) -> dict[str, dict[str, Tensor]] | None:
    """This rank's share of the parameters, all their tensors by kind; None when a weight is not finite.

    Every rank reads every parameter, because reading may be a collective. Each goes to the rank with the fewest elements
    so far, which all ranks compute alike; the others copy nothing.
    """
    loads, kept, finite = [0] * run.world.size, {}, True
    for name in run.engine.names:
        owner = loads.index(min(loads))
        loads[owner] += run.engine.numel(name)
        keep = owner == run.world.rank
        tensors = run.engine.read(name, keep=keep) | run.updater.read(name, keep=keep)
        average = run.ema.read(name, keep=keep)
        if average is not None:
            finite = finite and bool(tensors["weight"].isfinite().all())
            kept[name] = {kind: tensor.contiguous() for kind, tensor in {**tensors, "average": average}.items()}
    return None if run.world.any(not finite) else kept


def _random_state(group: World) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if group.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(group.device)
    return states


def find_start(config: Config, group: World) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint that `config.resume` names, checked by all ranks together, each a share of its files.

    But for one that was named by its path, a damaged or incomplete checkpoint is passed over for the next older one.

    Returns:
        The checkpoint, None for a fresh start, and a sentence for each that was passed over.

    Raises:
        CheckpointError: none of those that are there is usable, or an explicit path is not.
    """
    folder = config.run_dir / "checkpoints"
    if group.is_main:
        tidy(folder)
    group.barrier()
    candidates = find_resume(config.resume, folder)
    if len({tuple(seen) for seen in group.gather([str(path) for path in candidates])}) > 1:
        raise CheckpointError(
            f"the ranks see different checkpoints under {folder.absolute()}: output_dir must be one folder that all "
            "nodes share"
        )
    passed_over: list[str] = []
    for path in candidates:
        checkpoint, problem = None, None
        try:
            checkpoint = Checkpoint.open(path)
            checkpoint.verify(share=(group.rank, group.size))
        except CheckpointError as error:
            problem = str(error)
        problems = [each for each in group.gather(problem) if each]
        if not problems:
            return checkpoint, passed_over
        if path == Path(config.resume):
            raise CheckpointError(problems[0])
        passed_over.append(f"passed over: {problems[0]}")
    if candidates:
        raise CheckpointError(
            f"none of the {len(candidates)} checkpoints under {folder} is usable; {passed_over[0]}; delete them to start "
            "anew"
        )
    return None, []


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Take over everything a checkpoint holds; those of later steps are given up.

    Raises:
        CheckpointError: it is of another model or other rewards.
        DataError: it is of other prompts.
    """
    state = checkpoint.state
    try:
        _check_same_columns(state["columns"], list(run.config.rewards.columns))
        _restore_tensors(run, checkpoint)
        spread = {key: torch.tensor(value, dtype=torch.float64) for key, value in state["spread"].items()}
        run.spread.load_state_dict(spread)
    except (KeyError, RuntimeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} does not fit this config ({error}): put policy and "
            "rewards.columns back as they were, or choose another run_name"
        ) from error
    checkpoint.close()
    run.position = state["sampler"]
    run.sampler.load_state_dict(run.position)
    run.totals = type(run.totals)(**state["totals"])
    run.step, run.row = checkpoint.step, state["row"]
    run.evaluator.load_state_dict(state["evaluation"], run.step)
    run.saver.retention.forget_after(run.step)
    if run.world.is_main:
        discard_after(run.config.run_dir / "checkpoints", run.step)
    for sentence in _changed_revisions(state["revisions"], run.client.revisions):
        run.recorder.note(sentence)


def _check_same_columns(before: list[str], now: list[str]) -> None:
    if before != now:  # the running spread is kept in their order
        raise ValueError(f"rewards.columns were {', '.join(before)}, now {', '.join(now)}")


def _restore_tensors(run: Run, checkpoint: Checkpoint) -> None:
    if different := sorted(set(run.engine.names) ^ set(checkpoint.names)):
        raise ValueError(f"{len(different)} trained parameters differ, the first is {different[0]!r}")
    for name in run.engine.names:
        tensors = checkpoint.read(name)
        run.ema.write(name, tensors.pop("average"))
        run.updater.write(name, tensors)
        run.engine.write(name, tensors)
    random_state = checkpoint.random_state(run.world.rank)
    torch.set_rng_state(random_state["cpu"])
    if "cuda" in random_state and run.world.device.type == "cuda":
        torch.cuda.set_rng_state(random_state["cuda"], run.world.device)


def _changed_revisions(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        f"reward {name} has the revision {revision}; the run was trained against {before[name]} so far, and their scores "
        "may not be comparable"
        for name, revision in now.items()
        if before.get(name, revision) != revision
    ]
