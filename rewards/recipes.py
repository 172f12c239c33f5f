"""`rewards recipes [NAME]`: the recipes that come along, by name, with what each says of itself; or the text of one."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from rewards.command import unknown
from rewards.shipped import recipes


def about(path: Path) -> str:
    """The first sentence of the comment that a recipe begins with, without the command that may end it."""
    with path.open(encoding="utf-8") as lines:
        comment = " ".join(line.strip("# \n") for line in takewhile(lambda line: line.startswith("#"), lines))
    return re.split(r"\.(?: |$)|: (?=bash|python|start)", comment)[0]


def main(words: Sequence[str], prog: str) -> int:
    """List the recipes, or print one. Returns the exit code; 2 where there is none of the name."""
    known = recipes()
    if len(words) > 1 or (words and words[0] in ("-h", "--help")):
        print(f"usage: {prog} [NAME]\n\nLists the recipes that come along, or prints one: a beginning for your own.")
        return 0 if len(words) == 1 else 2
    if not words:
        width = max(map(len, known)) + 2
        for name, path in known.items():
            print(f"{name:<{width}}{about(path)}")
        return 0
    if words[0] not in known:
        print(f"error: {unknown('recipe', words[0], known)}", file=sys.stderr)
        return 2
    print(known[words[0]].read_text(encoding="utf-8"), end="")
    return 0
