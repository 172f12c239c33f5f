"""`generate`: pictures and texts of a file of prompts."""

from __future__ import annotations

import argparse
from functools import partial

from trainer.commands.recipes import check_checkpoint, check_there, recipe_of, takes_recipe, wrote
from trainer.programs.generating.flags import add_generation_flags, settings_of


def add_flags(parser: argparse.ArgumentParser) -> None:
    takes_recipe(parser)
    add_generation_flags(parser)


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    check_checkpoint(args.checkpoint)
    check_there(args.prompts, "--prompts")
    config = recipe_of(args)
    from trainer.programs.generating.command import generate

    given = {"source": args.checkpoint, "weights": args.weights, "score": args.score}
    return wrote(partial(generate, config, args.prompts, args.output, settings, **given))
