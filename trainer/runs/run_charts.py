"""The charts of a run that is followed: those of the report, over any axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.records.starts import course_of, start_of
from trainer.report import chart_list
from trainer.report.charts import Chart
from trainer.report.reading import IMAGES, line_of
from trainer.report.source import Line, is_of_evaluation
from trainer.runs.axes import AXES, place_of
from trainer.runs.run import Run


class Followed:
    """A run's numbers as charts take them. Hold the run's lock meanwhile, or its curves may change."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def config(self) -> Mapping[str, Any]:
        return self._run.config

    @property
    def changed_at(self) -> list[float]:
        folder = self._run.folder
        starts = [start_of(name, folder.text("starts", name)) for name, _ in folder.entries("starts")]
        return [float(step) for step, _ in course_of(start for start in starts if start is not None)]

    def trained_keys(self) -> Iterator[str]:
        return (key for key in self._run.curves if key != IMAGES and not is_of_evaluation(key))

    def evaluated_keys(self) -> Iterator[str]:
        return iter(self._run.evaluations)

    def trained(self, key: str) -> Line:
        return line_of(self._run.curves.curve(key))

    def counted(self, key: str) -> Line:
        return line_of(self._run.curves.counted(key))

    def evaluated(self, names: Sequence[str]) -> tuple[list[float], list[list[float]]]:
        steps, columns = self._run.evaluations.points(names)
        return [float(step) for step in steps], columns


def charts_of(run: Run, axis: str = "step") -> list[tuple[str, list[Chart]]]:
    """Section by section the charts of a run. Call with the run's lock held."""
    known = axis if place_of(run, axis) is not None else "step"
    return chart_list.charts_of(Followed(run), place_of(run, known), AXES[known])
