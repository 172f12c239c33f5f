"""The rows in a terminal: a table where there is room, else a few lines a service. Colour says nothing that words do not."""

from __future__ import annotations

import os
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence

from rewards.plane.rows import DASH, TITLES, Cell, Row
from rewards.plane.watch import Look

_GOOD, _BAD, _SOFT, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[0m"
_Paint = Callable[[str, str], str]
_GAP = "  "
_LONGEST = {"revision": 20, "errors": 32, "left": 34}  # characters of a cell of the table; all of it is in the JSON


def wants_colour(is_terminal: bool, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to colour: on a terminal that is not told otherwise (https://no-color.org)."""
    return is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def lines_of(look: Look, width: int, *, colour: bool = False) -> list[str]:
    """What is printed of a look, in lines of at most `width` columns."""
    paint = _paint if colour else _leave
    head = f"{look.at:%H:%M:%S}  {look.summary}{f'; counted {look.over}' if look.over else ''}"
    table = _table(look.rows)
    if max(map(_width, (_GAP.join(cells) for cells in table)), default=0) <= width:
        body, notes = list(_painted(table, look.rows, paint)), [*_remarks(look), *look.notes]
    else:
        body, notes = [line for row in look.rows for line in _stacked(row, width, paint)], list(look.notes)
    tail = [line for note in notes for line in _wrapped(note, width)]
    return [*_wrapped(head, width), "", *body, *([""] if tail else []), *tail]


def printable(text: str) -> str:
    """A service's words without what a terminal obeys or what would break a line."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _table(rows: Sequence[Row]) -> list[list[str]]:
    """Cells padded to columns, the titles first."""
    shown = [["service", "where", "state", *TITLES.values()]]
    for row in rows:
        cells = [_cut(key, cell) for key, cell in row.cells.items()]
        shown.append([printable(row.name), row.url.removeprefix("http://") or DASH, row.state, *cells])
    widths = [max(map(_width, column)) for column in zip(*shown, strict=True)]
    return [[_padded(cell, width) for cell, width in zip(line, widths, strict=True)] for line in shown]


def _painted(table: Sequence[Sequence[str]], rows: Sequence[Row], paint: _Paint) -> Iterator[str]:
    yield paint(_GAP.join(table[0]).rstrip(), _SOFT)
    for row, line in zip(rows, table[1:], strict=True):
        kinds = ["", "", _kind(row), *(_BAD if cell.bad else "" for cell in row.cells.values())]
        yield _GAP.join(paint(cell, kind) for cell, kind in zip(line, kinds, strict=True)).rstrip()


def _stacked(row: Row, width: int, paint: _Paint) -> Iterator[str]:
    """A service on lines of its own: its name, address and state; its numbers, where any are known; and its remarks."""
    head = f"{printable(row.name)}  {row.url or DASH}  {row.state}"
    first, *more = _wrapped(head, width)
    yield first[: -len(row.state)] + paint(row.state, _kind(row)) if first.endswith(row.state) else first
    yield from more
    if any(cell.known for cell in row.cells.values()):
        # A name stays beside its number: blanks inside are no places to break a line.
        numbers = [f"{TITLES[key]} {_cut(key, cell)}".replace(" ", "\0") for key, cell in row.cells.items()]
        text = " ".join(f"{each}\0·" for each in numbers)[:-2]
        for line in textwrap.wrap(text, max(width, 20), initial_indent="  ", subsequent_indent="  "):
            yield line.replace("\0", " ")
    for remark in row.remarks():
        yield from (f"  {line}" for line in _wrapped(remark, max(width, 20) - 2))


def _remarks(look: Look) -> Iterator[str]:
    """Why rows are not ready or have dashes, each reason once; and what their counts are of, where rows differ."""
    names: dict[str, list[str]] = {}
    for row in look.rows:
        over = [f"counted {row.over}"] if row.over and not look.over else []
        for remark in (*row.remarks(), *over):
            names.setdefault(remark, []).append(row.name)
    return (f"{', '.join(of)}: {remark}" for remark, of in names.items())


def _kind(row: Row) -> str:
    return _SOFT if row.ok and row.state != "ready" else _GOOD if row.ok else _BAD


def _cut(key: str, cell: Cell) -> str:
    text = printable(cell.text)
    most = _LONGEST.get(key)
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(printable(text), max(width, 20), subsequent_indent="    ", break_on_hyphens=False) or [""]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Columns of a terminal: letters of East Asia take two, marks that stand on others none."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def _paint(text: str, kind: str) -> str:
    return f"{kind}{text}{_PLAIN}" if kind else text


def _leave(text: str, _kind: str) -> str:
    return text
