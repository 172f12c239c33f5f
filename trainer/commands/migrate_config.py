"""`migrate-config`: a recipe with today's names of its fields."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="A recipe with names of before.")
    parser.add_argument("--write", action="store_true", help="Rewrite the file in place of printing.")


def run(args: argparse.Namespace) -> int:
    from trainer.migration.rewrite import migrated_text, rewrite

    text = migrated_text(args.config)
    if text is None:
        print(f"{args.config} has no old names; nothing to change", file=sys.stderr)
    elif args.write:
        rewrite(args.config, text)
        print(f"Wrote {args.config}")
    else:
        print(text, end="")
    return 0
