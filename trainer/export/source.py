"""From a run's folder to the policy with the weights that it trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch

from trainer.checkpoint import Checkpoint, CheckpointError, list_checkpoints
from trainer.checkpoint.manifest import MANIFEST
from trainer.checkpoint.retention import BEST
from trainer.config import Config
from trainer.migration import load_recipe
from trainer.policies.registry import build_model

Weights = Literal["average", "trained"]
_RUN_FILES = ("config.yaml", "metrics.jsonl", "summary.json")


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint that a person means, checked.

    Args:
        path: a checkpoint's folder; a run's folder, for its newest usable one; or `checkpoints/best`, for that one.

    Raises:
        CheckpointError: there is none, it is damaged, or the path is something else.
    """
    if path.is_file():
        return _checked(path.parent / _best(path))
    is_run = (path / "checkpoints").is_dir()
    # A state without its manifest is a damaged checkpoint: `_checked` says so.
    if not is_run and not any((path / name).is_file() for name in (MANIFEST, "state.json")):
        raise _no_checkpoint(path)
    candidates = list_checkpoints(path / "checkpoints")[::-1] if is_run else [path]
    if not candidates:
        raise none_yet(path)
    for candidate in candidates[:-1]:
        try:
            return _checked(candidate)
        except CheckpointError as error:
            print(f"passed over: {error}")
    return _checked(candidates[-1])


def none_yet(run_dir: Path) -> CheckpointError:
    """The error for a run that has saved nothing."""
    return CheckpointError(f"{run_dir} has no checkpoint yet: train first, or give another run's folder")


def _no_checkpoint(path: Path) -> CheckpointError:
    """The error for a path that is neither a checkpoint nor a run's folder with checkpoints. None of it is ours to
    delete, so no message says that."""
    if any((path / name).is_file() for name in _RUN_FILES):
        return none_yet(path)
    if path.is_dir():
        return CheckpointError(
            f"{path} is neither a run's folder nor a checkpoint: give a folder under outputs/, or a step_... folder of "
            f"its checkpoints/"
        )
    if path.name == BEST and path.absolute().parent.name == "checkpoints" and path.parent.is_dir():
        return CheckpointError(
            f"there is no {path}: checkpoints/best needs checkpoint.keep_best, and a saved step that was evaluated; give "
            f"the run's folder for its newest checkpoint"
        )
    return CheckpointError(f"there is no such folder as {path}: correct the path, or give a folder under outputs/")


def _best(pointer: Path) -> str:
    try:
        return str(json.loads(pointer.read_text(encoding="utf-8"))["checkpoint"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{pointer} names no checkpoint ({error}): give a checkpoint's or a run's folder"
        ) from error


def _checked(path: Path) -> Checkpoint:
    checkpoint = Checkpoint.open(path)
    checkpoint.verify()
    return checkpoint


def run_config(checkpoint: Checkpoint) -> Config:
    """The configuration of the run that wrote a checkpoint. Raises ConfigError when it is not there any more."""
    return load_recipe(checkpoint.path.resolve().parent.parent / "config.yaml", Config)


@torch.no_grad()
def trained_model(config: Config, checkpoint: Checkpoint, weights: Weights) -> Any:
    """The policy's networks on the CPU, with trained weights or their average.

    Raises:
        ConfigError: the base model is not where the run found it.
        CheckpointError: the checkpoint is of another model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # as the run did: frozen parts without a base are random, and in no checkpoint
        model = build_model(config.policy, torch.device("cpu"))
    trained = {name: p for name, p in model.network.named_parameters() if p.requires_grad}
    if different := sorted(trained.keys() ^ set(checkpoint.names)):
        raise CheckpointError(
            f"{checkpoint.path} does not fit the run's config.yaml: {len(different)} parameters differ, the first is "
            f"{different[0]!r}"
        )
    kind = "average" if weights == "average" else "weight"
    for name, parameter in trained.items():
        parameter.copy_(checkpoint.read(name)[kind])
    return model
