"""What users bring from elsewhere, translated into our fields before the configuration is checked.

`load_recipe` is how every command reads a recipe. A package below this one knows one other trainer: its files, its
flags, its environment variables. `trainer.config` knows none of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from trainer.config.base import ConfigError, say
from trainer.config.file import apply_overrides, checked, read_recipe
from trainer.config.old_keys import OLD_SECTION, SECTIONS, refuse_old_keys, with_new_keys
from trainer.migration.deepgen.environment import environment_overrides
from trainer.migration.deepgen.recipe_files import translate_files
from trainer.migration.nanovlm_lab.command import recipe_of
from trainer.migration.nanovlm_lab.reading import is_lab

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_recipe(path: str | Path, model: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """Read a recipe, apply overrides `key.sub=value`, translate what is another trainer's, check everything.

    With `environment: deepgen_rl` the variables of DeepGen-RL act over the file and under the overrides. Its YAML files
    of data sets, named in `data.dataset_config` and `evaluation.dataset_config`, become `data.train` and
    `evaluation.sets`, so the resolved configuration is complete without them. Old names are refused in a recipe, and
    brought up to date in the configuration that a finished run left behind. A YAML of NanoVLM-Lab is translated as a whole.

    Raises:
        ConfigError: as `trainer.config.file.load_config` does; or a file or variable that cannot be translated.
    """
    raw = read_recipe(path)
    if is_lab(raw):
        raw = recipe_of(path, raw)
    if is_run_config(path) and OLD_SECTION in raw:
        say(f"{path} is of an earlier version of this trainer: its `{OLD_SECTION}` is read as {SECTIONS}")
        raw = with_new_keys(raw)
    refuse_old_keys(path, raw, overrides)
    first = [override for override in overrides if override.startswith("environment=")]
    rest = [override for override in overrides if override not in first]
    apply_overrides(raw, first)
    apply_overrides(raw, [*_take_environment(raw), *rest])
    origins = translate_files(raw)
    try:
        return checked(path, model, raw)
    except ConfigError as error:
        raise ConfigError("\n  ".join([str(error), *origins])) from error


def is_run_config(path: str | Path) -> bool:
    """Whether `path` is what a run wrote down about itself, which nobody has to keep up to date by hand."""
    path = Path(path)
    return path.name == "config.yaml" and any(
        (path.parent / name).exists() for name in ("metrics.jsonl", "checkpoints")
    )


def _take_environment(raw: dict[str, Any]) -> list[str]:
    """The environment as overrides, if `raw` asks for it. Taken once: the resolved configuration does not ask again."""
    if raw.get("environment") != "deepgen_rl":
        return []
    raw["environment"] = "none"
    return environment_overrides(os.environ, raw)
