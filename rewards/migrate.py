"""`rewards migrate FROM ...`: the trainer's commands `from-...`, and `migrate-config`, which brings a recipe of ours up to date."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rewards.command import unknown
from trainer.__main__ import main as trainer
from trainer.commands import COMMANDS

# What the trainer translates, by the name of where it is from.
SOURCES = {name.removeprefix("from-"): name for name in COMMANDS if name.startswith("from-")} | {
    "config": "migrate-config"
}


def main(words: Sequence[str], prog: str) -> int:
    """Translate. Returns the exit code; 2 where there is no such source."""
    if not words or words[0] in ("-h", "--help"):
        print(
            f"usage: {prog} FROM ...\n\nFROM is one of {', '.join(SOURCES)}; config is a recipe with names of before."
        )
        print(f"\n{prog} FROM --help says what follows.")
        return 0 if words else 2
    source, *rest = words
    if source not in SOURCES:
        print(f"error: {unknown('source', source, SOURCES)}", file=sys.stderr)
        return 2
    return trainer([SOURCES[source], *rest], "rewards", f"{prog} {source}")
