"""One evaluation's results: row entries, tables, alarms, and the files they are written to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.evaluation.artefacts.image_statistics import mean_statistics
from trainer.evaluation.outcomes import Alarm, Outcome, score_metrics
from trainer.evaluation.sets import EvaluationSet
from trainer.evaluation.unigenbench import Table, tabulate
from trainer.records.recorder import write_atomic


@dataclass
class Results:
    """What the weights after `step` steps did.

    Attributes:
        row: entries of metrics.jsonl, see trainer.records.keys.
        tables: UniGenBench's table by the set's folder.
        alarms: what was noticed.
    """

    step: int
    row: dict[str, float]
    tables: Mapping[str, Table]
    alarms: Sequence[Alarm] = ()

    @classmethod
    def of(
        cls, step: int, sets: Sequence[EvaluationSet], outcomes: Sequence[Outcome], start: Sequence[Outcome]
    ) -> Results:
        """From the outcomes of all sets, in order, and those at the start of the run (none: nothing to compare with)."""
        row, tables = score_metrics(outcomes, start), {}
        for chosen in sets:
            own = [outcome for outcome in outcomes if outcome.set == chosen.name]
            for name, (mean, _) in mean_statistics([outcome.statistics for outcome in own]).items():
                row[f"stats/{chosen.folder}/{name}"] = mean
            if chosen.judge is not None:
                tables[chosen.folder] = tabulate(own, chosen.judge)
                row |= tables[chosen.folder].metrics(f"eval/{chosen.name}")
        return cls(step, row, tables)

    def add_alarms(self, alarms: Sequence[Alarm]) -> None:
        """Take them in; each is a row entry alarm/<name>."""
        self.alarms = tuple(alarms)
        self.row |= {f"alarm/{alarm.name}": 1.0 for alarm in alarms}

    @property
    def means(self) -> dict[str, float]:
        """The mean score of every reward, by `<reward>` or `<set>/<reward>`; a table's overall by `<set>/overall`."""
        shares = [key.removesuffix("/valid_share") for key in self.row if key.endswith("/valid_share")]
        shares += [key for key in self.row if key.endswith("/overall")]
        return {key.removeprefix("eval/"): self.row[key] for key in shares if key in self.row}

    @property
    def best_of(self) -> float | None:
        """What tells the best evaluation: the first table's overall number; None without a table."""
        return next((table.rows[0].accuracy for table in self.tables.values()), None)


def write_results(folder: Path, results: Results) -> None:
    """Write tables and alarms into an evaluation's folder."""
    for name, table in results.tables.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name / "unigenbench.csv", table.as_csv())
        text = json.dumps(table.as_dict(), ensure_ascii=False, allow_nan=False, indent=1)
        write_atomic(folder / name / "unigenbench.json", text + "\n")
    alarms = [asdict(alarm) for alarm in results.alarms]
    write_atomic(folder / "alarms.json", json.dumps(alarms, ensure_ascii=False, indent=1) + "\n")
