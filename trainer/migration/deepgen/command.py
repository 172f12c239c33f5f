"""`python -m trainer from-deepgen [DeepGen-RL's flags]`: that command line as a recipe of ours, with what differs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any

from trainer.config.base import ConfigError
from trainer.migration.deepgen.flags import FLAGS, REMOVED
from trainer.migration.deepgen.translation import translate
from trainer.migration.recipe_text import render

_HEAD = "Translated from a command line of DeepGen-RL. A comment says what differs; docs/migration_deepgen.md why."


def add_flags(parser: argparse.ArgumentParser) -> None:
    """DeepGen-RL's flags, with its defaults, and the number of GPUs, which it takes from torchrun."""
    parser.add_argument(
        "--gpus", type=int, default=_world_size(), help="GPUs in all (default: WORLD_SIZE, or NNODES*NGPUS)."
    )
    kinds: dict[str, Mapping[str, Any]] = {
        "text": {},
        "texts": {"nargs": "+"},
        "whole": {"type": int},
        "number": {"type": float},
        "switch": {"action": "store_true"},
    }
    for name, flag in FLAGS.items():
        ours = ", ".join(flag.fields) or "nothing"
        default = "" if flag.default is None else f" (default there: {flag.default})"
        choices: dict[str, Any] = {"choices": flag.choices} if flag.choices else {}
        text = f"becomes {ours}{f'; {flag.remark}' if flag.remark else ''}{default}".replace("%", "%%")
        # Only what is typed is in the namespace; `from_deepgen` adds the rest.
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **choices, **kinds[flag.kind])
    for name in REMOVED:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)


def from_deepgen(args: argparse.Namespace) -> str:
    """The recipe, as YAML with comments. What was given and does not act is said there and on stderr.

    Raises:
        ConfigError: a flag that DeepGen-RL refuses as well, batch sizes that do not divide, a value we have nothing for.
    """
    for name, other in REMOVED.items():
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} was removed from DeepGen-RL; use --{other.replace(' or ', ' or --')}")
    args.given = frozenset(FLAGS) & set(vars(args))
    for name, flag in FLAGS.items():
        setattr(args, name, getattr(args, name, flag.default))
    lines, said = translate(args)
    for sentence in said:
        print(f"from-deepgen: {sentence}", file=sys.stderr)
    return render(lines, said, head=_HEAD, of="command line")


def _world_size() -> int | None:
    """GPUs in all as the environment says, the way DeepGen-RL's train.sh counts them; None when it does not."""
    try:
        if "WORLD_SIZE" in os.environ:
            return int(os.environ["WORLD_SIZE"])
        if "NGPUS" in os.environ:
            return int(os.environ["NGPUS"]) * int(os.environ.get("NNODES", "1"))
    except ValueError:
        return None
    return None
