"""Names of data sets: DeepGen-RL takes any text; ours are part of metric and file names."""

from __future__ import annotations

import re
from collections.abc import Container
from itertools import count

_LONGEST = 90  # of the 100 characters that a name may have; the rest is for a number


def fitting_name(name: str, taken: Container[str]) -> str:
    """`name` if it can be one of ours (trainer.config.base.Name), else one like it that is not taken."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        return name
    fit = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:_LONGEST]
    if not fit[:1].isalnum():
        fit = f"set{fit}"
    return next(each for number in count(1) if (each := fit if number == 1 else f"{fit}_{number}") not in taken)


def renamed(where: str, name: str, fit: str) -> str:
    """The sentence about a name that was changed."""
    return f"{where}: {name!r} is called {fit} here; names hold letters, digits, dot, dash and underscore"
