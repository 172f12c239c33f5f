"""One trainer per run folder: two that write into the same one would mix their rows and checkpoints."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trainer.config import ConfigError

_TRIES, _PAUSE_S = 20, 0.05  # who only asks whether the lock is held has it for a moment


@dataclass(frozen=True)
class Words:
    """What a refusal says.

    Attributes:
        folder: what the folder is.
        does: what the other process does there.
        elsewhere: the remedies where the folder cannot be written, and where another process is there.
    """

    folder: str = "run folder"
    does: str = "trains"
    elsewhere: tuple[str, str] = ("set output_dir", "choose another run_name")


@contextmanager
def run_lock(run_dir: Path, words: Words = Words()) -> Iterator[None]:
    """Make the run folder and hold `run_dir/.lock`. The system lets go of it when the process ends, however it ends.

    Raises:
        ConfigError: another process trains there, or the folder cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / ".lock").open("ab")
    except OSError as error:
        raise ConfigError(
            f"the {words.folder} {run_dir} cannot be written: {error.strerror}; correct its owner, or {words.elsewhere[0]}"
        ) from error
    with file:
        for rest in reversed(range(_TRIES)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if not rest:
                    raise ConfigError(
                        f"another process {words.does} in {run_dir} now: wait for it, stop it, or {words.elsewhere[1]}"
                    ) from error
                time.sleep(_PAUSE_S)
        yield


def is_held(lock: BinaryIO) -> bool:
    """Whether a trainer holds the lock of a run, given its open file.

    The system tells only who tries: the lock is taken, together with others who ask, and let go at once. `run_lock` tries
    for a second, so a start that meets this moment is not refused.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(lock, fcntl.LOCK_UN)
    return False
