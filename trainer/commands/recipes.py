"""What several commands share: the recipe they are given, paths that must be there, and what they print at the end.

Commands check what they are given before they import torch, which takes seconds: a mistake is said at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from machine.own import is_code
from rewards.shipped import recipe
from trainer.config import Config, ConfigError
from trainer.config.paths import check_policy_files
from trainer.migration import load_recipe


def takes_recipe(parser: argparse.ArgumentParser) -> None:
    """The recipe, and fields of it as key=value."""
    parser.add_argument(
        "config", type=recipe, help="A recipe: its file, or the name of one of configs/, as in quickstart."
    )
    parser.add_argument(  # with a default: argparse says of what is left out that it is required, too, where it has none
        "overrides", nargs="*", default=[], metavar="key=value", help="Fields to override, as in seed=2."
    )


def takes_weights(parser: argparse.ArgumentParser) -> None:
    """Which of a checkpoint's weights."""
    parser.add_argument(
        "--weights", choices=("average", "trained"), default="average", help="Averaged (default) or last weights."
    )


def recipe_of(args: argparse.Namespace) -> Config:
    """The recipe that a command was given, with prompt files and weights that are there. Raises ConfigError, DataError."""
    return checked(args.config, args.overrides)


def checked(recipe: Path, overrides: Sequence[str] = ()) -> Config:
    """A recipe, with prompt files and weights that are there. Raises ConfigError, DataError."""
    config = load_recipe(recipe, Config, overrides)
    named = [each.path for each in config.data.train] + [path for _, path in config.evaluation.prompt_files()]
    for path in named:
        if not Path(path).exists():
            from trainer.data.prompts import read_prompt_file
            from trainer.data.rows import folders

            if config.sampling.type in ("tokens", "tasks") and not is_code(path):  # rows of questions or pairs
                folders.check_there(Path(path))
                continue  # an id is fetched when it is read

            read_prompt_file(path, dataset=Path(path).stem)  # says what is wrong with the path
    check_policy_files(config.policy, config.program)
    return config


def check_there(path: Path | None, what: str) -> None:
    """Raises ConfigError where nothing is at the path that a flag names."""
    if path is not None and not path.exists():
        hint = " (checkpoints/best needs checkpoint.keep_best)" if path.name == "best" else ""
        raise ConfigError(f"{what}: nothing at {path.absolute()}; correct the path{hint}")


def check_checkpoint(name: str | None) -> None:
    """The same for --checkpoint, which may also be `base`, or left out."""
    check_there(None if name in (None, "base") else Path(name), "--checkpoint")


def wrote(make: Callable[[], Path]) -> int:
    """Say where the folder is that `make` gives; or that a reward's `on_failure: stop`, or its failure rate, has stopped it."""
    from trainer.types import StopTrainingError

    try:
        print(f"Wrote {make()}")
    except StopTrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
