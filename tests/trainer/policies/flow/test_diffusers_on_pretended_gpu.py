"""SD3, FLUX and Qwen-Image on a pretended GPU: no mixed devices, and no wait in a denoising step or a replay once prompts are encoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.pretended_events import lines
from tests.support.pretended_gpu import GPU, pretended_gpu
from tests.support.tiny_pipelines import make_flux, make_qwen_image, make_sd3
from tests.support.tiny_updates import ADV, ONES, make_updater
from trainer.config import FluxConfig, LoraConfig, QwenImageConfig, Sd3Config
from trainer.objectives import Scored
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.registry import build_policy
from trainer.processes.distributed import World
from trainer.types import Prompt

WORLD = World(rank=0, size=1, device=GPU)
PROMPTS = [
    Prompt("a", "a red cat"),
    Prompt("b", 'a sign that says "GDPO"'),
]  # of unequal lengths: padding is hidden by a mask
POLICIES = [
    ("sd3", make_sd3, Sd3Config),
    ("flux", make_flux, FluxConfig),
    ("qwen_image", make_qwen_image, QwenImageConfig),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "make", "section"), POLICIES)
def test_a_published_pipeline_waits_where_it_is_known_to(
    kind: str, make: Callable[[Path], Path], section: type, tmp_path: Path
) -> None:
    folder = make(tmp_path / kind)
    with pretended_gpu() as gpu:
        torch.manual_seed(0)
        config = section(type=kind, pretrained=str(folder), dtype="float32", lora=LoraConfig(rank=4))
        policy = build_policy(config, GPU, keep_reference=False)
        assert isinstance(policy, FlowPolicy)
        plan = SamplingPlan(3, 8, "flow_sde", 0.7, (0, 1), (0, 1), height=16, width=16, shift=None)
        updater = make_updater(policy, world=WORLD)
        updater.step(Scored(list(policy.sample(PROMPTS, 4, range(8), plan)), ADV, ONES), 0)  # prompts are encoded, once
        with gpu.during() as sample:
            rollouts = list(policy.sample(PROMPTS, 4, range(8), plan))
        with gpu.during() as update:
            updater.step(Scored(rollouts, ADV, ONES), 1)
    forwards = {"qwen_image": (3, 2)}.get(
        kind, (0, 0)
    )  # diffusers' network sends the longest prompt's length up in each
    assert lines(gpu.events, "mixing") == {}
    assert len(sample) <= 2 + forwards[0], lines(sample)  # the images, and the clock behind them
    assert len(update) <= 3 + forwards[1], lines(
        update
    )  # whether the losses are finite, the gradient's norm, the metrics
