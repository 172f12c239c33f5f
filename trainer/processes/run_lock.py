"""One trainer per run folder: two that write into the same one would mix their rows and checkpoints."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.config import ConfigError


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Make the run folder and hold `run_dir/.lock`. The system lets go of it when the process ends, however it ends.

    Raises:
        ConfigError: another process trains there, or the folder cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / ".lock").open("ab")
    except OSError as error:
        raise ConfigError(
            f"the run folder {run_dir} cannot be written: {error.strerror}; correct its owner, or set output_dir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process trains in {run_dir} now: wait for it, stop it, or choose another run_name"
            ) from error
        yield
