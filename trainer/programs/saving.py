"""Saves a run and takes it up again: what belongs to its state, and how ranks agree on a checkpoint to go on from."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointWriter,
    DamagedError,
    Retention,
    UnreadableError,
    begins_at,
    find_resume,
    set_aside_after,
    tidy,
)
from trainer.config import Config
from trainer.processes.distributed import World
from trainer.programs.scorer_records import scorer_records

if TYPE_CHECKING:
    from trainer.programs.assemble import Run

_READ_TRIES, _READ_PAUSE_S = 13, 5.0  # a minute: as long as a network file system's clients keep old listings


class Saver:
    """Writes a run's checkpoints in the background and knows which of them stay."""

    def __init__(self, config: Config, group: World) -> None:
        folder = config.run_dir / "checkpoints"
        self.retention = Retention(folder, config.checkpoint)
        self.writer = CheckpointWriter(folder, group, self.retention)
        self._keeps_best = config.checkpoint.keep_best is not None
        self._saved = ""  # the state that was saved last
        self._observed = False  # a row since the last look at which checkpoints stay
        self._blocked_s = 0.0

    def observe(self, row: dict[str, float | None]) -> None:
        """Take note of the metric that tells the best checkpoints; add to the row how long saving held training up.

        Raises:
            ConfigError: checkpoint.keep_best names a metric that this run does not measure.
        """
        if self._blocked_s:
            row["time/checkpoint"], self._blocked_s = self._blocked_s, 0.0
        self.retention.observe(row)
        self._observed = self._keeps_best

    def save(self, run: Run) -> None:
        """Copy the state after `step` steps and begin to write it; weights that are not finite stay unwritten.

        Raises:
            CheckpointError: the save before failed, on any rank.
        """
        started = time.perf_counter()
        tree = _state(run)
        run.recorder.write_scorers({key: tree[key] for key in ("scorers", "changes")})
        state = json.dumps(tree, indent=1)
        if state != self._saved:
            parameters = _share(run)
            if parameters is None:
                run.recorder.note(f"the weights after step {run.step} are not finite: they were not saved")
                return
            self.writer.begin(run.step, parameters, _random_state(run.world), state, run.evaluator.pending_step)
            self._saved = state
        self._blocked_s += time.perf_counter() - started

    def poll(self, pending: int | None) -> None:
        """At a step boundary: raise CheckpointError on all ranks when the save on its way failed on any.

        A step is saved before it is evaluated, so what is best may have changed since.

        Args:
            pending: see `Retention.apply`.
        """
        self.writer.poll()
        if self._observed and self.writer.idle:
            self._observed = False
            if self.writer.world.is_main:
                self.retention.apply(pending)

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
        "row": _without_clock(run.row),
        **scorer_records(run.client, run.world),
        "evaluation": run.evaluator.state_dict(),
    }


def _without_clock(row: dict[str, float | None] | None) -> dict[str, float | None] | None:
    """The row without what its own saving took: with it the state that was just saved would be another."""
    return row and {key: value for key, value in row.items() if key != "time/checkpoint"}


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

    But for one that was named by its path, a damaged or incomplete checkpoint is passed over for the next older one. One
    that cannot be read, on any rank, is waited for: a restart often meets a file system that is still recovering.

    Returns:
        The checkpoint, None for a fresh start, and a sentence for each that was passed over.

    Raises:
        CheckpointError: none of those that are there is usable, or an explicit path is not.
    """
    folder = config.run_dir / "checkpoints"
    if group.is_main:
        tidy(folder)
    group.barrier()
    candidates = _candidates(config, group, folder)
    passed_over: list[str] = []
    for path in candidates:
        checkpoint, problem = _examine(path, group)
        if problem is None:
            return checkpoint, passed_over
        if path == Path(config.resume):
            raise CheckpointError(problem)
        passed_over.append(f"passed over: {problem}")
    if candidates:
        raise CheckpointError(
            f"none of the {len(candidates)} checkpoints under {folder} is usable; {passed_over[0]}; delete them to start "
            "anew"
        )
    return None, []


def _candidates(config: Config, group: World, folder: Path) -> list[Path]:
    """Rank 0's list: on a network file system another rank's may be of a minute ago."""
    named, error = [], None
    if group.is_main:
        try:
            named = [str(path) for path in find_resume(config.resume, folder)]
        except (CheckpointError, OSError) as problem:
            error = str(problem)
    named, error = group.gather([named, error])[0]
    if error is not None:
        raise CheckpointError(error)
    seen = group.gather(folder.is_dir())
    if any(seen) and not all(seen):
        ranks = [rank for rank, sees in enumerate(seen) if not sees]
        raise CheckpointError(
            f"ranks {ranks} do not see {folder.absolute()}, others do: output_dir must be one folder that all nodes share"
        )
    return [Path(path) for path in named]


def _examine(path: Path, group: World) -> tuple[Checkpoint | None, str | None]:
    """The checkpoint, or on all ranks what is damaged of it on the first that found something.

    Raises:
        CheckpointError: on all ranks, where it is of another version, or cannot be read for a minute.
    """
    for left in reversed(range(_READ_TRIES)):
        checkpoint, report = None, ["", ""]
        try:
            checkpoint = Checkpoint.open(path)
            checkpoint.verify(share=(group.rank, group.size))
        except CheckpointError as error:
            report = [type(error).__name__, str(error)]
        found: dict[str, str] = {}
        for kind, text in group.gather(report):
            found.setdefault(kind, text)
        found.pop("", None)
        if not found:
            return checkpoint, None
        if text := found.get(CheckpointError.__name__):
            raise CheckpointError(text)
        if UnreadableError.__name__ not in found:
            return None, found[DamagedError.__name__]
        if left and group.is_main:
            print(f"{found[UnreadableError.__name__]}; trying again in {_READ_PAUSE_S:g} s", flush=True)
        time.sleep(_READ_PAUSE_S if left else 0)
    raise CheckpointError(
        f"{found[UnreadableError.__name__]}; nothing was deleted: start again when the file system is well, and see that "
        "output_dir is one folder that all nodes share; or move that checkpoint away to go on from an older one"
    )


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Take over everything a checkpoint holds; those of later steps are set aside until a new one is whole.

    Raises:
        CheckpointError: it is of another model or other columns of rewards.
        RewardServiceError: a column is scored by another scorer, and its `on_change` is stop.
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
    for name in run.client.go_on(state.get("scorers", {}), state.get("changes", ()), checkpoint.step):
        run.spread.forget(list(run.config.rewards.columns).index(name))
    checkpoint.close()
    run.position = state["sampler"]
    run.sampler.load_state_dict(run.position)
    run.totals = type(run.totals)(**state["totals"])
    run.step, run.row = checkpoint.step, state["row"]
    run.evaluator.load_state_dict(state["evaluation"], run.step)
    run.saver.retention.forget_after(run.step)
    run.saver.retention.began_at = run.step
    if run.world.is_main:
        set_aside_after(run.config.run_dir / "checkpoints", run.step)


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
