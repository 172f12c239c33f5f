"""Families of vision-language models beside Idefics3: read without torchvision, and no row knows of its neighbours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_families import FAMILIES
from trainer.config import ConfigError, VlmConfig
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.vlm import build
from trainer.types import Prompt

PLAN = TokenPlan(micro_batch_size=5, max_new_tokens=6)
# How many tokens each of the four pictures (32 x 32 twice, 32 x 20, 24 x 32 pixels) becomes: SmolVLM brings each to 64 pixels a
# side and cuts it into four tiles with a view of the whole, four tokens each.
IMAGE_TOKENS = {
    "qwen2_5_vl": [1, 1, 1, 1],
    "qwen3_vl": [1, 1, 1, 1],
    "smolvlm": [20, 20, 20, 20],
    "llava": [9, 9, 9, 9],
}


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenPolicy:
    folder = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    config = VlmConfig(type="vlm", pretrained=str(folder), dtype="float32")
    return TokenPolicy(build(config, torch.device("cpu")), keep_reference=False)


@pytest.fixture(scope="module")
def prompts(pictures: list[str]) -> list[Prompt]:
    """No image, one, and up to four."""
    texts = ["what?", "which one is red?", "how many?", "say the colours of all, please", "left or right?"]
    return [Prompt(f"p{n}", text, source_images=tuple(pictures[:n])) for n, text in enumerate(texts)]


def family(policy: TokenPolicy) -> str:
    return str(policy.model.network.config.model_type)


def test_images_become_the_tokens_of_their_sizes(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    image_id = policy.model.network.config.image_token_id
    expected = IMAGE_TOKENS[family(policy)]
    for count, prompt in enumerate(prompts):
        ids_T = policy.model.read(prompt).ids_T
        assert int((ids_T == image_id).sum()) == sum(expected[:count])
    assert "torchvision" not in sys.modules


def test_a_row_alone_is_the_row_in_its_batch(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    [together] = policy.sample(prompts, 1, range(5), PLAN)
    replay_BS = policy.replay(together, policy.parts(together)[0]).logp_BS.detach()
    for row, prompt in enumerate(prompts):
        [alone] = policy.sample([prompt], 1, [row], PLAN)
        assert alone.samples[0].tokens == together.samples[row].tokens
        length = len(alone.samples[0].tokens)
        alone_S = policy.replay(alone, policy.parts(alone)[0]).logp_BS[0].detach()
        for found_S in (together.logp_BS[row, :length], replay_BS[row, :length], alone.logp_BS[0]):
            torch.testing.assert_close(found_S, alone_S, atol=1e-4, rtol=0)


def test_the_answer_looks_at_the_image(policy: TokenPolicy, prompts: list[Prompt], pictures: list[str]) -> None:
    seen, other = (Prompt("p", "what?", source_images=(path,)) for path in pictures[:2])
    [rollout] = policy.sample([seen], 1, [0], PLAN)
    readings = [policy.model.read(each) for each in (seen, other)]
    answers = [rollout.samples[0].tokens] * 2
    one_S, two_S = policy.logp(readings, answers).detach()
    assert float((one_S - two_S).abs().max()) > 1e-3


def test_what_stands_for_an_image_is_never_drawn(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    model: Any = policy.model
    names = model.tokenizer.convert_ids_to_tokens(model.banned_N.tolist())
    image = model.tokenizer.convert_ids_to_tokens(model.network.config.image_token_id)
    assert image in names and "<|im_end|>" not in names
    assert set(range(len(model.tokenizer), model.network.config.text_config.vocab_size)) <= set(model.banned_N.tolist())


def test_parts_are_found_by_name(policy: TokenPolicy) -> None:
    found: dict[str, list[str]] = {"vision": [], "projector": [], "language": []}
    for name, part in policy.group_of.items():
        found[part].append(name)
    assert all(found.values())
    assert all(any(word in name for word in ("connector", "merger", "projector")) for name in found["projector"])
    assert any("embed_tokens" in name for name in found["language"]) and not any("visi" in n for n in found["language"])


def test_a_folder_without_a_processor_is_refused_by_name(tmp_path: Path) -> None:
    folder = FAMILIES["qwen2_5_vl"](tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(
        ConfigError, match=r"its processor cannot be loaded: .*the folder needs preprocessor_config.json"
    ):
        build(VlmConfig(type="vlm", pretrained=str(folder)), torch.device("cpu"))
