"""The run on the screen: a bar with its numbers on a terminal, a line per step elsewhere.

On a terminal nothing is cut: what does not fit beside the bar goes into the lines below it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeVar, overload

from tqdm import tqdm

from trainer.records import keys
from trainer.records.numbers import plain

_BAR = "{n_fmt}/{total_fmt} |{bar:12}| {desc}"
_GAP = "  "
T = TypeVar("T")


class Watched(Sequence[T]):
    """Items that say on `stream` (standard error by default) every `every_s` seconds how many have been gone through."""

    def __init__(
        self, items: Sequence[T], what: str, *, shown: bool, every_s: float = 5.0, stream: TextIO | None = None
    ) -> None:
        self._items, self._what, self._shown, self._every_s, self._stream = items, what, shown, every_s, stream

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        said = time.monotonic()
        for number, item in enumerate(self._items):
            if self._shown and time.monotonic() - said >= self._every_s:
                said = time.monotonic()
                print(f"{self._what}: {number} of {len(self)}", file=self._stream or sys.stderr, flush=True)
            yield item


class Progress:
    """Shows rows of metrics on `stream` (standard error by default). A terminal that is gone costs the display, not the run.

    Args:
        max_steps: where the run ends.
        shown: False shows notes only.
        start: steps that an earlier start finished.
    """

    def __init__(self, max_steps: int, *, shown: bool, start: int = 0, stream: TextIO | None = None) -> None:
        self._max_steps = max_steps
        self._stream = stream or sys.stderr
        self._first: tuple[int, float] | None = None
        self._evaluated: dict[str, float] = {}
        self._shown = shown
        self._start = start
        self._bars: list[tqdm[Any]] = []  # the bar itself, then the lines below it

    def remember(self, row: Mapping[str, Any]) -> None:
        """Take the evaluation of a row, if it has one: it is shown until the next, alone. What the newest did not ask for
        is not shown from an older one."""
        self._evaluated = evaluations(row) or self._evaluated

    def show(self, row: Mapping[str, Any]) -> None:
        """Show the row of a finished step, or of the evaluation before the first."""
        self.remember(row)
        if self._shown:
            step = int(row["step"])
            parts = describe(row, self._evaluated, self._seconds_left(step))
            self._try(lambda: self._draw(step, parts))

    def note(self, message: str) -> None:
        """Print a line above the bar."""
        self._try(lambda: self._print(message))

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        self._try(self._close)

    def _draw(self, step: int, parts: Sequence[str]) -> None:
        if not self._bars and self._stream.isatty():
            self._bars.append(self._open_bar())
        if not self._bars:
            print(f"step {step}/{self._max_steps}{_GAP}{_GAP.join(parts)}", file=self._stream, flush=True)
            return
        lines = pack(parts, *self._room())
        while len(self._bars) < len(lines):
            self._bars.append(
                tqdm(bar_format="{desc}", position=len(self._bars), file=self._stream, dynamic_ncols=True)
            )
        self._bars[0].n = step
        for bar, line in zip(self._bars, [*lines, *[""] * (len(self._bars) - len(lines))], strict=True):
            bar.set_description_str(line, refresh=True)

    def _open_bar(self) -> tqdm[Any]:
        """The bar begins with the first row: what others print while services start must not run into it."""
        return tqdm(total=self._max_steps, initial=self._start, file=self._stream, dynamic_ncols=True, bar_format=_BAR)

    def _room(self) -> tuple[int, int]:
        """Characters beside the bar, and in a line below it. The last column stays free: a terminal may wrap there."""
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):  # a terminal by its own word, without a size
            columns = 0
        columns = (columns or shutil.get_terminal_size((sys.maxsize, 0)).columns) - 1
        return columns - len(f"{self._max_steps}/{self._max_steps} |{'':12}| "), columns

    def _print(self, message: str) -> None:
        if self._bars:
            self._bars[0].write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def _close(self) -> None:
        while self._bars:
            self._bars.pop(0).close()

    def _try(self, write: Callable[[], None]) -> None:
        """Write, unless who reads is gone, as after the ssh connection or the program behind a pipe was closed."""
        try:
            write()
        except OSError:
            for bar in self._bars:
                bar.disable = True  # it would try again when it is deleted
            self._bars, self._shown = [], False
            _to_nowhere(self._stream)

    def _seconds_left(self, step: int) -> float | None:
        """From the mean time between this start's rows, evaluations and checkpoints included; None at the first."""
        now = time.monotonic()
        if self._first is None or step <= self._first[0]:
            self._first = (step, now)
            return None
        first, began = self._first
        return (now - began) / (step - first) * max(self._max_steps - step, 0)


def evaluations(row: Mapping[str, Any]) -> dict[str, float]:
    """Held-out means of a row, by reward; those of a set with a name by `<set>/<reward>`, a table's by `<set>/overall`."""
    names = [key for key in row if key.startswith("eval/") and key != "eval/step"]
    means = [key for key in names if key.count("/") == 1 or f"{key}/valid_share" in row or key.endswith("/overall")]
    return {key.removeprefix("eval/"): row[key] for key in means if row[key] is not None}


def describe(row: Mapping[str, Any], evaluated: Mapping[str, float], seconds_left: float | None) -> list[str]:
    """The numbers that matter, each with its name; what a row does not have is left out."""
    parts = [] if seconds_left is None else [f"ETA {duration(seconds_left)}"]
    rewards = {
        name: value for key, value in row.items() if (name := keys.reward_of(key)) is not None and value is not None
    }
    if rewards:
        parts.append("reward " + " ".join(f"{name} {_told(value)}" for name, value in rewards.items()))
    if evaluated:
        parts.append("eval " + " ".join(f"{name} {_told(value)}" for name, value in evaluated.items()))
    for key, name in (("loss/ce", "CE"), ("loss/mse", "MSE"), ("grad_norm", "grad")):
        if row.get(key) is not None:
            parts.append(f"{name} {_told(row[key])}")
    for key, form in (
        ("reward_wait_share", "wait {:.0%}"),
        ("images_per_s", "{:.3g} img/s"),
        ("texts_per_s", "{:.3g} texts/s"),
        ("text/length", "{:.3g} tokens each"),
        ("tokens_per_s", "{:.4g} tok/s"),
        ("packed/fill", "packs {:.0%} full"),
    ):
        if row.get(key) is not None:
            parts.append(form.format(row[key]))
    failed = sum(value for key, value in row.items() if keys.failed_of(key) and value)
    if failed:
        parts.append(f"failed {failed:.0f}")
    return parts


def _told(value: float) -> str:
    """By the rule of all pages, in signs that every terminal has."""
    return plain(value).replace("−", "-").replace("\N{NO-BREAK SPACE}", " ")


def pack(parts: Sequence[str], first: int, width: int) -> list[str]:
    """Parts in lines of at most `width` characters, the first line of at most `first`. A part that is longer than a line
    is broken between its names and numbers."""
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}{_GAP}{part}" if lines[-1] else part
        if len(joined) <= (first if len(lines) == 1 else width):
            lines[-1] = joined
        elif len(part) <= width:
            lines.append(part)
        else:
            lines += _broken(part, width)
    return lines


def _broken(part: str, width: int) -> list[str]:
    """`eval ocr 0.8 color 0.7 ...` in lines that begin with `eval`."""
    head, *words = part.split(" ")
    lines = [head]
    for pair in (" ".join(words[n : n + 2]) for n in range(0, len(words), 2)):
        if len(lines[-1]) + 1 + len(pair) > width and lines[-1] != head:
            lines.append(head)
        lines[-1] += f" {pair}"
    return lines


def _to_nowhere(stream: TextIO) -> None:
    """Lead every standard stream that goes where `stream` goes to /dev/null: the interpreter writes, too, as it ends."""
    try:
        gone = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return  # no file of the system's
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in {1, 2, stream.fileno()}:
        there = os.fstat(number)
        if (there.st_dev, there.st_ino) == (gone.st_dev, gone.st_ino):
            os.dup2(nowhere, number)
    os.close(nowhere)


def duration(seconds: float) -> str:
    """Seconds as people write them: `8 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
