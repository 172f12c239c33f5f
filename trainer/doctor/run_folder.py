"""The run's folder: may it be written, is there room, and what a start would do with what is there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from trainer.checkpoint import Checkpoint, CheckpointError, find_resume, list_checkpoints
from trainer.config import Config
from trainer.config.file import dump_config
from trainer.data.datasets import DataError
from trainer.data.sampler import PromptSampler
from trainer.doctor.findings import Finding
from trainer.doctor.weights import sizes
from trainer.records.starts import changes_since

MIB = 1 << 20
_BYTES_EACH = 16  # of a trained parameter: the weight, its average and AdamW's two moments, in 32 bit
_LITTLE_BYTES = 1024 * MIB


def check_disk(config: Config) -> Iterator[Finding]:
    """Whether the output folder can be written, and holds the checkpoints."""
    folder = config.run_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding(
            "disk", "FAIL", f"{folder} cannot be written: {error.strerror}", "correct its owner, or set output_dir"
        )
        return
    free = shutil.disk_usage(folder).free
    size, how = _checkpoint_size(config)
    # One more than is kept exists while the newest is being written.
    needed = (size or 0) * (config.checkpoint.keep + 1)
    message = (
        f"{free / MIB:.0f} MiB free in {folder}; {config.checkpoint.keep} checkpoints need {needed / MIB:.0f} ({how})"
    )
    if size is None:
        message = f"{free / MIB:.0f} MiB free in {folder}; {config.checkpoint.keep + 1} checkpoints must fit, of {how}"
        yield Finding("disk", "NOT CHECKED", message)
    elif free < needed:
        yield Finding("disk", "FAIL", message, "free some space, lower checkpoint.keep, or set output_dir")
    elif free < needed + _LITTLE_BYTES:
        yield Finding("disk", "WARN", message, "free some space: images, logs and curves need some, too")
    else:
        yield Finding("disk", "OK", message)


def check_run(config: Config, sampler: PromptSampler | None) -> Generator[Finding, None, Mapping[str, Any]]:
    """What a start would do: begin, go on from a step, or refuse.

    Returns reward to the scorer that the run to be resumed was trained against, as a checkpoint holds it; empty when none
    is recorded.
    """
    try:
        candidates = find_resume(config.resume, config.run_dir / "checkpoints")
    except CheckpointError as error:
        yield Finding("run", "FAIL", str(error))
        return {}
    checkpoint = None
    for number, path in enumerate(candidates, 1):
        try:
            checkpoint = Checkpoint.open(path)
            checkpoint.verify()
            break
        except CheckpointError as error:
            checkpoint = None
            yield Finding("run", "WARN" if number < len(candidates) else "FAIL", str(error))
    if candidates and checkpoint is None:
        return {}
    if checkpoint is None:
        if (config.run_dir / "metrics.jsonl").exists():
            yield Finding(
                "run",
                "WARN",
                f"{config.run_dir} has no checkpoint to go on from: its metrics and samples would be written anew",
                "choose another run_name to keep them",
            )
        else:
            yield Finding("run", "OK", f"would start fresh in {config.run_dir}")
        return {}
    if checkpoint.step >= config.max_steps:
        yield Finding(
            "run",
            "WARN",
            f"{checkpoint.path} is at step {checkpoint.step} and max_steps is {config.max_steps}: there is nothing left to "
            "train",
            "raise max_steps, or choose another run_name",
        )
    else:
        yield Finding("run", "OK", f"would go on from step {checkpoint.step} of {config.max_steps} ({checkpoint.path})")
    if sampler is not None:
        yield from _check_sampler(sampler, checkpoint)
    yield from _check_changes(config, checkpoint.step)
    scorers: Mapping[str, Any] = checkpoint.state.get("scorers", {})
    return scorers


def _check_sampler(sampler: PromptSampler, checkpoint: Checkpoint) -> Iterator[Finding]:
    try:
        sampler.load_state_dict(checkpoint.state["sampler"])
    except DataError as error:
        yield Finding("run", "FAIL", str(error))


def _check_changes(config: Config, step: int) -> Iterator[Finding]:
    """Fields that differ from those the run was trained with so far, by the trainer's own comparison."""
    changed = changes_since(config.run_dir, step, dump_config(config))
    if told := "; ".join(str(change) for change in changed if change.makes_another_experiment):
        yield Finding(
            "run",
            "WARN",
            f"the config differs from the one this run was started with: {told}",
            "put it back, or choose another run_name to keep the experiments apart",
        )


def _checkpoint_size(config: Config) -> tuple[int | None, str]:
    """Bytes of one checkpoint, None where they are not known, and how they are known."""
    existing = list_checkpoints(config.run_dir / "checkpoints")
    if existing:
        return sum(file.stat().st_size for file in existing[-1].iterdir()), "the size of the newest"
    found = sizes(config)
    if found is None:
        return None, "a size that is known after the first"
    return _BYTES_EACH * found.trained, "estimated from what is trained"
