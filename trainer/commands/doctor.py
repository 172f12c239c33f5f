"""`doctor`: what would go wrong, before the run."""

from __future__ import annotations

import argparse

from trainer.commands.recipes import takes_recipe


def add_flags(parser: argparse.ArgumentParser) -> None:
    takes_recipe(parser)
    parser.add_argument("--json", action="store_true", help="Findings as JSON.")


def run(args: argparse.Namespace) -> int:
    from trainer.doctor import run_doctor

    return run_doctor(args.config, args.overrides, as_json=args.json)
