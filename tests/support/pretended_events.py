"""What a pretended GPU tells: events, and the line of our code that asked."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
_PRETENDERS = ("pretended_gpu.py", "pretended_cuda.py", "pretended_events.py")
Kind = Literal["mixing", "read", "upload"]


@dataclass(frozen=True)
class Event:
    """What a GPU would refuse or wait for.

    Attributes:
        what: the kernel or the method.
        where: file and line of our code, `trainer/update/tally.py:52`.
    """

    kind: Kind
    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.kind} {self.what} at {self.where}"


def count(events: Sequence[Event], kind: Kind) -> int:
    return sum(event.kind == kind for event in events)


def lines(events: Sequence[Event], kind: Kind | None = None) -> Mapping[str, int]:
    """How many events each line has, the most first."""
    told = Counter(str(event) for event in events if kind in (None, event.kind))
    return dict(told.most_common())


def where() -> str:
    """The innermost line of our code that is at work."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(f"{ROOT}/") and Path(path).name not in _PRETENDERS and "site-packages" not in path:
            return f"{Path(path).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
