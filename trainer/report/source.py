"""Where charts take a run's numbers from: the report reads a whole folder, the runs page reads many as they grow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Line:
    """A key over steps. `low` and `high` are the least and the largest of the rows that a point stands for, empty where each
    point is one row."""

    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Source(Protocol):
    """The numbers of a run, and its configuration with today's names."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def changed_at(self) -> Sequence[float]:
        """The steps from which a later start went on with another configuration."""
        ...

    def trained_keys(self) -> Iterable[str]:
        """The keys of steps, in the order in which rows name them."""
        ...

    def evaluated_keys(self) -> Iterable[str]:
        """Those of evaluations, which are of the weights after a step."""
        ...

    def trained(self, key: str) -> Line:
        """A key of steps; NaN where a row has none."""
        ...

    def counted(self, key: str) -> Line:
        """A key that rows name only where it is not 0."""
        ...

    def evaluated(self, names: Sequence[str]) -> tuple[Sequence[float], list[list[float]]]:
        """The evaluations that have a number of the first of some keys: their steps, and per key its numbers."""
        ...


def is_of_evaluation(key: str) -> bool:
    """Whether a key is of the weights after a step, and not of the step itself."""
    return key.startswith(("eval/", "alarm/", "heldout/")) or (key.startswith("stats/") and key.count("/") == 2)


def setting(config: Mapping[str, Any], *path: str) -> Any:
    """A value of a configuration; None where there is none."""
    node: Any = config
    for name in path:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def trained_on(config: Mapping[str, Any]) -> dict[str, float]:
    """Weights of the rewards that some training set or task uses (those of the first that names it)."""
    weights: dict[str, float] = {}
    datasets, tasks = setting(config, "data", "train"), setting(config, "sampling", "tasks")
    sections = [*(datasets if isinstance(datasets, list) else [])]
    sections += [*(tasks.values() if isinstance(tasks, Mapping) else [])]
    for section in sections:
        rewards = section.get("rewards") if isinstance(section, Mapping) else None
        for name, weight in (rewards if isinstance(rewards, Mapping) else {}).items():
            if number(weight):
                weights.setdefault(str(name), number(weight))
    return weights


def number(value: Any) -> float:
    """A recorded value as a float; NaN where it is null or no number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return math.nan
