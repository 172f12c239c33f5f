"""Alarms of the user's own: functions that look at the numbers of an evaluation and say what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from machine.own import Own, OwnError, raised
from trainer.config import ConfigError
from trainer.config.own import found, own_function
from trainer.evaluation.artefacts.image_statistics import STATISTICS
from trainer.evaluation.outcomes import Alarm, metric_name
from trainer.evaluation.sets import EvaluationSet

_OFFERED = ("now", "start", "step")
_RETURNS = "str | None"
# Entries of a reward, and of a set's images and texts, with values that an evaluation may have.
_OF_A_REWARD = {
    "": 0.5,
    "/valid_share": 1.0,
    "/low": 0.4,
    "/high": 0.6,
    "/gain": 0.0,
    "/gain_low": -0.1,
    "/gain_high": 0.1,
}
_OF_A_SET = {**dict.fromkeys(STATISTICS, 0.5), "diversity": 0.5, "length": 20.0, "truncated": 0.0, "distinct": 1.0}


@dataclass(frozen=True)
class OwnAlarm:
    """One function; `name` is what its alarm is called in the row and on the page."""

    name: str
    own: Own
    call: Callable[..., Any]

    def look(self, now: Mapping[str, float], start: Mapping[str, float], step: int) -> Alarm | None:
        """What it says of an evaluation. Where it cannot say anything, because it raised, that is the alarm."""
        try:
            said = self._said(now, start, step)
        except OwnError as error:
            said = str(error)
        return None if said is None else Alarm(f"own/{self.name}", said)

    def prove(self, sets: Sequence[EvaluationSet]) -> None:
        """Call it once on numbers as the evaluation will have them. Raises ConfigError where that fails."""
        row = _probe(sets)
        try:
            self._said(row, row, 1)
        except OwnError as error:
            names = ", ".join(sorted(row))
            raise ConfigError(f"{error}; an evaluation of this run has {names}") from error

    def _said(self, now: Mapping[str, float], start: Mapping[str, float], step: int) -> str | None:
        try:
            said = self.call(now=dict(now), start=dict(start), step=step)
        except Exception as error:  # the user's code; whatever it raises is said with its line
            raise raised(self.own, error, f"on the evaluation after step {step}") from error
        if said is None or isinstance(said, str):
            return said
        raise self.own.error(
            f"{self.name} gave a {type(said).__name__} ({said!r:.60}); give a sentence, or None where all is well"
        )


def own_alarms(codes: Sequence[str]) -> list[OwnAlarm]:
    """The alarms of `evaluation.alarms.own`. Raises ConfigError: one is no such function, or two have one name."""
    alarms: list[OwnAlarm] = []
    for i, code in enumerate(codes):
        field = f"evaluation.alarms.own.{i}"
        call, own = own_function(code, field, _OFFERED, _RETURNS), found(code, field)
        if any(each.name == own.name for each in alarms):
            raise ConfigError(f"{field} = {code}: another alarm is called {own.name}, too; rename one of the functions")
        alarms.append(OwnAlarm(own.name, own, call))
    return alarms


def _probe(sets: Sequence[EvaluationSet]) -> dict[str, float]:
    row: dict[str, float] = {}
    for each in sets:
        for reward in each.columns(final=False):
            row |= {f"eval/{metric_name(each.name, reward)}{end}": value for end, value in _OF_A_REWARD.items()}
        row |= {f"stats/{each.folder}/{name}": value for name, value in _OF_A_SET.items()}
    return row
