"""Where a YAML of NanoVLM-Lab means its paths, and what its files hold: which rewards, how many rows."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config.base import ConfigError
from trainer.config.texts import RowsConfig
from trainer.migration.nanovlm_lab.reading import Lab

HOLD_OUT = 0.2  # of the rows, where no evaluation set is named; there and here
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def find(lab: Lab, value: str) -> Path | None:
    """A file or folder that the YAML names, as an absolute path; None where there is none.

    Relative paths count there from three places: the project, its folder rlvlm, and nanovlm, into which it changes. The
    project is taken to be the YAML's own folder or the one above it.
    """
    path = Path(value).expanduser()
    if path.is_absolute():
        return path if path.exists() else None
    roots = (lab.folder, lab.folder.parent)
    places = [Path.cwd(), *roots, *(root / inner for root in roots for inner in ("rlvlm", "nanovlm"))]
    return next((place / path for place in places if (place / path).exists()), None)


def must_find(lab: Lab, section: str, key: str) -> Path:
    """A file that must be there. Raises ConfigError naming the places that were looked into."""
    value = str(lab.get(section, key))
    if (found := find(lab, value)) is None:
        raise ConfigError(
            f"{section}.{key} = {value!r} is not here: it was looked for beside the YAML in {lab.folder}, in the folder above "
            "it, and in rlvlm and nanovlm of both; correct the path"
        )
    return found.resolve()


def data_path(lab: Lab, key: str) -> str:
    """A data set: what lies here under its path, else the id of a hub. Raises ConfigError where it can be neither."""
    value = str(lab.get("dataset", key))
    found = find(lab, value)
    if found is not None:
        return str(found.resolve())
    if not _HUB_ID.match(value):
        must_find(lab, "dataset", key)
    return value


def model_path(lab: Lab) -> str:
    """The model likewise."""
    value = str(lab.get("model", "model_name_or_path"))
    found = find(lab, value)
    if found is None and not _HUB_ID.match(value):
        must_find(lab, "model", "model_name_or_path")
    return value if found is None else str(found.resolve())


def output_path(lab: Lab, value: str) -> Path:
    """Where a relative output lies: beside the YAML, or, if that is in a folder `configs`, beside that folder."""
    path = Path(value).expanduser()
    root = lab.folder.parent if lab.folder.name == "configs" else lab.folder
    return path if path.is_absolute() else Path(root / path).resolve()


def count_rows(lab: Lab) -> int:
    """The rows that are trained on, without those held out.

    Raises:
        ConfigError: they cannot be counted; training.max_steps then says how long the run is.
    """
    from trainer.data.rows.splits import held_out_rows  # numpy and Pillow: every command imports this module
    from trainer.data.rows.table import open_table

    path, most = data_path(lab, "train_data_path"), lab.get("dataset", "max_samples")
    rows = RowsConfig(split=lab.get("dataset", "train_split"), max_samples=most if most and most > 0 else None)
    try:
        count = len(open_table(rows, field="dataset", path=path))
        return count if lab.get("dataset", "eval_data_path") else len(held_out_rows(count, HOLD_OUT)[0])
    except (ConfigError, OSError, ValueError) as error:
        raise ConfigError(
            f"training.max_steps = {lab.get('training', 'max_steps')} makes the run as long as num_train_epochs = "
            f"{lab.get('training', 'num_train_epochs'):g}, and for that the rows are counted, which failed: {error}. Correct "
            "that, or set training.max_steps"
        ) from error


@dataclass(frozen=True)
class RewardFile:
    """A file of reward functions, looked into and not run.

    Attributes:
        rewards: functions that judge completions, in the order of the file.
        others: the public functions beside them, which there were rewards, too.
    """

    path: Path
    rewards: Sequence[str]
    others: Sequence[str]


def reward_file(lab: Lab) -> RewardFile:
    """The file that dataset.reward_functions_fn names. Raises ConfigError: none is named, it is not here, or has no reward."""
    if not lab.get("dataset", "reward_functions_fn"):
        raise ConfigError("dataset.reward_functions_fn is missing: training_type grpo needs a file of reward functions")
    path = must_find(lab, "dataset", "reward_functions_fn")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"dataset.reward_functions_fn: {path} cannot be read: {error}") from error
    public = [each for each in tree.body if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")]
    rewards = [each.name for each in public if _judges(each)]
    if not rewards:
        raise ConfigError(
            f"dataset.reward_functions_fn: {path} has no function with a parameter `completions`, which is what makes one a "
            f"reward; its functions: {', '.join(each.name for each in public) or 'none'}"
        )
    return RewardFile(path, rewards, [each.name for each in public if each.name not in rewards])


def _judges(function: ast.FunctionDef) -> bool:
    arguments = function.args
    return any(each.arg == "completions" for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))
