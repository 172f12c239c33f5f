"""What a policy that reads and draws proves before its first step: of a sound one, and of each way to be blind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.task_configs import GENERATE, task_config, task_tree
from trainer.config import Config
from trainer.doctor.sight import check_sight
from trainer.policies.registry import build_policy
from trainer.policies.tokens.sight import Sight
from trainer.policies.unified.draw import ImagePlan
from trainer.policies.unified.policy import UnifiedPolicy
from trainer.policies.unified.sight import look_at_drawings
from trainer.programs.sight import is_asked_for, look_by_task
from trainer.types import Prompt, Rollout


def config_of(folder: Path) -> Config:
    return task_config(policy={"type": "janus", "pretrained": str(folder), "dtype": "float32"})


@pytest.fixture(scope="module")
def policy(janus_folder: Path) -> UnifiedPolicy:
    built: UnifiedPolicy = build_policy(config_of(janus_folder).policy, torch.device("cpu"), keep_reference=False)
    return built


def drawn(policy: UnifiedPolicy, *texts: str) -> list[Rollout]:
    prompts = [Prompt(f"p{n}", text, task="generate") for n, text in enumerate(texts)]
    return list(policy.sample(prompts, 1, range(len(prompts)), ImagePlan(len(prompts), guidance_scale=2.0)))


def statuses(found: Sequence[Sight]) -> dict[str, str]:
    return {each.check: each.status for each in found}


def test_a_sound_policy_passes_for_both_tasks(policy: UnifiedPolicy, janus_folder: Path, tmp_path: Path) -> None:
    config, pairs = config_of(janus_folder), []
    for n, shade in enumerate((40, 200)):
        image = tmp_path / f"{n}.png"
        Image.fromarray(np.full((32, 32, 3), shade, np.uint8)).save(image)
        sides = (
            Prompt(f"p{n}/understand", "what color ?", source_images=(str(image),), task="understand"),
            Prompt(f"p{n}/generate", f"draw a {'red' if n else 'blue'} disc", task="generate"),
        )
        pairs.append(Prompt(f"p{n}", "", sides=sides))
    assert is_asked_for(config, policy)
    found = statuses(look_by_task(config, policy, pairs, None, 2))
    assert {name: found[name] for name in ("image", "rows", "replay", "prompt", "images", "drawing")} == dict.fromkeys(
        ("image", "rows", "replay", "prompt", "images", "drawing"), "OK"
    )


class Dealt:
    """A sampler of the same prompts again and again, which must stay where it is."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts, self.position = prompts, 0

    def draw(self) -> Sequence[Prompt]:
        self.position += 1
        return self.prompts

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def test_the_doctor_looks_at_the_task_that_is_trained(janus_folder: Path) -> None:
    tree = task_tree(
        {"generate": GENERATE}, policy={"type": "janus", "pretrained": str(janus_folder), "dtype": "float32"}
    )
    sampler = Dealt(
        [Prompt(f"p{n}", f"draw a {color} disc", task="generate") for n, color in enumerate(("red", "blue"))]
    )
    found = list(check_sight(Config.model_validate(tree), sampler))  # type: ignore[arg-type]
    assert sampler.position == 0
    assert [(each.status, each.message.partition(":")[0]) for each in found] == [
        ("OK", "prompt"),
        ("OK", "images"),
        ("OK", "drawing"),
    ]


def test_alike_prompts_and_a_single_one_are_not_checked(policy: UnifiedPolicy) -> None:
    assert statuses(look_at_drawings(policy, drawn(policy, "draw a red disc"))) == {
        "prompt": "NOT CHECKED",
        "images": "NOT CHECKED",
        "drawing": "OK",
    }


def test_drawing_and_replay_that_differ_are_found(policy: UnifiedPolicy) -> None:
    rollouts = [
        replace(each, logp_BS=each.logp_BS + 0.01) for each in drawn(policy, "draw a red disc", "draw a blue disc")
    ]
    found = {each.check: each for each in look_at_drawings(policy, rollouts)}
    assert found["drawing"].status == "FAIL" and "differ by 0.01" in found["drawing"].sentence
    assert found["prompt"].status == "OK"


def test_a_policy_that_draws_without_its_prompt_is_found(
    policy: UnifiedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No text token has an embedding that differs from another's."""
    rollouts = drawn(policy, "draw a red disc", "draw a blue disc")
    embedding = policy.images.model.embed_text
    monkeypatch.setattr(policy.images.model, "embed_text", lambda network, ids: 0 * embedding(network, ids))
    found = {each.check: each for each in look_at_drawings(policy, rollouts)}
    assert found["prompt"].status == "FAIL" and "does not depend on its prompt" in found["prompt"].sentence
