"""Two updates of a guided tiny policy through the conditional half alone; `main` is run on two ranks, the rest with a world of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tests.support.rank_cases import deepspeed_json, find_cases
from tests.support.tiny_updates import ADV, PROMPTS, make_policy
from trainer.config import DistributedConfig, OptimConfig
from trainer.engine import build_engine
from trainer.policies.base import SamplingPlan
from trainer.processes.distributed import World

ASKED = [replace(PROMPTS[0], negative_prompt=PROMPTS[1].text), PROMPTS[1]]
PLAN = SamplingPlan(
    4, 4, "cps", 0.7, (1, 2), (1, 2), guidance_scale=3.0, guidance_gradient="conditional", same_noise=True
)


def updates_of(group: World, deepspeed: str | None = None) -> dict[str, Any]:
    """Gradient norms, calls of the network on this rank, and whether each update's replay was its rollout to the bit."""
    policy, calls = make_policy(), 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    policy.trainable.register_forward_hook(count)
    distributed = DistributedConfig(device="cpu", deepspeed=deepspeed)
    engine = build_engine(policy.trainable, OptimConfig(max_grad_norm=1e9), distributed, group)
    share = len(ASKED) // group.size
    first = group.rank * share
    adv_B = ADV[4 * first : 4 * (first + share)]
    norms, exact = [], []
    for number in range(2):
        rollouts = list(policy.sample(ASKED[first : first + share], 4, list(range(8))[4 * first :][: len(adv_B)], PLAN))
        engine.zero_grad()
        for i, rollout in enumerate(rollouts):
            for part in policy.parts(rollout):
                logp_BS = policy.replay(rollout, part).logp_BS
                exact.append(torch.equal(logp_BS.detach(), rollout.logp_BS[:, part]))
                last = i == len(rollouts) - 1 and part.stop == len(PLAN.trained_steps)
                engine.backward(-(logp_BS * adv_B[4 * i : 4 * i + 4, None]).sum(), last=last)
        norms.append(engine.step(1e-3 / (number + 1)))
    return {"norms": norms, "exact": exact, "calls": calls}


def main(argv: list[str]) -> int:
    """Cases are engines."""
    return find_cases(argv, lambda engine, group, folder: updates_of(group, deepspeed_json(engine, group, folder)))
