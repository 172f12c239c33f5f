"""Which scorer each reward comes from: what the first answer said is held against every later one, and every start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainer.config import RewardConfig
from trainer.rewards.answers import OnEvent, RewardEvent, RewardServiceError
from wire.schema import ScorerInfo


@dataclass(frozen=True)
class ScorerChange:
    """A reward whose scores come from another scorer than before, which its `on_change: accept` allows.

    Attributes:
        step: the first training step that it concerns.
        before, after: the fields that differ, with their values.
    """

    reward: str
    step: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    def sentence(self) -> str:
        """For a person."""
        return f"since step {self.step} the reward {self.reward} comes from another scorer: {_both(self.before, self.after)}"

    def apply(self, scorer: ScorerInfo) -> ScorerInfo:
        """The scorer after the change."""
        return ScorerInfo.model_validate({**plain(scorer), **self.after})

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> ScorerChange:
        """The inverse of `as_dict`. Raises TypeError when a field is missing or unknown."""
        return cls(**tree)


def plain(scorer: ScorerInfo) -> dict[str, Any]:
    """A scorer as JSON holds it."""
    return scorer.model_dump(mode="json")


def differences(before: ScorerInfo, after: ScorerInfo) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that differ, as they were and as they are; two empty mappings for the same scorer.

    Compared are name, revision, range and direction; and the template, where both name one.
    """
    old, new = plain(before), plain(after)
    compared = ["name", "revision", "range", "higher_is_better"]
    if old["template_sha256"] and new["template_sha256"]:
        compared.append("template_sha256")
    changed = [name for name in compared if old[name] != new[name]]
    return {name: old[name] for name in changed}, {name: new[name] for name in changed}


def describe_change(before: ScorerInfo, after: ScorerInfo) -> str:
    """What differs, such as `revision 1, now 2`; empty for the same scorer."""
    return _both(*differences(before, after))


def changes_since(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, ScorerInfo]) -> dict[str, str]:
    """Columns whose scorer differs from what `Scorers.state` once gave, with what differs."""
    known = {name: ScorerInfo.model_validate(before[name]) for name in now if name in before}
    return {name: change for name in known if (change := describe_change(known[name], now[name]))}


class Scorers:
    """The scorer of every column of a run.

    A scorer is the same while its name, revision, template, range and direction are. Scores of two scorers cannot be
    compared, so a column that changes stops the run; where its `on_change` says accept, the change is said once, kept in
    `changes`, and the new scorer counts from then on. Where no canary was scored, the first answer says what scores the
    column, whatever `/v1/info` said. Lives on one event loop once the client has started.
    """

    def __init__(self, columns: Mapping[str, RewardConfig], on_event: OnEvent) -> None:
        self._columns = columns
        self._on_event = on_event
        self.now: dict[str, ScorerInfo] = {}
        self.changes: list[ScorerChange] = []
        self.refused: dict[str, str] = {}  # column to why the run must stop
        self._seen: dict[str, list[ScorerInfo]] = {}
        self._unproven: set[str] = set()  # columns of which no answer was seen yet

    def begin(self, column: str, scorer: ScorerInfo, *, proven: bool) -> None:
        """Later answers are compared with this scorer; if not `proven`, with that of the first answer."""
        self.now[column] = scorer
        self._seen[column] = [scorer]
        if proven:
            self._unproven.discard(column)
        else:
            self._unproven.add(column)

    def admit(self, column: str, scorer: ScorerInfo, where: str, step: int) -> str | None:
        """Whether scores of `scorer`, found at `where`, may be used. None when they may; else why not."""
        before, first = self.now[column], column in self._unproven
        self._unproven.discard(column)
        if not differences(before, scorer)[0]:
            return None
        if first:
            self.begin(column, scorer, proven=True)
            self.changes.append(ScorerChange(column, step, *differences(before, scorer)))
            text = (
                f"its scores come from another scorer than /v1/info names ({describe_change(before, scorer)}, {where})"
            )
            self._on_event(RewardEvent("warning", column, text))
            return None
        problem = f"its scores now come from another scorer ({describe_change(before, scorer)}, {where})"
        if self._columns[column].on_change == "stop":
            if column not in self.refused:
                self.refused[column] = (
                    f"reward {column}: {problem}, and the two cannot be compared. Start the old one again, or accept the "
                    f"change once with rewards.columns.{column}.on_change: accept; the run goes on from its checkpoint"
                )
                self._on_event(RewardEvent("changed", column, problem))
            return problem
        self.now[column] = scorer
        if all(differences(seen, scorer)[0] for seen in self._seen[column]):  # two replicas that take turns: said once
            self._seen[column].append(scorer)
            self.accept(column, before, scorer, step)
        return None

    def state(self) -> dict[str, dict[str, Any]]:
        """The present scorers as JSON holds them, for a checkpoint."""
        return {column: plain(scorer) for column, scorer in self.now.items()}

    def go_on(self, before: Mapping[str, Mapping[str, Any]], step: int) -> list[str]:
        """Compare with the scorers of a checkpoint of `step`, as `state` gave them. Returns the columns that changed.

        Raises:
            RewardServiceError: a reward comes from another scorer, and its `on_change` is stop.
        """
        problems, changed = [], []
        for column in sorted(before.keys() & self.now.keys()):
            then, now = ScorerInfo.model_validate(before[column]), self.now[column]
            if column in self._unproven:
                self.begin(column, then, proven=True)  # the first answer is compared with what scored until now
            elif not differences(then, now)[0]:
                continue
            elif self._columns[column].on_change == "stop":
                problems.append(
                    f"reward {column} comes from another scorer than until step {step} ({describe_change(then, now)}), and "
                    f"their scores cannot be compared. Point it at the old one again, choose another run_name, or accept "
                    f"the change once with rewards.columns.{column}.on_change=accept"
                )
            else:
                self.accept(column, then, now, step + 1)
                changed.append(column)
        if problems:
            raise RewardServiceError("\n".join(problems))
        return changed

    def accept(self, column: str, before: ScorerInfo, after: ScorerInfo, step: int) -> None:
        """Note a change that is allowed, and say it."""
        self.changes.append(ScorerChange(column, step, *differences(before, after)))
        text = f"{self.changes[-1].sentence()}; on_change: accept allows it, and scores from before cannot be compared"
        self._on_event(RewardEvent("changed", column, text))


def _both(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(before[name])}, now {_short(after[name])}" for name in before)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
