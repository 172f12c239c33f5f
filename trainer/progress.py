"""The run on the screen: a bar on a terminal, a line per step elsewhere, with the same numbers."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm


class Progress:
    """Shows rows of metrics on `stream` (standard error by default).

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
        self._bar: tqdm[Any] | None = None

    def remember(self, row: Mapping[str, Any]) -> None:
        """Take the evaluation of an earlier start's row, so that it is shown again."""
        self._evaluated |= evaluations(row)

    def show(self, row: Mapping[str, Any]) -> None:
        """Show the row of a finished step, or of the evaluation before the first."""
        self.remember(row)
        if not self._shown:
            return
        step = int(row["step"])
        if self._bar is None and self._stream.isatty():
            self._bar = self._open_bar()
        text = "  ".join(describe(row, self._evaluated, self._seconds_left(step)))
        if self._bar is None:
            print(f"step {step}/{self._max_steps}  {text}", file=self._stream, flush=True)
        else:
            self._bar.n = step
            self._bar.set_description_str(text, refresh=True)

    def _open_bar(self) -> tqdm[Any]:
        """The bar begins with the first row: what others print while services start must not run into it."""
        return tqdm(
            total=self._max_steps,
            initial=self._start,
            file=self._stream,
            dynamic_ncols=True,
            bar_format="{n_fmt}/{total_fmt} |{bar:12}| {desc}",
        )

    def note(self, message: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            print(message, file=self._stream, flush=True)
        else:
            self._bar.write(message, file=self._stream)

    def close(self) -> None:
        """Leave the bar as it is and go to the next line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _seconds_left(self, step: int) -> float | None:
        """From the mean time between this start's rows, evaluations and checkpoints included; None at the first."""
        now = time.monotonic()
        if self._first is None or step <= self._first[0]:
            self._first = (step, now)
            return None
        first, began = self._first
        return (now - began) / (step - first) * max(self._max_steps - step, 0)


def evaluations(row: Mapping[str, Any]) -> dict[str, float]:
    """Held-out means of a row, by reward."""
    return {
        key.removeprefix("eval/"): value
        for key, value in row.items()
        if key.startswith("eval/") and key.count("/") == 1 and value is not None
    }


def describe(row: Mapping[str, Any], evaluated: Mapping[str, float], seconds_left: float | None) -> list[str]:
    """The numbers that matter, each with its name; what a row does not have is left out."""
    parts = [] if seconds_left is None else [f"ETA {duration(seconds_left)}"]  # first: a narrow terminal cuts the end
    rewards = {
        key.split("/")[1]: value
        for key, value in row.items()
        if key.startswith("reward/") and key.endswith("/mean") and value is not None
    }
    if rewards:
        parts.append("reward " + " ".join(f"{name} {value:.3g}" for name, value in rewards.items()))
    if evaluated:
        parts.append("eval " + " ".join(f"{name} {value:.3g}" for name, value in evaluated.items()))
    for key, form in (
        ("grad_norm", "grad {:.3g}"),
        ("reward_wait_share", "wait {:.0%}"),
        ("images_per_s", "{:.3g} img/s"),
    ):
        if row.get(key) is not None:
            parts.append(form.format(row[key]))
    failed = sum(value for key, value in row.items() if key.startswith("failed/") and value)
    if failed:
        parts.append(f"failed {failed:.0f}")
    return parts


def duration(seconds: float) -> str:
    """Seconds as people write them: `8 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
