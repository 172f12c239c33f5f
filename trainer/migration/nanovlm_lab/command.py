"""`python -m trainer from-nanovlm-lab config.yaml`, and the same YAML given to `train`: a recipe of ours, or a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.base import ConfigError, say
from trainer.config.file import read_recipe
from trainer.migration.nanovlm_lab.files import output_path
from trainer.migration.nanovlm_lab.reading import is_lab, read_lab
from trainer.migration.nanovlm_lab.translation import final_format, translate
from trainer.migration.recipe_text import nested, render

_HEAD = "Translated from a YAML of NanoVLM-Lab. A comment says what differs; docs/migration_nanovlm_lab.md why."


@dataclass(frozen=True)
class FinalModel:
    """Where their program leaves the trained model, and in which of our export formats."""

    folder: Path
    format: str


def from_nanovlm_lab(path: Path, gpus: int | None = None) -> str:
    """The recipe, as YAML with comments.

    Args:
        gpus: processes in all; None counts them by the environment.

    Raises:
        ConfigError: the file is none of theirs, or cannot be translated.
    """
    raw = read_recipe(path)
    if not is_lab(raw):
        raise ConfigError(f"{path} has no training_type, so it is no YAML of NanoVLM-Lab")
    lab = read_lab(path, raw)
    lines, said = translate(lab, _gpus() if gpus is None else gpus)
    folder = output_path(lab, str(lab.get("save", "save_model_path")))
    said = [
        *said,
        f"save.save_model_path is written by `bash train.sh {path}` when the last step is made; of this recipe's run by: python -m "
        f"trainer export {Path(lines['output_dir'].value) / lines['run_name'].value} --to {final_format(lab)} --dtype float32 "
        f"--weights trained --output {folder}",
    ]
    return render(lines, said, head=_HEAD, of="YAML")


def recipe_of(path: str | Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The unchecked fields of a recipe in place of their YAML; what was given and does not act is said. Raises ConfigError."""
    lines, said = translate(read_lab(path, raw), _gpus())
    for sentence in said:
        say(f"{path}: {sentence}")
    return nested(lines)


def final_model(path: str | Path) -> FinalModel | None:
    """What is exported after training with this file; None for a recipe of ours. Raises ConfigError."""
    raw = read_recipe(path)
    if not is_lab(raw):
        return None
    lab = read_lab(path, raw)
    return FinalModel(output_path(lab, str(lab.get("save", "save_model_path"))), final_format(lab))


def _gpus() -> int:
    """Processes in all, as torchrun or the start script says."""
    world = os.environ.get("WORLD_SIZE", "")
    if world.isdigit():
        return max(1, int(world))
    nodes, here = os.environ.get("NNODES", "1"), os.environ.get("NGPUS", "1")
    return int(nodes) * int(here) if nodes.isdigit() and here.isdigit() else 1
