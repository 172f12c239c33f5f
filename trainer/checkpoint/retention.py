"""Which checkpoints stay: the newest, and the best by a metric."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from trainer.checkpoint.layout import discard_aside, folder_name, list_checkpoints, remove, saved_step, write_whole
from trainer.config import CheckpointConfig, ConfigError

BEST = "best"


class Retention:
    """Keeps the newest `keep` checkpoints and the best ones, and the pointer file `checkpoints/best`.

    The pointer is JSON, no link, so that it survives copies and file systems without links:
    `{"metric", "mode", "checkpoint", "value", "values": {checkpoint: value}}`.
    """

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder, self.config = folder, config
        self.began_at = -1  # the step this start goes on from; what was set aside stays until there is a newer one
        self._values = self._read()  # step to the metric's value, evaluated steps only

    def observe(self, row: Mapping[str, float | None]) -> None:
        """Take note of a row of metrics.jsonl. `eval/step` in it is the step an evaluation is of, where not `step`.

        Raises:
            ConfigError: the first row that could have the metric has not.
        """
        best = self.config.keep_best
        if best is None:
            return
        if best.metric not in row and not self._values:
            _check_known(best.metric, row)
        value = row.get(best.metric)
        if value is None or not math.isfinite(value):
            return
        step = row.get("eval/step")
        at = int((row["step"] if step is None else step) or 0)
        self._values = {**self._values, at: value}  # a new one: `apply` may be reading in the writer's thread

    def forget_after(self, step: int) -> None:
        """Drop values of steps after `step`: those of a course the run went back from."""
        self._values = {at: value for at, value in self._values.items() if at <= step}

    def apply(self, pending: int | None = None) -> None:
        """Delete what is neither among the newest nor among the best; write the pointer. Called after a whole write,
        so at least the checkpoint just written is left, whatever state the others are in.

        Args:
            pending: a step whose evaluation was on its way when the save began: it may turn out to be the best.
        """
        existing, values = list_checkpoints(self.folder), self._values
        best = self._best(existing, values)
        self._point(best, values)
        for path in existing[: -self.config.keep]:
            if path not in best and saved_step(path) != pending:
                remove(path)
        if existing and saved_step(existing[-1]) > self.began_at:
            discard_aside(self.folder)

    def _best(self, existing: list[Path], values: Mapping[int, float]) -> list[Path]:
        """Checkpoints with a value, best first; of equal ones the newer."""
        config = self.config.keep_best
        if config is None:
            return []
        sign = 1 if config.mode == "max" else -1
        known = [path for path in existing if saved_step(path) in values]
        known.sort(key=lambda path: (sign * values[saved_step(path)], saved_step(path)), reverse=True)
        return known[: config.count]

    def _point(self, best: list[Path], values: Mapping[int, float]) -> None:
        config = self.config.keep_best
        if config is None or not best:
            return
        pointer = {
            "metric": config.metric,
            "mode": config.mode,
            "checkpoint": best[0].name,
            "value": values[saved_step(best[0])],
            "values": {folder_name(step): value for step, value in sorted(values.items())},
        }
        write_whole(self.folder / BEST, json.dumps(pointer, indent=1))

    def _read(self) -> dict[int, float]:
        """The values that an earlier start knew. A pointer that is of another metric or torn counts for nothing."""
        config = self.config.keep_best
        try:
            pointer = json.loads((self.folder / BEST).read_text(encoding="utf-8"))
            if config is None or (pointer["metric"], pointer["mode"]) != (config.metric, config.mode):
                return {}
            return {saved_step(Path(name)): float(value) for name, value in pointer["values"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}


def _check_known(metric: str, row: Mapping[str, float | None]) -> None:
    """Raises ConfigError when a row of the metric's kind, evaluation or training, does not have it."""
    evaluated = {key for key in row if key.startswith("eval/")} - {"eval/step"}
    there = evaluated if metric.startswith("eval/") else set(row) - evaluated if row["step"] else set()
    if there:
        raise ConfigError(
            f"checkpoint.keep_best.metric = {metric} is not measured by this run; there are {', '.join(sorted(there))}"
        )
