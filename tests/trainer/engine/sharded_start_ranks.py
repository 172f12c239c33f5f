"""What each rank of test_sharded_start.py runs: a tiny SD3 from bfloat16 files, whole on every rank and shared out as it is loaded. Rank 0
writes what it saw as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.engine.engine_ranks import STAGES
from trainer.config import DistributedConfig, LoraConfig, OptimConfig, Sd3Config
from trainer.engine import build_engine, shares_weights
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.placing import waiting
from trainer.policies.registry import build_policy
from trainer.processes.distributed import World, world
from trainer.types import Prompt

STARTS = ("none", "zero3+at_once", "zero3", "zero3_offload", "none+lora", "zero3+lora")
PROMPTS = [Prompt("a", "a red cat"), Prompt("b", "a dog")]
PLAN = SamplingPlan(3, 2, "cps", 0.7, (0, 1), (0, 1), height=16, width=16, shift=None, guidance_scale=4.0)


def parts_of(module: nn.Module) -> dict[str, Any]:
    """What this rank holds of a module: its elements, those of it that are whole, and the types of its parts by name."""
    parameters = dict(module.named_parameters())
    parts = {name: getattr(parameter, "ds_tensor", None) for name, parameter in parameters.items()}
    return {
        "elements": sum(int(getattr(p, "ds_numel", p.numel())) for p in parameters.values()),
        "held": sum(p.numel() if parts[name] is None else parts[name].numel() for name, p in parameters.items()),
        "whole": sum(p.numel() for p in parameters.values()),
        "types": {name: str(p.dtype if parts[name] is None else parts[name].dtype) for name, p in parameters.items()},
    }


def one_start(name: str, group: World, pretrained: str, folder: Path) -> dict[str, Any]:
    """`name`: a stage, with `+lora` by adapters, with `+at_once` as DeepSpeed starts by itself: whole on the device, then cut."""
    stage, *how = name.split("+")
    lora, at_once, path = "lora" in how, "at_once" in how, None
    if STAGES[stage] is not None:
        path = str(folder / f"{group.rank}.json")
        settings = {"zero_optimization": STAGES[stage], "zero_force_ds_cpu_optimizer": False}
        Path(path).write_text(json.dumps(settings), encoding="utf-8")
    distributed = DistributedConfig(device="cpu", deepspeed=path)
    torch.manual_seed(0)
    config = Sd3Config(
        type="sd3", pretrained=pretrained, max_sequence_length=8, lora=LoraConfig(rank=2) if lora else None
    )
    with waiting(shares_weights(distributed) and not at_once):
        policy = build_policy(config, group.device, keep_reference=True)
    assert isinstance(policy, FlowPolicy)
    waited = sorted({str(p.dtype) for p in policy.trainable.parameters()})
    with pytest.MonkeyPatch.context() as patch:
        if at_once:
            patch.setattr("trainer.engine.zero.cut", lambda *_: None)
            patch.setattr("trainer.engine.zero.cut_frozen", lambda *_: None)
        engine = build_engine(policy.trainable, OptimConfig(lr=1e-3), distributed, group, policy.group_of, policy.copy)
    before = {name: engine.read(name)["weight"] for name in engine.names}
    held = {"trained": parts_of(policy.trainable), "copy": None if policy.copy is None else parts_of(policy.copy)}
    if lora:  # else the adapters would add nothing, and there would be nothing to compare
        for name, weight in before.items():
            engine.write(name, {"weight": weight + 0.01})
    (first, *others) = list(policy.sample(PROMPTS, 2, range(4), PLAN))
    engine.zero_grad()
    logps, kls = list[Tensor](), list[Tensor]()
    rollouts = [first, *others]
    for number, rollout in enumerate(rollouts):
        for part in policy.parts(rollout):
            replay = policy.replay(rollout, part, reference=True)
            logps.append(replay.logp_BS)
            kls.append(replay.kl_BS["velocity"])
            last = number == len(rollouts) - 1 and part.stop == len(PLAN.trained_steps)
            engine.backward((replay.logp_BS.sum() + replay.kl_BS["velocity"].sum()) / group.size, last=last)
    norm = engine.step(1e-3)
    return {
        "waited": waited,
        "held": held,
        "before": {name: weight.tolist() for name, weight in before.items()},
        "sampled": [rollout.logp_BS.tolist() for rollout in rollouts],
        "images": [int(sample.images[0].astype(int).sum()) for rollout in rollouts for sample in rollout.samples],
        "logps": [logp.tolist() for logp in logps],
        "kls": [kl.tolist() for kl in kls],
        "norm": norm,
        "after": {name: engine.read(name)["weight"].tolist() for name in engine.names},
    }


def main(argv: list[str]) -> int:
    """`argv`: the file to write, the model's folder."""
    output = Path(argv[0])
    output.parent.mkdir(parents=True, exist_ok=True)
    with world(DistributedConfig(device="cpu", deepspeed="any")) as group:
        found = {name: one_start(name, group, argv[1], output.parent) for name in STARTS}
        if group.is_main:
            output.write_text(json.dumps(found), encoding="utf-8")
    return 0
