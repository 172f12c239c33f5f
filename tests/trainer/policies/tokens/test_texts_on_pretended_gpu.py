"""A policy that writes on a pretended GPU: a token waits once at most, and neither a replay nor a loss waits at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.given_texts import preference, supervised
from tests.support.pretended_gpu import pretended_gpu
from tests.support.pretended_steps import UPDATE, Steps, policy_on, rl_steps, updater_on
from tests.support.tiny_updates import ADV, ONES, drawn_again, objective_config
from trainer.config import VlmConfig
from trainer.losses.preference import OF_STEP
from trainer.objectives import Scored, build_objective
from trainer.objectives.tokens.policy import TOKENS
from trainer.policies.tokens.draw import TokenPlan
from trainer.types import AnswerPair, Conversation, Prompt, Turn

PLAN = TokenPlan(micro_batch_size=8, max_new_tokens=6)
# transformers' Idefics3 puts images into their places by masks, three times a batch of prompts.
IMAGES = {"read policies/tokens/llama/inputs.py": 5}
# Five times whether rows have ended, the length of the positions' table, and the answers. An image tower is passed once.
DRAWN = {"read policies/tokens/llama/decode.py": 6, "read policies/tokens/llama/drawer.py": 1, **IMAGES}


@pytest.fixture
def section(vlm_folder: Path) -> VlmConfig:
    return VlmConfig(type="vlm", pretrained=str(vlm_folder), dtype="float32")


@pytest.fixture
def prompts(pictures: list[str]) -> list[Prompt]:
    texts = ["what color is the disc ?", "which ?"]
    return [Prompt(f"p{n}", text, source_images=(pictures[n],)) for n, text in enumerate(texts)]


def test_it_waits_where_it_is_known_to(section: VlmConfig, prompts: list[Prompt]) -> None:
    with pretended_gpu() as gpu:
        config = objective_config("grpo", kl_beta=0.1)
        policy = policy_on(section, keep_reference=True)
        steps = rl_steps(gpu, policy, config, prompts, PLAN, replace(PLAN, temperature=0.0))
    twice = {name: 2 * times for name, times in IMAGES.items()}  # the policy's and the reference's
    steps.check(sample=DRAWN, update={**UPDATE, **twice}, evaluation=DRAWN)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"top_p": 0.9}, {"top_k": 5}])
def test_what_can_be_drawn_is_read_once_a_position(
    section: VlmConfig, prompts: list[Prompt], fields: dict[str, Any]
) -> None:
    plan = replace(PLAN, **fields)
    with pretended_gpu() as gpu:
        policy, steps = policy_on(section), Steps(gpu)
        steps.stage("sample", lambda: list(policy.sample(prompts, 4, range(8), plan)))
    steps.check(sample={**DRAWN, "read policies/tokens/llama/drawer.py": 1 + plan.max_new_tokens})


def test_no_objective_of_texts_waits_in_its_terms(section: VlmConfig) -> None:
    """Prompts without images, whose reading waits for nothing."""
    variants: Mapping[str, dict[str, Any]] = {
        **{name: {"kl_beta": 0.1} for name in TOKENS},
        "dr_grpo": {"longest": 6},
        "gspo": {"type": "grpo", "level": "sequence", "off_policy": 0.1, "mask_truncated": True},
    }
    with pretended_gpu() as gpu:
        policy = policy_on(section, keep_reference=True)
        prompts = [Prompt("a", "what color is the disc ?"), Prompt("b", "which ?")]
        rollouts = list(policy.sample(prompts, 4, range(8), PLAN))
        stale = [replace(each, behind=1) for each in rollouts]
        for name, fields in variants.items():
            config = objective_config(
                **{"objective": name, **fields, **({"objective": "grpo"} if name == "gspo" else {})}
            )
            for drawn in (rollouts, stale) if name in ("grpo", "vespo") else (rollouts,):
                steps, objective = Steps(gpu), build_objective(policy, config, micro_batch_size=None, seed=1)
                updater = updater_on(policy, objective)
                fed = Scored(drawn_again(drawn), ADV, ONES)
                steps.stage(name, lambda updater=updater, fed=fed: updater.step(fed, 0))
                steps.check(**{name: UPDATE})


def test_given_texts_are_learnt_without_a_wait(section: VlmConfig) -> None:
    said = ("red disc", "which bar ?", "three", "no")
    talks = [
        Conversation(f"row {n}", (Turn("user", "which ?"), Turn("assistant", text))) for n, text in enumerate(said)
    ]
    pairs = [AnswerPair(Prompt(f"pair {n}", "which ?"), said[n], said[n - 1]) for n in range(4)]
    with pretended_gpu() as gpu:
        policy, steps = policy_on(section, keep_reference=True), Steps(gpu)
        for name, objective in (
            ("sft", supervised(policy, talks)),
            ("dpo", preference(policy, pairs)),
            ("ipo", preference(policy, pairs, dpo={"kind": "ipo"})),
        ):
            updater = updater_on(policy, objective)
            steps.stage(name, lambda updater=updater: updater.step(None, 0))
        steps.check(sft=UPDATE, dpo=UPDATE, ipo=UPDATE)
        for kind in OF_STEP:  # what is compared over all ranks comes back once a micro-batch
            compared, updater = Steps(gpu), updater_on(policy, preference(policy, pairs, dpo={"kind": kind}))
            compared.stage(kind, lambda updater=updater: updater.step(None, 0))
            compared.check(**{kind: {**UPDATE, "read objectives/tokens/preference.py": 1}})
