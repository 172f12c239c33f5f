"""What scored each reward of a run, agreed on by all ranks: at the start, for a checkpoint, and for the run folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.checkpoint.saver import Kept, Stateful
from trainer.processes.distributed import World
from trainer.records.recorder import Recorder
from trainer.rewards import RewardClient, RewardServiceError


class ScorerRecords:
    """What scored each reward so far: kept in checkpoints, written into the run folder, compared when a run goes on.

    Attributes:
        changed: rewards whose scorer is another one than when the checkpoint was made, where the config accepts that.
    """

    def __init__(self, client: RewardClient, world: World, recorder: Recorder) -> None:
        self.changed: list[str] = []
        self._client, self._world, self._recorder = client, world, recorder
        self._taken: dict[str, Any] = {"scorers": {}, "changes": []}

    def take(self) -> None:
        """Ask all ranks and write what they say into the run folder; checkpoints keep it as it was taken."""
        self._taken = scorer_records(self._client, self._world)
        self._recorder.write_scorers(self._taken)

    def states(self, step: Callable[[], int]) -> dict[str, Stateful]:
        """The two keys of a checkpoint.

        Taking them over compares the scorers of now with those of the checkpoint of `step()`; it raises RewardServiceError
        where a reward comes from another one, and its `on_change` is stop.
        """
        before: dict[str, Any] = {}

        def go_on(changes: Any) -> None:
            self.changed = list(self._client.go_on(before["scorers"], changes, step()))

        return {
            "scorers": Kept(lambda: self._taken["scorers"], lambda state: before.update(scorers=state)),
            "changes": Kept(lambda: self._taken["changes"], go_on),
        }


def check_agreement(client: RewardClient, group: World) -> None:
    """Raises RewardServiceError on all ranks where their services' scorers differ: a service was replaced meanwhile."""
    reports: list[dict[str, dict[str, Any]]] = group.gather(client.scorers.state())
    for rank, report in enumerate(reports):
        different = [name for name, scorer in report.items() if scorer != reports[0].get(name)]
        if different:
            raise RewardServiceError(
                f"reward {different[0]}: rank 0 is scored by {reports[0].get(different[0])}, rank {rank} by "
                f"{report[different[0]]}: see that all ranks reach the same services, then start again"
            )


def scorer_records(client: RewardClient, group: World) -> dict[str, Any]:
    """`{"scorers": column to its present scorer, "changes": [...]}`, the same on all ranks.

    A change that is accepted reaches each rank with its next answer. The rank that knows most is the furthest; a change
    that several ranks noticed is of the earliest step.
    """
    own = client.scorers
    reports = group.gather({"scorers": own.state(), "changes": [change.as_dict() for change in own.changes]})
    merged: dict[str, dict[str, Any]] = {}
    for change in (change for report in reports for change in report["changes"]):
        key = str([change["reward"], change["before"], change["after"]])
        if key not in merged or change["step"] < merged[key]["step"]:
            merged[key] = change
    furthest = max(reports, key=lambda report: len(report["changes"]))
    return {
        "scorers": furthest["scorers"],
        "changes": sorted(merged.values(), key=lambda change: int(change["step"])),
    }
