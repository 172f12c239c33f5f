"""Looks at all targets at once, again and again, and counts from one look to the next."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from rewards.plane.ask import Asker, Seen
from rewards.plane.rows import Row, row_of
from rewards.plane.targets import Plan


@dataclass(frozen=True)
class Look:
    """What one look found, in the order of the plan. `at`: when it was, by this machine's clock."""

    at: datetime
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    @property
    def summary(self) -> str:
        """How many are ready, and which of what had to be is not."""
        ready = sum(row.state == "ready" for row in self.rows)
        text = f"{ready} of {len(self.rows)} ready"
        absent = sum(row.ok and row.state == "not started" for row in self.rows)
        return f"{text}, {absent} not started" if absent else text

    @property
    def over(self) -> str:
        """What the counts are of, where all rows agree."""
        over = {row.over for row in self.rows if row.over}
        return min(over) if len(over) == 1 else ""

    def as_json(self) -> dict[str, Any]:
        return {
            "at": self.at.isoformat(timespec="milliseconds"),
            "ok": self.ok,
            "notes": list(self.notes),
            "services": [row.as_json() for row in self.rows],
        }


class Watch:
    """Asks the targets of a plan. An async context manager: the connections are kept from look to look.

    Args:
        timeout_s: longest that one service may take to answer all that it is asked in a look.

    Raises:
        SourceError: certificates that are named cannot be read.
    """

    def __init__(self, plan: Plan, timeout_s: float) -> None:
        self.plan = plan
        self._askers = [Asker(target, timeout_s) for target in plan.targets]
        self._before: dict[int, Seen] = {}  # by the place of the target: the last look that had numbers
        several = Counter(target.group for target in plan.targets if target.group)
        places: Counter[str] = Counter()
        self._places = []
        for target in plan.targets:
            places[target.group] += 1
            count = several[target.group]
            self._places.append(f" {places[target.group]}/{count}" if count > 1 else "")

    async def look(self) -> Look:
        """Ask all at once. Takes as long as the slowest, at most the timeout."""
        seen = await asyncio.gather(*(asker.look() for asker in self._askers))
        rows = self._rows(seen)
        self._before |= {place: each for place, each in enumerate(seen) if each.metrics is not None}
        return Look(datetime.now().astimezone(), rows, self.plan.notes)

    def _rows(self, seen: Sequence[Seen]) -> tuple[Row, ...]:
        return tuple(
            row_of(target, self._places[place], seen[place], self._before.get(place))
            for place, target in enumerate(self.plan.targets)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(asker.close() for asker in self._askers))
