"""`flight`: the last steps before a crash."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="A folder under outputs/.")


def run(args: argparse.Namespace) -> int:
    from trainer.records.flight.summary import print_flight

    print_flight(args.run_dir)
    return 0
