"""Steps of the bigram policy on this rank's share of the answers; `main` is run on two ranks, the rest with a world of one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.bigram import Bigram
from tests.support.given_texts import answer_pairs, conversations, preference, supervised, updater_of
from tests.support.rank_cases import deepspeed_json, find_cases
from tests.support.tiny_updates import WORLD
from trainer.config import DistributedConfig, OptimConfig
from trainer.config.objective import FlowGrpoConfig
from trainer.engine import build_engine
from trainer.objectives import Objective, Scored
from trainer.objectives.flow.grpo import FlowGrpo
from trainer.objectives.tokens.policy import TokenLoss, TokenPolicy
from trainer.policies.base import SamplingPlan, regroup
from trainer.processes.distributed import World
from trainer.types import Prompt, Rollout
from trainer.update.updater import Updater

PROMPTS = [Prompt("a", "red"), Prompt("b", "blue")]
ADV = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.1, -0.1])
LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"kl_beta": 0.1},
    "dapo": {"kl_beta": 0.1},
    "dr_grpo": {"longest": 6},
    "gspo": {"kind": "grpo", "level": "sequence"},
    "root": {"kind": "dapo", "reduction": "root"},
    "luspo": {},
    "sapo": {},
    "cispo": {},
    "vespo": {},
}
GIVEN: dict[str, tuple[Any, Any]] = {
    "supervised": (supervised, conversations),
    "preference": (preference, answer_pairs),
    "aot": (partial(preference, dpo={"kind": "aot"}), answer_pairs),
    "aot_unpaired": (partial(preference, dpo={"kind": "aot_unpaired"}), answer_pairs),
    "bco_pair": (partial(preference, dpo={"kind": "bco_pair"}), answer_pairs),
}


def draw(policy: Bigram, *, micro_batch_size: int = 8, first_seed: int = 0) -> list[Rollout]:
    """Four answers to each prompt, of at most six tokens."""
    seeds = range(first_seed, first_seed + 8)
    return list(policy.sample(PROMPTS, 4, seeds, SamplingPlan(6, micro_batch_size)))


def make_updater(
    policy: Bigram,
    loss: str,
    *,
    micro: int | None = None,
    updates: int = 1,
    lr: float = 1e-2,
    clip: float | None = None,
    group: World = WORLD,
    deepspeed: str | None = None,
) -> Updater:
    optim = OptimConfig(lr=lr, schedule="constant", max_grad_norm=1e9, updates_per_rollout=updates)
    engine = build_engine(policy.trainable, optim, DistributedConfig(device="cpu", deepspeed=deepspeed), group)
    objective: Objective
    if loss == "flow_grpo":
        objective = FlowGrpo(policy, FlowGrpoConfig(clip_range=0.2), micro_batch_size=micro, seed=0)
    else:
        fields = {"kind": loss, **LOSSES[loss]} | ({} if clip is None else {"clip_range": (min(clip, 1.0), clip)})
        objective = TokenPolicy(policy, TokenLoss(**fields), micro_batch_size=micro)
    return Updater(objective, engine, optim, group, max_steps=10)


def gradient(policy: Bigram) -> Tensor:
    """What the last update's backward passes added up to."""
    return torch.cat([p.grad.flatten() for p in policy.trainable.parameters() if p.grad is not None])


def weights(policy: Bigram) -> Tensor:
    return torch.cat([p.detach().flatten() for p in policy.trainable.parameters()])


def row_of(loss: str, group: World = WORLD, deepspeed: str | None = None) -> dict[str, Any]:
    """Rows and weights of two steps with two updates each. The first of two ranks has its four answers in three
    micro-batches, the second has them in one."""
    if loss in GIVEN:
        return given_row_of(loss, group, deepspeed)
    policy = Bigram()
    # Drawn before the engine cuts the weights into parts: ranks draw answers of unequal length, in unequally many passes.
    drawn = [regroup(draw(policy, first_seed=10 * number), 4) for number in range(2)]
    updater = make_updater(policy, loss, updates=2, group=group, deepspeed=deepspeed)
    rows = []
    for number, halves in enumerate(drawn):
        mine = slice(None) if group.size == 1 else slice(4 * group.rank, 4 * group.rank + 4)
        rollouts = halves if group.size == 1 else [halves[group.rank]]
        if group.size > 1 and group.rank == 0:
            one, two, three, four = regroup(rollouts, 1)
            rollouts = [one, *regroup([two, three], 2), four]
        rows.append(updater.step(Scored(rollouts, ADV[mine], torch.ones(8)[mine]), number))
    engine = updater.engine
    return {
        "rows": rows,
        "weights": [x for name in engine.names for x in engine.read(name)["weight"].flatten().tolist()],
    }


def given_row_of(name: str, group: World = WORLD, deepspeed: str | None = None) -> dict[str, Any]:
    """The same of two steps on given texts, five a step in micro-batches of two: of two ranks the first has one micro-batch, the
    second two."""
    policy = Bigram()
    with torch.no_grad():  # so that no margin and no KL is trivial
        policy.trainable[2].bias.add_(torch.linspace(-0.3, 0.3, 7))
    make, texts = GIVEN[name]
    objective = make(policy, texts(), (group.rank, group.size), batch_size=5, micro_batch_size=2)
    updater = updater_of(policy, objective, group=group, deepspeed=deepspeed)
    rows = [updater.step(None, number) for number in range(2)]
    engine = updater.engine
    return {
        "rows": rows,
        "weights": [x for name in engine.names for x in engine.read(name)["weight"].flatten().tolist()],
    }


def main(argv: list[str]) -> int:
    """A case is a loss and an engine, `grpo-zero2`."""

    def find(case: str, group: World, folder: Path) -> dict[str, Any]:
        loss, engine = case.split("-")
        return row_of(loss, group, deepspeed_json(engine, group, folder))

    return find_cases(argv, find)
