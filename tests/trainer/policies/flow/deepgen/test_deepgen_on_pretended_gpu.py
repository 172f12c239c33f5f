"""DeepGen on a pretended GPU, drawings beside edits: nothing waits but the pixels, the clock and the end of an update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.pretended_gpu import pretended_gpu
from tests.support.pretended_steps import UPDATE, policy_on, rl_steps
from tests.support.small_mot import picture
from tests.support.tiny_deepgen import make_deepgen
from tests.support.tiny_updates import objective_config
from trainer.config.deepgen import DeepGenConfig
from trainer.policies.base import SamplingPlan
from trainer.types import Prompt

IMAGES = {"read policies/flow/policy.py": 1, "read records/phases.py": 1}


@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
def test_it_waits_where_it_is_known_to(tmp_path: Path, offload: bool) -> None:
    section = DeepGenConfig(**make_deepgen(tmp_path).section(offload_encoders=offload))
    prompts = [Prompt("a", "a red cat"), Prompt("b", "make it blue", source_images=(picture(tmp_path, "source"),))]
    plan = SamplingPlan(4, 8, "flow_sde", 0.7, (0, 1), (0, 1), height=32, width=32)
    with pretended_gpu() as gpu:
        policy = policy_on(section, keep_reference=True)
        even = replace(plan, stochastic_steps=(), trained_steps=())
        steps = rl_steps(gpu, policy, objective_config("flow_grpo", kl_beta=0.1), prompts, plan, even)
    steps.check(sample=IMAGES, update=UPDATE, evaluation=IMAGES)
