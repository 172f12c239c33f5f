"""The code blocks of README.md and docs/, with what a page says of each that is not run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# docs/LOG.md and docs/decisions tell what was done once; docs/openapi is not prose.
PAGES = [
    ROOT / "README.md",
    *sorted(each for each in (ROOT / "docs").glob("*.md") if each.name != "LOG.md"),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
]
SHELL = ("bash", "console")
_FENCE = re.compile(r"^( *)```([\w+-]*)$")
_MARK = re.compile(r"^<!-- (checked, not run|not run|not code): (.+) -->$")


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: as `docs/training.md`.
        line: of its fence, from 1.
        kind: what the comment before it says it is: `checked, not run`, `not run`, `not code`, or nothing.
        why: the reason that the comment gives.
    """

    page: str
    line: int
    language: str
    text: str
    kind: str
    why: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Its lines of shell, joined where they go on; of a console those that are typed."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found: list[str] = []
        whole = True
        for line in lines:
            found = [*found, line] if whole else [*found[:-1], f"{found[-1]}\n{line}"]
            whole = _closed(found[-1])
        return [line.strip() for line in found if line.strip() and not line.lstrip().startswith("#")]


def _closed(command: str) -> bool:
    """Whether every quotation of it ends."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page, in order, without the indentation of its fence."""
    name, lines = page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8").splitlines()
    found, start = [], None
    for number, line in enumerate(lines):
        if start is None and (fence := _FENCE.match(line)):
            start = number, len(fence[1]), fence[2]
        elif start is not None and line.strip() == "```":
            first, indent, language = start
            mark = _MARK.match(lines[first - 1].strip()) if first else None
            text = "\n".join(each[indent:] for each in lines[first + 1 : number])
            found.append(Block(name, first + 1, language, text, *(mark.groups() if mark else ("", ""))))
            start = None
    assert start is None, f"{name}:{start} has a block without an end"
    return found


def program_of(command: str) -> tuple[str, list[str]]:
    """What a shell line starts and the words after it, without variables before it, comments, redirections and pipes.

    `python -m trainer` and the like are one program, `bash train.sh` is `train.sh`.
    """
    lexer = shlex.shlex(command, posix=True, punctuation_chars="<>|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("<>|&;"):
            break
        words.append(word)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.S):
        words.pop(0)
    if not words:
        return "", []
    first = words[0].removeprefix(".venv/bin/")
    if first == "python" and words[1:2] == ["-m"]:
        return " ".join(["python -m", *words[2:3]]), words[3:]
    if first in ("bash", "python") and len(words) > 1:
        return words[1], words[2:]
    return first, words[1:]
