"""Janus and the native model on a pretended GPU: images and texts by tokens, both tasks in one update, packs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.pack_rows import ListedPlans, packed
from tests.support.pretended_gpu import pretended_gpu
from tests.support.pretended_steps import UPDATE, packed_updater, plain_flex, policy_on, rl_steps, updater_on
from tests.support.small_mot import row, text
from tests.support.tiny_updates import ADV, ONES, objective_config
from trainer.config import JanusConfig
from trainer.config.neo import NeoConfig
from trainer.data.sequences import ImageItem
from trainer.objectives import Scored, build_objective
from trainer.objectives.tasks import Tasks
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.unified.draw import ImagePlan, Thinking
from trainer.types import Prompt

pytestmark = pytest.mark.slow  # some 2 CPU s each
TEXTS = TokenPlan(micro_batch_size=8, max_new_tokens=6)
IMAGES = ImagePlan(micro_batch_size=8, guidance_scale=2.5)
DRAWER = {"read policies/tokens/llama/drawer.py": 1}  # what was drawn
DECODED = {"read policies/unified/janus/model.py": 1}  # the pixels
# transformers' Janus compares the features of images with their places.
SEEN = {"read policies/tokens/llama/inputs.py": 2}


def read_by(times: int) -> dict[str, int]:
    """Tokens of which rows may end or have a beginning in common, and the length of the positions' table."""
    return {"read policies/tokens/llama/decode.py": times + 1}


@pytest.fixture
def section(janus_folder: Path) -> JanusConfig:
    return JanusConfig(type="janus", pretrained=str(janus_folder), dtype="float32", freeze=())


def drawings() -> list[Prompt]:
    return [
        Prompt(f"p{n}", said, task="generate") for n, said in enumerate(["draw red disc", "draw the blue bar left"])
    ]


def questions(pictures: list[str]) -> list[Prompt]:
    asked = ["what color is the disc ?", "which ?"]
    return [Prompt(f"q{n}", said, source_images=(pictures[n],), task="understand") for n, said in enumerate(asked)]


def test_images_by_tokens_wait_until_each_has_a_beginning_of_its_own(section: JanusConfig) -> None:
    config = objective_config("grpo", kl_beta=0.1)
    with pretended_gpu() as gpu:
        policy = policy_on(section, keep_reference=True)
        steps = rl_steps(gpu, policy, config, drawings(), IMAGES, replace(IMAGES, temperature=0.0))
    drawn = {**DRAWER, **DECODED}
    steps.check(sample={**drawn, **read_by(3)}, update=UPDATE, evaluation={**drawn, **read_by(1)})


def test_a_plan_in_words_before_an_image_adds_its_own_tokens(section: JanusConfig) -> None:
    plan = replace(IMAGES, think=Thinking(replace(TEXTS, max_new_tokens=4)))
    with pretended_gpu() as gpu:
        policy = policy_on(section)
        steps = rl_steps(gpu, policy, objective_config("grpo"), drawings(), plan, plan)
    known = {**DECODED, **read_by(6), "read policies/tokens/llama/drawer.py": 2}
    steps.check(sample=known, update=UPDATE, evaluation=known)


def test_texts_and_both_tasks_in_one_update(section: JanusConfig, neo_pictures: list[str]) -> None:
    config, asked = objective_config("grpo", kl_beta=0.1), questions(neo_pictures)
    with pretended_gpu() as gpu:
        policy = policy_on(section, keep_reference=True)
        steps = rl_steps(gpu, policy, config, asked, TEXTS, replace(TEXTS, temperature=0.0))
        parts = {
            name: build_objective(policy, config, micro_batch_size=None, seed=1) for name in ("understand", "generate")
        }
        updater = updater_on(policy, Tasks({name: (1.0, part) for name, part in parts.items()}))
        fed = {
            "understand": Scored(list(policy.sample(asked, 4, range(8), TEXTS)), ADV, ONES),
            "generate": Scored(list(policy.sample(drawings(), 4, range(8), IMAGES)), ADV, ONES),
        }
        steps.stage("both", lambda: updater.step(fed, 0))
    texts, twice = {**DRAWER, **read_by(5), **SEEN}, {name: 2 * times for name, times in SEEN.items()}
    steps.check(sample=texts, update={**UPDATE, **twice}, evaluation=texts, both={**UPDATE, **twice})


def test_the_native_model_writes_and_reads_packs(neo_folder: Path, neo_pictures: list[str]) -> None:
    config = objective_config("grpo", kl_beta=0.1)
    section = NeoConfig(type="neo", pretrained=str(neo_folder), dtype="float32", min_pixels=256, max_pixels=4096)
    learnt = text("red disc", learnt=True)
    rows = [row("said", text("which ?"), learnt), row("seen", ImageItem(neo_pictures[0], "seen"), learnt)]
    with pretended_gpu() as gpu, plain_flex():
        policy = policy_on(section, keep_reference=True)
        steps = rl_steps(gpu, policy, config, questions(neo_pictures), TEXTS, replace(TEXTS, temperature=0.0))
        updater = packed_updater(
            cast(Any, policy),
            packed([{"name": "rows"}], packs=2, rows_per_pack=2, fill="rows"),
            {"rows": ListedPlans("rows", rows)},
        )
        steps.stage("packs", lambda: updater.step(None, 0))
    drawn = {**DRAWER, "read policies/unified/neo/drawer.py": 5}  # whether rows have ended
    steps.check(sample=drawn, update=UPDATE, evaluation=drawn, packs=UPDATE)
