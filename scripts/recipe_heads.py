"""Writes into each shipped recipe's comment what it needs and does not bring along: size, licence, the command that gets it.

    python -m scripts.recipe_heads            write it into configs/*.yaml
    python -m scripts.recipe_heads --check    write nothing; exit code 1 where a recipe says something else

What is said comes from configs/sources/sources.yaml. The lines stand before the first field, after what the recipe says of itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rewards.fetch import head
from rewards.shipped import recipes
from rewards.sources import Table, read_table
from trainer.config import Config
from trainer.migration import load_recipe

_FIRST = "# Needs, "


def with_head(path: Path, config: Config, table: Table) -> str:
    """A recipe's text with the lines as they should be."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    own = next((number for number in range(comment) if lines[number].startswith(_FIRST)), comment)
    return "\n".join([*lines[:own], *head(path.stem, config, table), *lines[comment:], ""])


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.recipe_heads")
    parser.add_argument(
        "--check", action="store_true", help="Write nothing; exit code 1 where a recipe says something else."
    )
    args = parser.parse_args(words)
    table, code = read_table(), 0
    for path in recipes().values():
        text = with_head(path, load_recipe(path, Config), table)
        if text == path.read_text(encoding="utf-8"):
            continue
        if args.check:
            print(f"{path}: run python -m scripts.recipe_heads", file=sys.stderr)
            code = 1
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    return code


if __name__ == "__main__":
    sys.exit(main())
