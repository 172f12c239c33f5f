"""`export`: a run's weights, written for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.commands.recipes import check_there, takes_weights
from trainer.config.base import did_you_mean
from trainer.policies.registry import all_formats


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, help="A folder under outputs/, a checkpoint in it, or its checkpoints/best."
    )
    parser.add_argument(
        "--to",
        required=True,
        type=_format,
        metavar="FORMAT",
        help=f"One of {', '.join(all_formats())}, as the policy can.",
    )
    parser.add_argument("--output", required=True, type=Path, help="A new folder.")
    takes_weights(parser)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="Its numbers.")
    parser.add_argument("--verify", action="store_true", help="Draw samples before and after, too: for small models.")


def run(args: argparse.Namespace) -> int:
    check_there(args.source, "export")
    from trainer.export import export_run

    folder = export_run(
        args.source, args.output, to=args.to, weights=args.weights, dtype=args.dtype, verify=args.verify
    )
    print(f"Wrote {folder}")
    return 0


def _format(name: str) -> str:
    """A format of some policy; which of them the run's policy has is known once its config.yaml is read."""
    if name not in all_formats():
        raise argparse.ArgumentTypeError(
            f"no format {name!r} (there are {', '.join(all_formats())}){did_you_mean(name, all_formats())}"
        )
    return name
