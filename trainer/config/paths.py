"""Files and folders that a recipe names: one that is not there is said at once, with the nearest name that is."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from rewards.shipped import is_shipped
from trainer.config.base import ConfigError
from trainer.config.policy import PolicyConfig
from trainer.config.programs import ProgramName

# Fields of the policies' sections that name what is read at the start; a cache folder is made where there is none.
_READ = ("checkpoint", "pretrained", "weights", "sd3_path", "qwen_path", "lmm_checkpoint")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Whether `name` is an id of the Hugging Face hub (owner/name) and not a path: nothing lies there, nor at its owner."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists() and not Path(name).parent.exists()


def check_policy_files(policy: PolicyConfig, program: ProgramName) -> None:
    """Raises ConfigError for weights that are not there: before torch is imported and the model built, which takes seconds.

    Programs vlm_base and pair_base write the folder that others start from, and refuse to write it over a shipped one.
    """
    if program in ("vlm_base", "pair_base"):
        folder = getattr(policy, "pretrained", None)
        if folder is not None and is_shipped(folder):
            raise ConfigError(
                f"policy.pretrained = {folder}: program {program} writes this folder, and it is the one that others start from "
                "as it was shipped; give another one, as in policy.pretrained=my_base"
            )
        return
    for field, path in _named(policy):
        if not Path(path).exists():
            raise ConfigError(f"{field} = {path}: nothing at {Path(path).absolute()}; {nearest_path(Path(path))}")


def nearest_path(path: Path) -> str:
    """The remedy for a path that is not there: the nearest one that is, or that it should be corrected."""
    there = next(parent for parent in path.absolute().parents if os.path.isdir(parent))
    missing, *rest = path.absolute().relative_to(there).parts
    near = difflib.get_close_matches(missing, [each.name for each in there.iterdir()], n=1)
    if not near:
        return "correct the path"
    found = there / near[0]
    found = found.joinpath(*rest) if found.joinpath(*rest).exists() else found
    shown = found if path.is_absolute() or not found.is_relative_to(Path.cwd()) else found.relative_to(Path.cwd())
    return f"did you mean {shown}?"


def _named(policy: PolicyConfig) -> Iterator[tuple[str, str]]:
    for name in _READ:
        value = getattr(policy, name, None)
        if value is not None and not (name in policy.from_hub and is_hub_id(value)):
            yield f"policy.{name}", value
    grow = getattr(policy, "grow", None)
    if grow is not None:
        yield "policy.grow.language", grow.language
        if grow.tokenizer is not None:
            yield "policy.grow.tokenizer", grow.tokenizer
    lora = getattr(policy, "lora", None)
    if lora is not None and lora.path is not None:
        yield "policy.lora.path", lora.path
