"""What frozen parts make of images is made once a step, for drawing, updates and the reference; and never kept where it may change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.trainer.policies.tokens.test_llama_replay import drawn, gradients
from trainer.config import VlmConfig
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.sight import blanked
from trainer.policies.tokens.trace import AnswerTrace
from trainer.policies.tokens.vlm import build
from trainer.types import Rollout

FROZEN = {"freeze": ("vision", "projector")}


def make_policy(folder: Path, *, keep_reference: bool = False, **fields: Any) -> TokenPolicy:
    config = VlmConfig(type="vlm", pretrained=str(folder), dtype="float32", **fields)
    return TokenPolicy(build(config, torch.device("cpu")), keep_reference=keep_reference)


def count_images(policy: TokenPolicy) -> list[int]:
    """How many images the vision tower is shown, call by call; of a kept copy of it, too."""
    shown: list[int] = []
    for network in cast(list[Any], [policy.model.network, policy.copy]):
        if network is not None:
            network.model.vision_model.register_forward_pre_hook(
                lambda module, args, kwargs: shown.append(len(kwargs["pixel_values"])), with_kwargs=True
            )
    return shown


def unseen(rollout: Rollout) -> Rollout:
    """The rollout as if nothing had been seen."""
    trace = cast(AnswerTrace, rollout.trace)
    plain = {id(each): replace(each, seen=None) for each in trace.readings_B}
    return replace(rollout, trace=replace(trace, readings_B=[plain[id(each)] for each in trace.readings_B]))


def replayed(policy: TokenPolicy, rollout: Rollout) -> Tensor:
    return policy.replay(rollout, policy.parts(rollout)[0]).logp_BS.detach()


def test_frozen_parts_see_an_image_once_a_step(vlm_folder: Path, pictures: list[str]) -> None:
    policy = make_policy(vlm_folder, keep_reference=True, **FROZEN)
    shown = count_images(policy)
    rollout = drawn(policy, pictures)
    assert shown == [0 + 1 + 2 + 3 + 4]
    for _ in range(2):
        replay = policy.replay(rollout, policy.parts(rollout)[0], reference=True)
        assert replay.reference_BS is not None and torch.equal(replay.logp_BS.detach(), replay.reference_BS)
    assert len(shown) == 1
    drawn(policy, pictures)
    assert len(shown) == 2, "the next step sees anew: in another batch the last bits may differ"


def test_log_probabilities_and_gradients_are_those_of_images_seen_again(vlm_folder: Path, pictures: list[str]) -> None:
    policy = make_policy(vlm_folder, **FROZEN)
    rollout = drawn(policy, pictures)
    once_BS, once = gradients(policy, rollout)
    again_BS, again = gradients(policy, unseen(rollout))
    assert torch.equal(once_BS, again_BS)
    assert once.keys() == again.keys() and all(torch.equal(once[name], again[name]) for name in once)


def test_embeddings_are_those_of_the_moment(vlm_folder: Path, pictures: list[str]) -> None:
    """Updates move the embeddings of a prompt's words between two replays."""
    policy = make_policy(vlm_folder, **FROZEN)
    rollout = drawn(policy, pictures)
    before_BS = replayed(policy, rollout)
    network: Any = policy.model.network
    with torch.no_grad():
        network.get_input_embeddings().weight.mul_(1.5)
    assert not torch.equal(replayed(policy, rollout), before_BS)
    assert torch.equal(replayed(policy, rollout), replayed(policy, unseen(rollout)))


@pytest.mark.parametrize("fields", [{}, {"freeze": ("vision",)}, {"freeze": ("projector",)}], ids=str)
def test_parts_that_are_trained_see_anew(vlm_folder: Path, pictures: list[str], fields: dict[str, Any]) -> None:
    policy = make_policy(vlm_folder, **fields)
    shown = count_images(policy)
    rollout = drawn(policy, pictures)
    assert all(reading.seen is None for reading in cast(AnswerTrace, rollout.trace).readings_B)
    replayed(policy, rollout)
    assert shown[-2:] == [0 + 1 + 2 + 3 + 4] * 2


def test_another_image_is_seen(vlm_folder: Path, pictures: list[str]) -> None:
    """What was made of other inputs means nothing, or the proof of sight would look at the old image."""
    policy = make_policy(vlm_folder, **FROZEN)
    trace = cast(AnswerTrace, drawn(policy, pictures).trace)
    reading, answer = trace.readings_B[-1], trace.tokens_B[-1].tolist()
    assert reading.images and reading.seen is not None
    own_S, blank_S = policy.logp([reading], [answer])[0], policy.logp([blanked(reading)], [answer])[0]
    assert float((own_S - blank_S).detach().abs().max()) > 1e-3


def test_prompts_that_are_kept_between_steps_keep_no_more(vlm_folder: Path, pictures: list[str]) -> None:
    """So what is kept is bounded by the prompts of a step."""
    policy = make_policy(vlm_folder, **FROZEN)
    rollout = drawn(policy, pictures)
    assert all(reading.seen is not None for reading in cast(AnswerTrace, rollout.trace).readings_B)
    assert all(policy.model.read(sample.prompt).seen is None for sample in rollout.samples)
