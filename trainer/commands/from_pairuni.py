"""`from-pairuni`: a command line of PairUni as a recipe of ours."""

from __future__ import annotations

import argparse

from trainer.commands.verbatim import add_words
from trainer.migration.janus_grpo.command import flags_help, from_command_line


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_words(parser, flags_help("pairuni"))


def run(args: argparse.Namespace) -> int:
    print(from_command_line("pairuni", args.arguments), end="")
    return 0
