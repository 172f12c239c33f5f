"""Curves that cannot move, and why: what a run's configuration fixes is said beside the curve, so that nobody looks for a cause.

Each reason follows from the code that is named beside it. Where a curve is not where it must be, that is said instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.records.numbers import plain

_TASKS = ("understand", "generate")


@dataclass(frozen=True)
class Flat:
    """A curve's value, how far rounding may take it from there, and why it is fixed."""

    value: float
    tolerance: float
    because: str

    def told(self, values: Sequence[float]) -> str:
        """The reason as a sentence; another one where the numbers say otherwise."""
        away = max((abs(value - self.value) for value in values if math.isfinite(value)), default=0.0)
        if away <= self.tolerance:
            return f"{self.value:g} by construction: {self.because}."
        return f"It should be {self.value:g} ({self.because}), and is up to {plain(away)} away from it."


def flat(config: Mapping[str, Any], key: str) -> Flat | None:
    """Why the curve of a key must be flat under a configuration; None where it may move.

    Args:
        config: as `config.yaml` has it, with today's names; what is missing there fixes nothing.
        key: of a row, with the task before it where a policy has two.
    """
    task = next((name for name in _TASKS if key.startswith(f"{name}/")), "")
    found = _REASONS.get(key.removeprefix(f"{task}/") if task else key)
    return None if found is None or not config else found(_Setting(config, task))


class _Setting:
    """Values of a configuration, from the view of one task; None where one is missing."""

    def __init__(self, config: Mapping[str, Any], task: str) -> None:
        self.config, self.task = config, task

    def get(self, *path: str) -> Any:
        node: Any = self.config
        for name in path:
            node = node.get(name) if isinstance(node, Mapping) else None
        return node

    def objective(self, name: str) -> Any:
        """A field of the objective: of images that are denoised beside answers, their own."""
        own = self.get("sampling", "tasks", self.task, "flow", "objective") if self.task else None
        return own.get(name) if isinstance(own, Mapping) else self.get("objective", name)

    def advantage(self, name: str) -> Any:
        own = self.get("sampling", "tasks", self.task, "advantage") if self.task else None
        return own.get(name) if isinstance(own, Mapping) else self.get("advantage", name)

    @property
    def one_update(self) -> bool:
        """Whether a step's samples are looked at once, before the weights that drew them have moved."""
        return self.get("optim", "updates_per_rollout") == 1 and not self.objective("old_decay")

    @property
    def begins_at_one(self) -> bool:
        """Whether ratios are to log-probabilities under the weights that are being trained (`ReplayedObjective.replayed`)."""
        return self.one_update and self.get("sampling", "old_logp") != "sampled"


_ONE = "each step makes one update (optim.updates_per_rollout is 1), and its ratios are taken before it"


def _kl(run: _Setting) -> Flat | None:
    # StochasticObjective._kl, TokenPolicy.terms, ForwardObjective.losses: without a weight nothing is computed.
    if run.objective("kl_beta") != 0:
        return None
    return Flat(0.0, 0.0, "objective.kl_beta is 0, so that no divergence is computed")


def _ratio(value: float) -> Callable[[_Setting], Flat | None]:
    # A replay repeats log-probabilities up to rounding; how well, ratio/replay_error says.
    return lambda run: Flat(value, 1e-4, _ONE) if run.begins_at_one else None


def _clip(run: _Setting) -> Flat | None:
    return Flat(0.0, 0.0, f"{_ONE}, and a ratio of 1 lies within every clip_range") if run.begins_at_one else None


def _nft_drift(run: _Setting) -> Flat | None:
    # DiffusionNft.terms: without an average the sampling policy's velocity is the first one predicted.
    if not run.one_update:
        return None
    return Flat(
        0.0,
        0.0,
        "objective.old_decay is 0 and each step makes one update, taken from the weights that drew the samples",
    )


def _advantage(run: _Setting) -> Flat | None:
    # gdpo and reinforce_pp whiten over the batch, the others subtract the mean of a group.
    return Flat(0.0, 1e-3, "every estimator subtracts a mean") if run.advantage("type") else None


def _lag(run: _Setting) -> Flat | None:
    if run.get("sampling", "pipeline") != "on_policy":
        return None
    return Flat(0.0, 0.0, "sampling.pipeline is on_policy: every step is drawn with the newest weights")


_REASONS: Mapping[str, Callable[[_Setting], Flat | None]] = {
    "kl": _kl,
    "loss/kl": _kl,
    "ratio/mean": _ratio(1.0),
    "ratio/min": _ratio(1.0),
    "ratio/max": _ratio(1.0),
    "ratio/std": _ratio(0.0),
    "clip_share": _clip,
    "nft/drift": _nft_drift,
    "adv/mean": _advantage,
    "rollout/weight_version_lag": _lag,
}
