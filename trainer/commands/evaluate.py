"""`evaluate`: a checkpoint, or the base, on the recipe's held-out sets."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from trainer.commands.recipes import check_checkpoint, check_there, recipe_of, takes_recipe, takes_weights, wrote


def add_flags(parser: argparse.ArgumentParser) -> None:
    takes_recipe(parser)
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="A checkpoint's or a run's folder, checkpoints/best, or `base`; default: the newest of the recipe's run.",
    )
    takes_weights(parser)
    parser.add_argument("--output", type=Path, help="Default: evaluations/<checkpoint>-<weights> in the run folder.")
    parser.add_argument("--against", type=Path, metavar="DIR", help="Another evaluation's folder: gains are paired.")


def run(args: argparse.Namespace) -> int:
    config = recipe_of(args)
    check_checkpoint(args.checkpoint)
    check_there(args.against, "--against")
    from trainer.programs.evaluate import evaluate_checkpoint

    given = {"output": args.output, "against": args.against}
    return wrote(partial(evaluate_checkpoint, config, args.checkpoint, args.weights, **given))
