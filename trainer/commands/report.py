"""`report`: report.html of a run folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.commands.recipes import check_there


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="A folder under outputs/.")


def run(args: argparse.Namespace) -> int:
    check_there(args.run_dir, "report")
    from trainer.report import build_report

    print(f"Wrote {build_report(args.run_dir)}")
    return 0
