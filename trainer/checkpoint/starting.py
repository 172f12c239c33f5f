"""How all ranks agree on the checkpoint that a start goes on from."""

from __future__ import annotations

import time
from pathlib import Path

from trainer.checkpoint.layout import CheckpointError, DamagedError, UnreadableError, find_resume, tidy
from trainer.checkpoint.reading import Checkpoint
from trainer.config import Config
from trainer.processes.distributed import World

_READ_TRIES, _READ_PAUSE_S = 13, 5.0  # a minute: as long as a network file system's clients keep old listings


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
