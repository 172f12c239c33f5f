"""A step whose gradient is added up before its last score, and one that waits; `main` is run on two ranks, the rest with a world of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from tests.support.rank_cases import deepspeed_json, find_cases
from tests.support.tiny_updates import PROMPTS, objective_config, policy_for, roll_out
from trainer.advantages import ESTIMATORS, RunningSpread
from trainer.config import AdvantageConfig, DistributedConfig, OptimConfig
from trainer.config.advantage import GdpoConfig, GrpoConfig
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
CASES: dict[str, tuple[AdvantageConfig, dict[str, Any]]] = {
    "gdpo": (GdpoConfig(std_floor=0.9, adv_clip=1.0), {}),
    "grpo with a KL": (GrpoConfig(type="grpo", std_floor=0.9, adv_clip=0.7), {"kl_beta": 0.5}),
    "gdpo with a KL": (GdpoConfig(std_floor=0.9, adv_clip=1.0), {"kl_beta": 0.5}),
}
APART = {"gdpo with a KL"}  # two gradients, which DeepSpeed does not keep


def one_step(case: str, group: World, *, early: bool, deepspeed: str | None = None) -> dict[str, float]:
    """Its metrics. `grad_norm` is of the gradient before clipping; with Adam the weights say less."""
    config, fields = CASES[case]
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
    scores = of_rows(rows)
    group_B = torch.cat([rollout.group_B for rollout in rollouts])
    after = BEFORE.after(scores.scores_BR, scores.valid_BR, reduce=group.sum)
    adv_B, weight_B = ESTIMATORS[config.type](
        scores.scores_BR,
        scores.valid_BR,
        group_B,
        scores.weights_BR,
        std_floor_R=BEFORE.floor(config.std_floor, after),
        reduce=group.sum,
    )
    fed = Scored(rollouts, adv_B.clamp(-config.adv_clip, config.adv_clip), weight_B)
    if not early:
        return updater.step(fed, 0)
    batch = SimpleNamespace(peek=lambda part: of_rows(slice(rows.start + part.start, rows.start + part.stop)))
    task = cast(Any, SimpleNamespace(advantage=config))
    drawn = Drawn(task, rollouts, cast(Any, batch), {}, [], cast(Any, None), 0, 0)
    update, added = EarlyUpdate(updater, drawn, group, 0, BEFORE, apart=case in APART), 0
    while update.advance():
        added += 1
    return {"added": added, **update.finish(scores, fed, after)}


def of_rows(rows: slice) -> Scores:
    found: Any = SimpleNamespace(scores_BR=SCORES[rows], valid_BR=VALID[rows], weights_BR=BOTH[rows])
    return cast(Scores, found)


def find(engine: str, group: World, folder: Path) -> dict[str, dict[str, float]]:
    path = deepspeed_json(engine, group, folder)
    return {case: one_step(case, group, early=True, deepspeed=path) for case in CASES if not (path and case in APART)}


def main(argv: list[str]) -> int:
    """`argv`: a folder, and engines; `none` is the one without DeepSpeed."""
    return find_cases(argv, find)
