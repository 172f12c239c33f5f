"""How this program was called, for messages that name what to type next."""

from __future__ import annotations

import sys
from pathlib import Path

_OTHER_NAMES = {"migrate-config": "migrate config"}  # what the command `rewards` calls differently


def command(verb: str) -> str:
    """`rewards VERB` in a process that the command `rewards` began, else `python -m trainer VERB`: the same program."""
    path = Path(sys.argv[0])
    name = path.parent.name if path.name == "__main__.py" else path.stem
    return f"rewards {_OTHER_NAMES.get(verb, verb)}" if name == "rewards" else f"python -m trainer {verb}"
