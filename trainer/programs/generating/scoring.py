"""Has generated samples scored while the next ones are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.programs.generating.folder import OutputFolder
from trainer.records.numbers import plain
from trainer.rewards import Batch, RewardClient
from trainer.types import Sample, Scores, StopTrainingError

_DOES_NOT_APPLY = "not_applicable"  # the wire's code for it: an answer, and no failure


class Scoring:
    """One batch is scored while the next is made; `submit` waits for the one before.

    Args:
        folder: where scores are written as they come.
        say: takes a line about scores that failed.
    """

    def __init__(self, client: RewardClient, folder: OutputFolder, say: Callable[[str], None]) -> None:
        self._client, self._folder, self._say = client, folder, say
        self._columns = list(client.config.columns)
        self._open: tuple[Batch, list[Sample]] | None = None

    def submit(self, samples: Sequence[Sample]) -> None:
        """Send samples, and write down what became of those that were sent before. Raises StopTrainingError where a reward's
        settings say that its failures end the run."""
        self.finish()
        if samples:
            batch = self._client.batch(self._columns)
            batch.submit(samples)
            self._open = batch, list(samples)

    def finish(self) -> None:
        """Wait for what is under way. Raises as `submit`."""
        if self._open is None:
            return
        batch, samples = self._open
        self._open = None
        scores = batch.collect()
        for row, sample in enumerate(samples):
            self._folder.add_score(_line(sample, scores, row))
        for name, failures in scores.failures.items():
            if failures:
                told = ", ".join(f"{code} {count}" for code, count in failures.items())
                self._say(f"{name}: {sum(failures.values())} of {len(samples)} scores failed ({told})")
        if scores.stop_reason is not None:
            raise StopTrainingError(scores.stop_reason)


def has_failed(row: Mapping[str, Any]) -> bool:
    """Whether a line has a reward without an answer; one that does not apply to a sample has answered."""
    return any(code != _DOES_NOT_APPLY for code in row.get("errors", {}).values())


def table(scored: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """The mean of each reward over the samples that have a score, and how many of all have one."""
    lines = [f"{'':24}{'mean':>9}  scored"]
    for name in names:
        found = [row["scores"].get(name) for row in scored.values()]
        there = [value for value in found if value is not None]
        mean = f"{plain(sum(there) / len(there)) if there else '-':>9}"
        lines.append(f"{name:24}{mean}  {len(there)} of {len(found)}")
    return "\n".join(lines)


def _line(sample: Sample, scores: Scores, row: int) -> dict[str, Any]:
    """What the rewards said: a number, or null with the code of its failure."""
    details = scores.details[row] if scores.details else {}
    values: dict[str, float | None] = {}
    errors: dict[str, str] = {}
    for r, name in enumerate(scores.names):
        valid = bool(scores.valid_BR[row, r])
        values[name] = float(scores.scores_BR[row, r]) if valid else None
        if not valid:
            errors[name] = str(details.get(name, {}).get("error", {}).get("code", "dropped"))
    return {"id": sample.id, "scores": values, **({"errors": errors} if errors else {})}
