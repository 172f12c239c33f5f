"""The table of a first run: rows as they are measured, one JSON object a line, and the page that shows them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Status = Literal["measured", "failed", "timed out", "not run"]
Value = float | int | str | bool | None
DONE = "seconds of the part"  # the last row of a part that ran to its end


@dataclass(frozen=True)
class Row:
    """One result.

    Attributes:
        part: that it was measured in.
        what: is told, with its unit.
        value: None where there is none.
        goal: what it should be; empty where nothing is asked.
        reached: whether it is; None where the goal is another device's, or there is none.
        note: how it was measured, or why it was not.
    """

    part: str
    what: str
    value: Value = None
    goal: str = ""
    reached: bool | None = None
    note: str = ""
    status: Status = "measured"

    @property
    def verdict(self) -> str:
        if self.status != "measured":
            return self.status.upper()
        if self.reached is None:
            return "not judged" if self.goal else ""
        return "reached" if self.reached else "MISSED"


class Table:
    """The rows of a folder: `rows.jsonl`, and `table.md` for people."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "rows.jsonl"

    def rows(self) -> list[Row]:
        """In the order in which they were written. A line that was cut off while it was written is left out."""
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                found.append(Row(**json.loads(line)))
            except json.JSONDecodeError:
                continue
        return found

    def add(self, row: Row) -> None:
        """Write one row at once, so that what was measured stays if what comes next fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    def forget(self, part: str) -> None:
        """Leave out what is known of a part."""
        kept = [row for row in self.rows() if row.part != part]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in kept), encoding="utf-8")

    def is_finished(self, part: str) -> bool:
        """Whether it ran to its end: one that failed, was stopped or lacked a package is not."""
        return any(row.part == part and row.what == DONE and row.status == "measured" for row in self.rows())

    def write_page(self, parts: Sequence[str]) -> str:
        """Write `table.md`, in the order of `parts`, and give its text."""
        rows = sorted((row for row in self.rows() if row.part in parts), key=lambda row: parts.index(row.part))
        text = page(rows)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "table.md").write_text(text, encoding="utf-8")
        return text


def page(rows: Iterable[Row]) -> str:
    """A markdown table, and the goals once more: all of them, missed ones first."""
    rows = list(rows)
    lines = ["| part | what | value | goal | verdict | note |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {' | '.join(_cell(each) for each in (row.part, row.what, shown(row.value), row.goal, row.verdict, row.note))} |"
        for row in rows
    ]
    return "\n".join([*lines, "", *summary(rows), ""])


def summary(rows: Iterable[Row]) -> list[str]:
    """What was missed, failed or not run, a line each, after a line of counts."""
    rows = list(rows)
    counts = {
        name: sum(row.verdict == name for row in rows)
        for name in ("reached", "MISSED", "not judged", "FAILED", "TIMED OUT", "NOT RUN")
    }
    told = ", ".join(f"{number} {name}" for name, number in counts.items())
    bad = [row for row in rows if row.verdict in ("MISSED", "FAILED", "TIMED OUT", "NOT RUN")]
    lines = [
        f"- {row.part}: {row.what}: {row.verdict}"
        + (f", {shown(row.value)} where {row.goal} is the goal" if row.verdict == "MISSED" else f": {row.note}")
        for row in bad
    ]
    return [f"Goals and parts: {told}.", *lines]


def shown(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
