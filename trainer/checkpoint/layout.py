"""Where checkpoints lie and which of them stay.

    checkpoints/
      best                           JSON: the best checkpoint, and the values that say so
      step_000050/
        manifest.json                SHA-256 and size of every other file; which shard holds which parameter
        state.json                   step, sampler position, running spread, totals
        shard_00_of_04.safetensors   one per rank that wrote it: `<kind>/<parameter>`, and the rank's random state

A folder with a step's name is always whole: it is written as `.writing_...` and renamed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from trainer.config.base import UserError

_NAME = re.compile(r"^step_(\d{6,})$")
_REPLACED = ".replaced_"
_WRITING = ".writing_"
_REMOVED = ".removed_"
_ASIDE = ".aside_"


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be used; the message names it and the remedy."""


class DamagedError(CheckpointError):
    """Its files are not what was written: an older checkpoint may be taken."""


class UnreadableError(CheckpointError):
    """The file system does not give it now: it may be whole."""


def folder_name(step: int) -> str:
    """The name of the checkpoint after `step` steps."""
    return f"step_{step:06d}"


def writing_name(step: int, token: str) -> str:
    """The name while it is being written; `token` tells one attempt from another."""
    return f"{_WRITING}{folder_name(step)}.{token}"


def saved_step(path: Path) -> int:
    """The number of finished steps a checkpoint folder holds, from its name or its state."""
    match = _NAME.match(path.name)
    return int(match.group(1)) if match else int(json.loads((path / "state.json").read_text(encoding="utf-8"))["step"])


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints under `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match.group(1)), path) for path in folder.iterdir() if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found)]


def find_resume(resume: str, folder: Path) -> list[Path]:
    """The checkpoints that `resume` names, first choice first: newest to oldest for auto, none for never, or one path.

    A path says where a run begins or goes back to. Before it come the run's own checkpoints that were made since, so that
    the same command goes on when it is given again, by a launcher after a kill.

    Raises:
        CheckpointError: never, although the run folder holds checkpoints; or a path without a checkpoint.
    """
    existing = list_checkpoints(folder)
    if resume == "auto":
        return existing[::-1]
    if resume == "never":
        if existing:
            raise CheckpointError(
                f"{folder} already holds {len(existing)} checkpoints and resume is never: choose another run_name, "
                "delete the folder, or use resume=auto"
            )
        return []
    since = [path for path in existing[::-1] if _begun_at(path) == begins_at(resume)]
    there = (Path(resume) / "state.json").is_file()
    if not there and not since:
        raise CheckpointError(
            f"resume = {resume!r} is not a checkpoint folder (auto, never, or a path with state.json)"
        )
    return [*since, Path(resume)] if there else since


def begins_at(resume: str) -> str | None:
    """The path that `resume` gives, as a checkpoint's state keeps it; None for auto and never."""
    return None if resume in ("auto", "never") else str(Path(resume).absolute())


def _begun_at(path: Path) -> str | None:
    """Where the start that wrote a checkpoint had been told to begin; None for nowhere in particular, or a damaged one."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return None if state.get("begun_at") is None else str(state["begun_at"])
    except (OSError, ValueError, AttributeError):
        return None


def tidy(folder: Path) -> None:
    """Undo what a killed process left half done: unfinished folders go, a checkpoint that was moved aside comes back."""
    for path in folder.glob(f"{_REPLACED}*"):
        target = folder / path.name.removeprefix(_REPLACED)
        if target.exists():
            shutil.rmtree(path)
        else:
            path.rename(target)
    discard_unfinished(folder)


def discard_unfinished(folder: Path) -> None:
    """Delete what unfinished writes and removals left."""
    for path in [*folder.glob(f"{_WRITING}*"), *folder.glob(f"{_REMOVED}*")]:
        shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a checkpoint. It loses its name first, so that a kill leaves no half of it under a step's name."""
    removed = path.with_name(_REMOVED + path.name)
    shutil.rmtree(removed, ignore_errors=True)
    path.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)  # on NFS what another process reads stays for now, until `tidy`


def set_aside_after(folder: Path, step: int) -> None:
    """Take their names from checkpoints of steps after `step`: damaged ones, and those of a course the run went back from.
    They stay on disk until a newer one is whole (`discard_aside`)."""
    for path in list_checkpoints(folder):
        if saved_step(path) > step:
            aside = path.with_name(_ASIDE + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def discard_aside(folder: Path) -> None:
    """Delete what was set aside."""
    for path in folder.glob(f"{_ASIDE}*"):
        shutil.rmtree(path, ignore_errors=True)


def publish(written: Path, target: Path) -> None:
    """Rename a whole folder to its final name. A kill at any moment leaves the old or the new one, after `tidy`."""
    replaced = target.with_name(_REPLACED + target.name)
    if target.exists():  # saved again by a start that took no step
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    written.rename(target)
    flush(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all, flushed to disk."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    temporary.replace(path)


def flush(path: Path) -> None:
    """Force a file or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
