"""`from-deepgen`: a command line of DeepGen-RL as a recipe of ours."""

from __future__ import annotations

import argparse

from trainer.migration.deepgen.command import add_flags, from_deepgen

__all__ = ["add_flags", "run"]


def run(args: argparse.Namespace) -> int:
    print(from_deepgen(args), end="")
    return 0
