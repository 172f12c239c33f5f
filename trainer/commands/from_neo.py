"""`from-neo`: a command line of NEO as a recipe of ours."""

from __future__ import annotations

import argparse

from trainer.commands.verbatim import add_words
from trainer.migration.neo.command import from_neo, neo_help


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_words(parser, neo_help())


def run(args: argparse.Namespace) -> int:
    print(from_neo(args.arguments), end="")
    return 0
