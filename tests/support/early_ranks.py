"""A step whose gradient is added up before its last score, and one that waits; `main` is run on two ranks, the rest with a world of one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from tests.support.rank_cases import deepspeed_json, find_cases
from tests.support.tiny_updates import PROMPTS, objective_config, policy_for, roll_out
from trainer.advantages import ESTIMATORS, RunningSpread
from trainer.config import AdvantageConfig, DistributedConfig, OptimConfig
from trainer.config.advantage import GdpoConfig, GrpoConfig, GrpoGlobalStdConfig
from trainer.engine import build_engine
from trainer.objectives import Scored, build_objective
from trainer.processes.distributed import World
from trainer.programs.early import EarlyUpdate
from trainer.programs.rollout import Drawn
from trainer.types import Scores
from trainer.update.updater import Updater

ASKED = [
    *PROMPTS,
    *(replace(prompt, id=f"{prompt.id}2", text=prompt.text.replace("in", "in dark")) for prompt in PROMPTS),
]
SCORES = torch.rand(16, 2, generator=torch.Generator().manual_seed(0))
VALID = torch.tensor([[True, True]] * 12 + [[True, False], [False, True], [False, False], [True, True]])
BOTH = torch.tensor([[1.0, 0.5]] * 16)
BEFORE = RunningSpread(2).after(SCORES[:8], VALID[:8])
DROPPED = VALID & torch.tensor([[False]] * 4 + [[True]] * 12)  # the first group of the first rank


@dataclass(frozen=True)
class Case:
    """What a step is; `seen` and `seen_valid` is what the first rank's first segment was added with, before it became another."""

    advantage: AdvantageConfig
    fields: dict[str, Any] = field(default_factory=dict)
    valid: Tensor = VALID
    seen: Tensor = SCORES
    seen_valid: Tensor = VALID


CLAMPED = GdpoConfig(adv_clip=1.0)
CASES = {
    "gdpo": Case(GdpoConfig(std_floor=0.9, adv_clip=1.0)),
    "grpo_global_std": Case(GrpoGlobalStdConfig(type="grpo_global_std", adv_clip=0.7)),
    "grpo with a KL": Case(GrpoConfig(type="grpo", std_floor=0.9, adv_clip=0.7), {"kl_beta": 0.5}),
    "gdpo with a KL": Case(GdpoConfig(std_floor=0.9, adv_clip=1.0), {"kl_beta": 0.5}),
    "a score that changes, with a KL": Case(CLAMPED, {"kl_beta": 0.5}, seen=SCORES.flip(0)),
    "two updates": Case(CLAMPED, {"updates_per_rollout": 2}),
    "a score that changes": Case(CLAMPED, seen=SCORES.flip(0)),
    "a group that is dropped late": Case(CLAMPED, valid=DROPPED),
}
APART = {"gdpo with a KL", "a score that changes, with a KL"}  # two gradients, which DeepSpeed does not keep


def one_step(case: str, group: World, *, early: bool, deepspeed: str | None = None) -> dict[str, float]:
    """Its metrics. `grad_norm` is of the gradient before clipping; with Adam the weights say less."""
    chosen = CASES[case]
    config, fields = chosen.advantage, chosen.fields
    policy = policy_for(**fields)
    with torch.no_grad():
        policy.trainable.proj_out.weight.add_(0.002)  # away from the reference, before an engine shards it
    optim = OptimConfig(lr=1e-3, schedule="constant", max_grad_norm=1e9)
    engine = build_engine(policy.trainable, optim, DistributedConfig(device="cpu", deepspeed=deepspeed), group)
    objective = build_objective(policy, objective_config(**fields), micro_batch_size=None, seed=1)
    updater = Updater(objective, engine, optim, group, max_steps=10)
    share = len(ASKED) // group.size
    prompts = ASKED[group.rank * share :][:share]
    rows = slice(4 * group.rank * share, 4 * (group.rank + 1) * share)
    rollouts = roll_out(policy, "flow_grpo", 4, prompts=prompts, seeds=range(16)[rows])
    scores = of_rows(SCORES, chosen.valid, rows)
    group_B = torch.cat([rollout.group_B for rollout in rollouts])
    after = BEFORE.after(scores.scores_BR, scores.valid_BR, reduce=group.sum)
    adv_B, weight_B = ESTIMATORS[config.type](
        scores.scores_BR,
        scores.valid_BR,
        group_B,
        scores.weights_BR,
        std_floor_R=BEFORE.floor(config.std_floor, after) if config.std_floor else None,
        reduce=group.sum,
    )
    fed = Scored(rollouts, adv_B.clamp(-config.adv_clip, config.adv_clip), weight_B)
    if not early:
        return updater.step(fed, 0)
    then = (chosen.seen, chosen.seen_valid) if group.rank == 0 else (SCORES, chosen.valid)
    batch = SimpleNamespace(peek=lambda part: of_rows(*then, slice(rows.start + part.start, rows.start + part.stop)))
    task = cast(Any, SimpleNamespace(advantage=config))
    drawn = Drawn(task, rollouts, cast(Any, batch), {}, [], cast(Any, None), 0, 0)
    update, added = EarlyUpdate(updater, drawn, group, 0, BEFORE, apart=case in APART), 0
    while update.advance():
        added += 1
    found = update.finish(scores, fed, after)
    return {"added": added, "clamped": float((fed.adv_B.abs() == config.adv_clip).any()), **found}


def of_rows(scores: Tensor, valid: Tensor, rows: slice) -> Scores:
    found: Any = SimpleNamespace(scores_BR=scores[rows], valid_BR=valid[rows], weights_BR=BOTH[rows])
    return cast(Scores, found)


def find(engine: str, group: World, folder: Path) -> dict[str, dict[str, float]]:
    path = deepspeed_json(engine, group, folder)
    return {case: one_step(case, group, early=True, deepspeed=path) for case in CASES if not (path and case in APART)}


def main(argv: list[str]) -> int:
    """`argv`: a folder, and engines; `none` is the one without DeepSpeed."""
    return find_cases(argv, find)
