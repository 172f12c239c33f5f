"""A policy that writes: it draws from what it scores, and no row knows of its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_vlm import AROUND, IMAGE
from trainer.config import ConfigError, VlmConfig
from trainer.policies.base import Replays, Samples, regroup
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.vlm import build
from trainer.types import Prompt, Rollout

PLAN = TokenPlan(micro_batch_size=20, max_new_tokens=8)


def make_policy(folder: Path, *, keep_reference: bool = False, **fields: Any) -> TokenPolicy:
    config = VlmConfig(type="vlm", pretrained=str(folder), dtype="float32", **fields)
    return TokenPolicy(build(config, torch.device("cpu")), keep_reference=keep_reference)


@pytest.fixture(scope="module")
def policy(vlm_folder: Path) -> TokenPolicy:
    return make_policy(vlm_folder)


@pytest.fixture(scope="module")
def prompts(pictures: list[str]) -> list[Prompt]:
    texts = ["what color is the disc ?", "which ?", "how many red bar ?", "is the left ring blue ?", "say nothing"]
    return [Prompt(f"p{n}", text, source_images=tuple(pictures[:n])) for n, text in enumerate(texts)]


def draw(policy: TokenPolicy, prompts: list[Prompt], plan: TokenPlan = PLAN, group_size: int = 4) -> list[Rollout]:
    return list(policy.sample(prompts, group_size, range(len(prompts) * group_size), plan))


def words(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [sample.tokens for rollout in rollouts for sample in rollout.samples]


def test_it_has_the_capabilities(policy: TokenPolicy) -> None:
    assert isinstance(policy, Samples) and isinstance(policy, Replays)
    assert set(policy.group_of.values()) == set(VlmConfig.groups) == {"vision", "projector", "language"}


def test_an_answer_does_not_depend_on_its_neighbours(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    together = draw(policy, prompts)
    small = draw(policy, prompts, TokenPlan(micro_batch_size=2, max_new_tokens=8))
    assert words(together) == words(small)
    logp_BS = torch.cat([regroup(small, 20)[0].logp_BS])
    torch.testing.assert_close(logp_BS, together[0].logp_BS, atol=1e-4, rtol=0)
    assert len(set(words(together))) > 10


def test_seeds_decide(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    again = draw(policy, prompts)
    assert words(again) == words(draw(policy, prompts))
    others = list(policy.sample(prompts, 4, range(100, 120), PLAN))
    assert words(again) != words(others)


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.6, "temperature": 1.5}])
def test_a_replay_says_what_was_drawn(policy: TokenPolicy, prompts: list[Prompt], fields: dict[str, Any]) -> None:
    [rollout] = draw(policy, prompts, TokenPlan(micro_batch_size=20, max_new_tokens=8, **fields))
    replay = policy.replay(rollout, policy.parts(rollout)[0])
    assert rollout.mask_BS is not None
    error_BS = torch.where(rollout.mask_BS, replay.logp_BS.detach() - rollout.logp_BS, 0.0).abs()
    assert error_BS.max() < 1e-4
    assert replay.logp_BS.requires_grad
    [half] = [each for each in regroup([rollout], 7)][1:2]
    alone = policy.replay(half, policy.parts(half)[0]).logp_BS
    width = alone.shape[1]
    assert half.mask_BS is not None
    whole_BS = replay.logp_BS[7:14, :width].detach()
    assert torch.where(half.mask_BS, alone.detach() - whole_BS, 0.0).abs().max() < 1e-4


def test_rows_that_are_all_short_keep_the_width_of_their_rollout(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    [rollout] = draw(policy, prompts, TokenPlan(micro_batch_size=20, max_new_tokens=8, stop_ids=tuple(range(20, 40))))
    lengths = [len(sample.tokens) for sample in rollout.samples]
    short = min(range(len(lengths)), key=lengths.__getitem__)
    assert lengths[short] < max(lengths)
    alone = regroup([rollout], 1)[short]
    assert policy.replay(alone, policy.parts(alone)[0]).logp_BS.shape == alone.logp_BS.shape == (1, max(lengths))


def test_the_picture_is_looked_at(policy: TokenPolicy, pictures: list[str]) -> None:
    texts = [Prompt(f"p{n}", "what color is the disc ?", source_images=(path,)) for n, path in enumerate(pictures)]
    rollouts = draw(policy, texts, TokenPlan(micro_batch_size=4, max_new_tokens=8), group_size=1)
    firsts = rollouts[0].logp_BS[:, 0]
    assert len(set(firsts.tolist())) > 1


def test_what_stands_for_an_image_is_never_written(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    tokenizer = policy.model.tokenizer
    banned = {tokenizer.convert_tokens_to_ids(name) for name in (IMAGE, AROUND, tokenizer.pad_token)}
    assert banned <= set(policy.model.banned_N.tolist())
    hot = TokenPlan(micro_batch_size=20, max_new_tokens=32, temperature=10.0)
    drawn = {token for row in words(draw(policy, prompts, hot)) for token in row}
    assert not drawn & banned and len(drawn) > 20


def test_the_likeliest_tokens_are_those_of_generate(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    plan = TokenPlan(micro_batch_size=5, max_new_tokens=8, temperature=0.0)
    [rollout] = draw(policy, prompts, plan, group_size=1)
    model = policy.model
    network: Any = model.network
    batch = model.collate([model.read(prompt) for prompt in prompts])
    written = network.generate(
        **batch, do_sample=False, max_new_tokens=8, suppress_tokens=model.banned_N.tolist(), pad_token_id=model.pad_id
    )
    for tokens, row in zip(words([rollout]), written[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
        assert row[: len(tokens)] == list(tokens)


def test_the_reference_is_the_start(vlm_folder: Path, prompts: list[Prompt]) -> None:
    policy = make_policy(vlm_folder, keep_reference=True)
    [rollout] = draw(policy, prompts)
    with torch.no_grad():
        for parameter in policy.trainable.parameters():
            parameter.mul_(1.05)
    replay = policy.replay(rollout, policy.parts(rollout)[0], reference=True)
    assert replay.reference_BS is not None and rollout.mask_BS is not None
    inside = rollout.mask_BS
    assert (replay.reference_BS - rollout.logp_BS)[inside].abs().max() < 1e-4
    assert (replay.logp_BS - rollout.logp_BS)[inside].abs().max() > 1e-3


def test_an_answer_that_is_cut_off_says_so(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    [rollout] = draw(policy, prompts, TokenPlan(micro_batch_size=20, max_new_tokens=3))
    ends = set(policy.model.ends)
    for sample in rollout.samples:
        assert sample.finished == (sample.tokens[-1] in ends)
        assert not ends & set(sample.tokens[:-1])
    assert any(not sample.finished for sample in rollout.samples)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (Prompt("a", "which ?", source_images=("nowhere.png",)), r"prompt 'a'.*nowhere\.png"),
        (Prompt("a", "which <image> ?"), r"1 <image> marks and 0 images"),
        (Prompt("a", "which ?" * 200), r"tokens, 0 of them of its images, and policy.max_prompt_tokens = 64"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_named(vlm_folder: Path, prompt: Prompt, said: str) -> None:
    policy = make_policy(vlm_folder, max_prompt_tokens=64)
    with pytest.raises(ConfigError, match=said):
        policy.check_prompts([prompt])


def test_all_prompts_that_cannot_be_read_are_counted_and_named_by_file_and_row(vlm_folder: Path) -> None:
    """Nothing is cut: an image cannot be, and half a question is another one."""
    policy = make_policy(vlm_folder, max_prompt_tokens=64)
    rows = [Prompt(f"q{n}", "which ?" * (200 * (n != 1)) or "which ?", place=f"a.parquet:{n + 1}") for n in range(3)]
    with pytest.raises(ConfigError) as raised:
        policy.check_prompts(rows)
    assert str(raised.value).startswith("2 of 3 prompts cannot be read.")
    assert "prompt 'q0' of data set 'default' (a.parquet:1) has" in str(raised.value) and "(a.parquet:3)" in str(
        raised.value
    )


def test_too_many_images(policy: TokenPolicy, pictures: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"has 5 images, and policy\.max_images = 4"):
        policy.check_prompts([Prompt("a", "which ?", source_images=(*pictures, pictures[0]))])


def test_marks_say_where_images_stand(policy: TokenPolicy, pictures: list[str]) -> None:
    first = policy.model.read(Prompt("a", "red <image> blue <image> ?", source_images=tuple(pictures[:2])))
    plain = policy.model.read(Prompt("a", "red blue ?", source_images=tuple(pictures[:2])))
    assert sorted(first.ids_T.tolist()) == sorted(plain.ids_T.tolist())
    assert first.ids_T.tolist() != plain.ids_T.tolist()


def test_frozen_parts_are_not_trained(vlm_folder: Path) -> None:
    policy = make_policy(vlm_folder, freeze=("vision", "projector"))
    trained = {policy.group_of[name] for name, p in policy.trainable.named_parameters() if p.requires_grad}
    assert trained == {"language"}
