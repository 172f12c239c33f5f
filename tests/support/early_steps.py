"""Steps of the tiny policy whose first samples are scored while the others are awaited, and what a step is fed that waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from tests.support.tiny_updates import WORLD, make_updater, policy_for, roll_out
from trainer.advantages import ESTIMATORS, RunningSpread
from trainer.config.advantage import GdpoConfig
from trainer.objectives import Scored
from trainer.policies.flow.policy import FlowPolicy
from trainer.programs.early import EarlyUpdate
from trainer.programs.rollout import Drawn
from trainer.types import Rollout, Scores
from trainer.update.updater import Updater

SCORES = torch.tensor([[0.9, 0.1], [0.1, 0.4], [0.5, 0.4], [0.3, 0.8], [0.2, 0.2], [0.25, 0.9], [0.9, 0.3], [0.2, 0.4]])
VALID = torch.tensor([[True, True]] * 5 + [[True, False], [False, True], [False, False]])
BOTH = torch.tensor([[1.0, 0.5]] * 8)
NO_SPREAD = RunningSpread(2)
SPREAD = NO_SPREAD.after(torch.tensor([[0.0, 0], [1, 0.4]]), torch.ones(2, 2, dtype=torch.bool))
AFTER = SPREAD.after(SCORES, VALID)
GROUPS = torch.tensor([0] * 4 + [1] * 4)


def of_batch(
    clip: float = 5.0,
    *,
    type: str = "gdpo",
    scores: Tensor = SCORES,
    valid: Tensor = VALID,
    floor: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages, clamped, and weights, as of a step that waits."""
    adv, weight = ESTIMATORS[type](scores, valid, GROUPS, BOTH, std_floor_R=floor)
    return adv.clamp(-clip, clip), weight


class Peeked:
    """A batch whose rewards are there for the first `there` samples."""

    def __init__(self, scores: Scores, there: int) -> None:
        self.scores, self.there = scores, there

    def peek(self, rows: slice) -> Scores | None:
        return part_of(self.scores, rows) if rows.stop <= self.there else None


def all_scores(scores: Tensor = SCORES, valid: Tensor = VALID) -> Scores:
    found: Any = SimpleNamespace(scores_BR=scores, valid_BR=valid, weights_BR=BOTH)
    return cast(Scores, found)


def part_of(scores: Scores, rows: slice) -> Scores:
    found: Any = SimpleNamespace(**{name: value[rows] for name, value in vars(scores).items()})
    return cast(Scores, found)


def drawn_with(config: Any, rollouts: Sequence[Rollout], seen: Scores, there: int) -> Drawn:
    """A task's rollouts, the scores of whose first `there` samples are seen before the last one is there."""
    task, batch = cast(Any, SimpleNamespace(advantage=config)), cast(Any, Peeked(seen, there))
    return Drawn(task, list(rollouts), batch, {}, [], cast(Any, None), 0, 0)


def early_step(
    there: int,
    seen_first: Scores | None = None,
    config: Any = None,
    spread: RunningSpread = NO_SPREAD,
    *,
    scores: Scores | None = None,
    apart: bool = False,
    sampled: int = 2,
    micro: int | None = None,
    prepare: Callable[[Updater], None] = lambda updater: None,
    **fields: Any,
) -> tuple[FlowPolicy, dict[str, float], int]:
    """A step whose first `there` samples are scored while the others are awaited: the policy, the row, and how many segments were
    added before the last score.

    Args:
        seen_first: their scores, where others are there in the end.
        scores: those in the end.
        sampled, micro: micro-batches as they are sampled, and of the update.
        prepare: called with the updater, and the policy it has, before anything is drawn.
        fields: of the objective.
    """
    config, scores = config or GdpoConfig(adv_clip=1.0), scores or all_scores()
    policy = policy_for(**fields)
    updater = make_updater(policy, micro=micro, **fields)
    prepare(updater)
    rollouts = roll_out(policy, fields.get("objective", "flow_grpo"), sampled)
    drawn = drawn_with(config, rollouts, seen_first or scores, there)
    early, added = EarlyUpdate(updater, drawn, WORLD, 0, spread, apart=apart), 0
    while early.advance():
        added += 1
    fed = fed_by(config, spread, rollouts, scores)
    return policy, early.finish(scores, fed, AFTER), added


def waiting_step(
    config: Any,
    spread: RunningSpread = NO_SPREAD,
    *,
    scores: Scores | None = None,
    sampled: int = 2,
    micro: int | None = None,
    prepare: Callable[[Updater], None] = lambda updater: None,
    **fields: Any,
) -> tuple[FlowPolicy, dict[str, float]]:
    """The same step where it waits for every score."""
    policy = policy_for(**fields)
    updater = make_updater(policy, micro=micro, **fields)
    prepare(updater)
    rollouts = roll_out(policy, fields.get("objective", "flow_grpo"), sampled)
    return policy, updater.step(fed_by(config, spread, rollouts, scores or all_scores()), 0)


def fed_by(config: Any, spread: RunningSpread, rollouts: Sequence[Rollout], scores: Scores) -> Scored:
    """What a step is fed that waits for every score."""
    floor = spread.floor(config.std_floor, AFTER) if config.std_floor else None
    adv, weight = of_batch(
        config.adv_clip, type=config.type, scores=scores.scores_BR, valid=scores.valid_BR, floor=floor
    )
    return Scored(rollouts, adv, weight)
