"""What curves are drawn over: steps, or what had been spent by then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.records.rows.columns import Floats
from trainer.report.reading import IMAGES
from trainer.runs.run import Run
from trainer.runs.state import gpus

Place = Callable[[Sequence[float]], list[float]]
AXES = {
    "step": "step",
    "seconds": "seconds",
    "cpu": "CPU seconds",
    "gpu": "GPU seconds",
    "images": "images",
}


@dataclass(frozen=True)
class _Spent:
    """What had been spent by each of some steps."""

    steps: Floats
    sums: Floats

    def __call__(self, steps: Sequence[float]) -> list[float]:
        return [float(value) for value in np.interp(np.asarray(steps, float), self.steps, self.sums)]


def place_of(run: Run, axis: str) -> Place | None:
    """Steps to places on an axis; None where a run does not know it.

    Seconds are those of steps, evaluations and saving; CPU seconds those of rank 0, without its services; GPU seconds are
    seconds times the GPUs that the summary names.
    """
    if axis == "step":
        return lambda steps: [float(step) for step in steps]
    curves = run.curves
    seconds = curves.sums("time/total") + curves.sums("time/evaluate") + curves.sums("time/checkpoint")
    if axis == "gpu":
        count = gpus(run.summary)
        spent = seconds * count if count > 0 else np.zeros(0)
    else:
        spent = {"seconds": seconds, "cpu": curves.sums("time/cpu"), "images": curves.sums(IMAGES)}[axis]
    if not spent.any():
        return None
    # Before the first step, an evaluation may have taken time: its row is no step's, so the axis begins with the first step.
    return _Spent(np.concatenate([[0.0], curves.steps]), np.concatenate([[0.0], np.cumsum(spent)]))
