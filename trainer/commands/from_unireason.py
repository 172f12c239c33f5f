"""`from-unireason`: a command line of UniReason as a recipe of ours."""

from __future__ import annotations

import argparse

from trainer.commands.verbatim import add_words
from trainer.migration.unireason.command import from_unireason, unireason_help


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_words(parser, unireason_help())


def run(args: argparse.Namespace) -> int:
    print(from_unireason(args.arguments), end="")
    return 0
