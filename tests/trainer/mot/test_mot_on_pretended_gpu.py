"""A Mixture-of-Transformers on a pretended GPU: images, texts, packs, and pictures and texts in turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.mot_ranks import FIELDS
from tests.support.pack_rows import ListedPlans, packed
from tests.support.pretended_gpu import pretended_gpu
from tests.support.pretended_steps import UPDATE, Steps, packed_updater, plain_flex, policy_on, rl_steps
from tests.support.small_mot import SIZES, four_rows, picture
from tests.support.tiny_updates import objective_config
from trainer.config.generation import GenerationConfig
from trainer.config.mot import MotConfig
from trainer.policies.base import SamplingPlan
from trainer.policies.generation import Instructions
from trainer.policies.tokens.draw import TokenPlan
from trainer.samplers.guidance import Guidance
from trainer.types import Prompt

pytestmark = pytest.mark.slow  # some 2 CPU s each
SECTION = MotConfig(type="mot", initialize=SIZES, dtype="float32", max_latent_size=8)
FLOW = SamplingPlan(4, 8, "flow_sde", 0.7, (0, 1), (0, 1))
IMAGES = {"read policies/flow/policy.py": 1, "read records/phases.py": 1}


def prompts(folder: Path, task: str = "") -> list[Prompt]:
    source = (picture(folder, "source"),)
    return [
        Prompt("drawn", "draw red disc left", task=task),
        Prompt("edited", "make left blue", source_images=source, task=task),
    ]


@pytest.mark.parametrize("guided", [False, True])
def test_images_wait_for_their_pixels_alone(tmp_path: Path, guided: bool) -> None:
    plan = replace(FLOW, guidance=Guidance(text=3.0, image=1.5)) if guided else FLOW
    with pretended_gpu() as gpu, plain_flex():
        policy = policy_on(SECTION)
        even = replace(plan, stochastic_steps=(), trained_steps=())
        steps = rl_steps(gpu, policy, objective_config("flow_grpo"), prompts(tmp_path), plan, even)
    steps.check(sample=IMAGES, update=UPDATE, evaluation=IMAGES)


def test_texts_wait_once_a_token(tmp_path: Path) -> None:
    plan = TokenPlan(micro_batch_size=8, max_new_tokens=6)
    with pretended_gpu() as gpu, plain_flex():
        policy = policy_on(SECTION)
        asked = prompts(tmp_path, "understand")
        steps = rl_steps(gpu, policy, objective_config("grpo"), asked, plan, replace(plan, temperature=0.0))
    drawn = {"read policies/unified/mot/inference/engine.py": 5, "read policies/tokens/llama/drawer.py": 1}
    steps.check(sample=drawn, update=UPDATE, evaluation=drawn)


def test_packs_wait_for_nothing_else(tmp_path: Path) -> None:
    with pretended_gpu() as gpu, plain_flex():
        policy, steps = policy_on(SECTION), Steps(gpu)
        sets = {"rows": ListedPlans("rows", list(four_rows(tmp_path)))}
        updater = packed_updater(cast(Any, policy), packed([{"name": "rows"}], **FIELDS), sets)
        steps.stage("packs", lambda: updater.step(None, 0))
    steps.check(packs=UPDATE)


def test_pictures_and_texts_in_turns_wait_once_a_word_and_once_a_picture(tmp_path: Path) -> None:
    settings = GenerationConfig(
        think=True, refine=1, num_inference_steps=3, max_new_tokens=4, text_guidance=3.0, image_guidance=1.5
    )
    with pretended_gpu() as gpu, plain_flex():
        policy, steps = policy_on(SECTION), Steps(gpu)
        steps.stage(
            "turns", lambda: policy.generate(prompts(tmp_path), [1, 2], settings, Instructions("think", "refine"))
        )
    texts, pictures = 2, 3  # pictures of one size are drawn together: a drawing, an edit, and both again
    steps.check(
        turns={
            "read policies/unified/mot/inference/engine.py": 3 * texts,
            "read policies/tokens/llama/drawer.py": texts,
            "read policies/unified/mot/inference/turns.py": pictures,
        }
    )
