"""Stages of a training that is several runs: each recipe names the one before it, which leaves a model folder to start from.

What takes seconds to import is imported where it is used: a stage that is there costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from trainer.config import Config, ConfigError


def train_before(config: Config, recipe: Path, read: Callable[[Path], Config], run: Callable[[Path], int]) -> bool:
    """Train and export the stages before a recipe, as far as they are not there yet. Returns whether they all are now: a signal may
    have stopped one.

    Args:
        recipe: its file, for messages.
        read: a recipe, whose files need not be there yet.
        run: trains a recipe and exports what it trained; gives the exit code.

    Raises:
        ConfigError: the stage before exports nothing, it stopped, or it must be trained first and this is one of several processes,
            which can join each other but once.
    """
    if config.after is None:
        return True
    earlier = Path(config.after)
    before = read(earlier)
    if before.checkpoint.export is None:
        raise ConfigError(
            f"{recipe}: after = {earlier}, but that recipe has no checkpoint.export, so it leaves nothing to start from; set it there to "
            "the folder that policy.pretrained names here"
        )
    folder = Path(before.checkpoint.export)
    if folder.exists():
        return True
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"{recipe}: the stage before it has left nothing at {folder} yet, and several processes train one recipe at a time: train "
            f"{earlier} first, with the same command"
        )
    print(f"{recipe}: {folder} is not there, so {earlier} is trained first", flush=True)
    if not train_before(before, earlier, read, run):
        return False
    if code := run(earlier):
        raise ConfigError(
            f"{recipe}: {earlier}, the stage before it, ended with exit code {code}; see {before.run_dir}"
        )
    return folder.exists()


def export_trained(config: Config) -> int:
    """Write what `checkpoint.export` asks for, once all steps are made; one process does. Returns the exit code."""
    if config.checkpoint.export is None or os.environ.get("RANK", "0") != "0":
        return 0
    from trainer.programs.assemble import is_finished

    folder = Path(config.checkpoint.export)
    if not is_finished(config):
        return 0  # stopped by a signal; the next start goes on
    if folder.exists():
        print(f"checkpoint.export = {folder} is there; the trained model was not written again")
        return 0
    from trainer.export import export_run

    print(f"Wrote {export_run(config.run_dir, folder, to=config.policy.formats[0], dtype='float32')}")
    return 0
