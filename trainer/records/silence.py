"""Notices what has nothing to teach any more: a reward that turned constant, a gradient that is 0, answers that are all alike
or mostly cut off, plans that are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.tasks import length_field
from trainer.records import keys

COLLAPSED = 0.1  # of the entropy of the first steps; below that a policy of texts explores no more
MOSTLY = 0.5  # share of a step's answers
_CUT_OFF = "truncation"
_ENTROPIES = {"entropy": "text/entropy", "image entropy": "image/entropy"}  # subjects, with what is looked at


@dataclass
class Silence:
    """Consecutive steps in which something said nothing.

    Attributes:
        subject: a reward's name (`<reward> of <task>` where there are tasks), `gradient`, `entropy`, `image entropy`, `truncation`
            (`truncation of <task>`), or `eval/<reward>`.
        first, last: the steps.
        value: the one score that all samples of all these steps have; None where they differ between groups.
        sentence: for a person.
    """

    subject: str
    first: int
    last: int
    value: float | None
    sentence: str = ""

    @property
    def steps(self) -> int:
        return self.last - self.first + 1


class SilenceWatch:
    """Looks at the rows of metrics.jsonl in order.

    Args:
        after_steps: how many steps in a row something must be silent to be worth a sentence. It is said again whenever the
            silence has become twice as long.
    """

    def __init__(self, after_steps: int) -> None:
        self._after = after_steps
        self._running: dict[str, Silence] = {}
        self._varied: set[str] = set()  # held-out rewards whose last evaluation had different scores
        self._entropies: dict[str, list[float]] = {}  # of the first steps
        self.found: list[Silence] = []  # all that were worth a sentence, those that ended, too

    @staticmethod
    def looks_at(key: str) -> bool:
        """Whether what is said depends on a key of the rows."""
        return (
            key in ("grad_norm", *_ENTROPIES.values())
            or key.startswith("eval/")
            or (key.startswith("reward/") and key.endswith(("/mean", "/std")))
            or key.endswith("/truncated_share")
            or keys.signal_of(key) is not None
        )

    def add(self, row: Mapping[str, Any]) -> list[str]:
        """Take in a row. Returns what is to be said now."""
        said = self._held_out(row)
        step = int(row["step"])
        for key in row:
            if (flat := keys.signal_of(key)) is not None:
                task, name = flat
                constant = row.get(keys.reward(name, "std")) == 0
                value = row.get(keys.reward(name, "mean")) if constant else None
                said += self._count(f"{name} of {task}" if task else name, step, row[key] == 1, value)
        if "grad_norm" in row:
            said += self._count("gradient", step, row["grad_norm"] == 0, None)
        return said + self._texts(step, row)

    def skip(self) -> None:
        """Rows are left out here: what was silent before them is not known to be silent still."""
        self._running.clear()

    def _texts(self, step: int, row: Mapping[str, Any]) -> list[str]:
        """Answers that are all alike, by the entropy of the first steps, and answers that are mostly cut off."""
        said = []
        for subject, key in _ENTROPIES.items():
            if (entropy := row.get(key)) is not None:
                kept = self._entropies.setdefault(subject, [])
                if len(kept) < self._after:
                    kept.append(entropy)
                first = sum(kept) / len(kept)
                said += self._count(subject, step, entropy < COLLAPSED * first, first)
        if (cut := row.get("text/truncated_share")) is not None:
            has_tasks = any(key.startswith("understand/") for key in row)
            said += self._count(f"{_CUT_OFF} of understand" if has_tasks else _CUT_OFF, step, cut > MOSTLY, None)
        if (cut := row.get("plan/truncated_share")) is not None:
            said += self._count(f"{_CUT_OFF} of generate", step, cut > MOSTLY, None)
        return said

    def _count(self, subject: str, step: int, silent: bool, value: float | None) -> list[str]:
        if not silent:
            self._running.pop(subject, None)
            return []
        silence = self._running.setdefault(subject, Silence(subject, step, step, value))
        silence.last = step
        silence.value = silence.value if silence.value == value else None
        silence.sentence = _sentence(silence)
        if silence.steps < self._after:
            return []
        if silence not in self.found:
            self.found.append(silence)
        doublings, rest = divmod(silence.steps, self._after)
        return [silence.sentence] if rest == 0 and doublings & (doublings - 1) == 0 else []

    def _held_out(self, row: Mapping[str, Any]) -> list[str]:
        """An evaluation in which every prompt has the same score, after one in which they differed."""
        said = []
        for key in [key for key in row if key.startswith("eval/") and key.endswith("/low")]:
            name = key.removesuffix("/low")
            if row[key] != row.get(f"{name}/high"):
                self._varied.add(name)
            elif name in self._varied:
                self._varied.discard(name)
                step = int(row.get("eval/step") or row["step"])
                text = (
                    f"in the evaluation after step {step} every held-out prompt scores {row[name]:.6g} by "
                    f"{name.removeprefix('eval/')}: it is saturated, or the service gives everything the same score"
                )
                self.found.append(Silence(name, step, step, row[name], text))
                said.append(text)
        return said


def _sentence(silence: Silence) -> str:
    steps = f"in the {silence.steps} steps from {silence.first} to {silence.last}"
    if silence.subject == "gradient":
        return f"the gradient was 0 {steps}: nothing is learned. Look at adv/<reward>/zero_group_share and adv/trained_share"
    if silence.subject in _ENTROPIES:
        drawn, one = ("images", "image") if silence.subject == "image entropy" else ("answers", "answer")
        return (
            f"the entropy of the {drawn} was below a tenth of the first steps' {silence.value or 0.0:.3g} {steps}: the policy gives "
            f"nearly the same {one} every time and explores no more. If it is not yet good, lower optim.lr, raise "
            "objective.kl_beta or the upper end of objective.clip_range"
        )
    if silence.subject.partition(" of ")[0] == _CUT_OFF:
        task = silence.subject.partition(" of ")[2]
        texts = "plans" if task == "generate" else "answers"
        return (
            f"more than half of the {texts} were cut off {steps}: what they would have said never counts. Raise "
            f"{length_field(task)}, or reward shorter {texts}"
        )
    if silence.value is not None:
        return (
            f"every score of the reward {silence.subject} was {silence.value:.6g} {steps}: it is saturated, or its service "
            "gives everything the same score, and it teaches nothing"
        )
    return f"the reward {silence.subject} told no two samples of a group apart {steps}: it teaches nothing"
