"""The files that come with the program: recipes (`configs/`), and the models and prompts of the demonstrations (`assets/`).

In a checkout both lie beside the packages, in an installed one in `rewards/files`. One rule lets the same recipe work in
both, wherever the command is typed: a path counts from the folder where the command is typed; where nothing is there and
it begins with `configs/` or `assets/`, it is the shipped file's. Only the standard library is imported here.
"""

from __future__ import annotations

import re
from pathlib import Path

_PACKED = Path(__file__).resolve().parent / "files"
FOLDER = _PACKED if _PACKED.is_dir() else _PACKED.parents[1]  # has configs/ and assets/
SHIPPED = ("configs", "assets")

_NAMED = re.compile(rf"(?:^|(?<=,))(?:{'|'.join(SHIPPED)})/[^,:]*")


def recipes() -> dict[str, Path]:
    """Every shipped recipe by its name, the file's name without `.yaml`."""
    return {path.stem: path for path in sorted((FOLDER / "configs").glob("*.yaml"))}


def recipe(name: str) -> Path:
    """The recipe that a command was given: the file of that path, else the shipped one of that name.

    Where there is neither it is the path as given: who reads it says that nothing is there.
    """
    given = Path(name)
    if given.is_file():
        return given
    if len(given.parts) == 1 and name in recipes():
        return recipes()[name]
    return Path(shipped(name))


def shipped(path: str) -> str:
    """A path to read from, by the rule above."""
    place = Path(path)
    if place.is_absolute() or place.parts[:1] not in {(name,) for name in SHIPPED} or ".." in place.parts:
        return path
    if place.exists() or not (FOLDER / place).exists():
        return path
    return str(FOLDER / place)


def shipped_in(text: str) -> str:
    """A service's flag with the paths in it by the rule above: a path, or FILE.py:name,FILE.py as the rules service takes."""
    return _NAMED.sub(lambda found: shipped(found[0]), text)


def is_shipped(path: str | Path) -> bool:
    """Whether an absolute path is that of a shipped file or folder, which no program may write over."""
    place = Path(path)
    return place.is_absolute() and any(place.is_relative_to(FOLDER / name) for name in SHIPPED)
