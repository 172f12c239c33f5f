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
from trainer.policies.tokens.llama.inputs import prefix_of, read_prefix, see
from trainer.policies.tokens.llama.layout import text_model
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.tokens.vlm import build
from trainer.types import Conversation, Prompt, Turn

PLAN = TokenPlan(micro_batch_size=5, max_new_tokens=6)
SLOW = ("llava_onevision", "qwen2_vl", "internvl")
# How many tokens each of the four pictures (32 x 32 twice, 32 x 20, 24 x 32 pixels) becomes: SmolVLM brings each to 64 pixels a
# side and cuts it into four tiles with a view of the whole, four tokens each. LLaVA-OneVision: one image alone is 6 x 6 patches
# with a token at the end of each row, and 9 of the view; several are not cut. InternVL: a square is one tile of four tokens, 8:5
# becomes 3 x 2 tiles and 3:4 becomes 3 x 4, each with a view of the whole.
IMAGE_TOKENS = {
    "qwen2_5_vl": [1, 1, 1, 1],
    "qwen3_vl": [1, 1, 1, 1],
    "smolvlm": [20, 20, 20, 20],
    "llava": [9, 9, 9, 9],
    "llava_onevision": [51],
    "qwen2_vl": [1, 1, 1, 1],
    "internvl": [4, 4, 28, 52],
}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in FAMILIES]
)
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
    for count, prompt in enumerate(prompts[: len(expected) + 1]):
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


def test_what_frozen_parts_have_seen_is_what_they_see(policy: TokenPolicy, prompts: list[Prompt]) -> None:
    """To the bit: embeddings, rotary positions, what is added to layers. LLaVA-OneVision ends the rows of an image with a parameter
    that is in no part but the language's: while it is trained, nothing is kept."""
    model, text = policy.model, text_model(policy.model.network)
    language = {id(parameter) for part in (text.text, text.head) for parameter in part.parameters()}
    others = {name: p for name, p in policy.trainable.named_parameters() if id(p) not in language}
    beside = [name for name in others if policy.group_of[name] == "language"]
    assert beside == (["model.image_newline"] if "image_newline" in str(list(others)) else [])
    read = [model.read(prompt) for prompt in prompts]
    try:
        for name in sorted(others, key=lambda name: name in beside):
            assert all(reading.seen is None for reading in see(model, text, read)), f"{name} is trained"
            others[name].requires_grad_(False)
        readings = see(model, text, read)
        assert all(reading.seen is not None for reading in readings)
        found, expected = prefix_of(model, text, readings), read_prefix(text, model.collate(readings))
    finally:
        for parameter in others.values():
            parameter.requires_grad_(True)
    assert list(found.lengths) == list(expected.lengths) and len(found.added) == len(expected.added)
    names = ("x_Nd", "cos_ND", "sin_ND", "next_P")
    pairs = [(getattr(found, name), getattr(expected, name)) for name in names]
    assert all(torch.equal(one, other) for one, other in [*pairs, *zip(found.added, expected.added, strict=True)])


def test_a_conversation_with_images_in_a_later_turn(policy: TokenPolicy, pictures: list[str]) -> None:
    """The later image moves the answer behind it, a row alone is the row in its batch; where a family writes an image otherwise
    beside others, the row is refused by name."""
    turns = [
        Turn("user", "<image>what?"),
        Turn("assistant", "a b"),
        Turn("user", "<image>how?"),
        Turn("assistant", "c"),
    ]
    try:
        texts = [
            policy.read_conversation(Conversation(f"row {n}", tuple(turns[:length]), images))
            for n, (length, images) in enumerate(
                [(4, tuple(pictures[:2])), (4, (pictures[0], pictures[3])), (2, (pictures[2],))]
            )
        ]
    except ConfigError as error:
        assert family(policy) == "llava_onevision" and "writes an image otherwise where others stand beside it" in str(
            error
        )
        return
    together = policy.logp([text.reading for text in texts], [text.tokens for text in texts]).detach()
    for row, text in enumerate(texts):
        alone_S = policy.logp([text.reading], [text.tokens])[0].detach()
        torch.testing.assert_close(together[row, : len(text.tokens)], alone_S, atol=1e-4, rtol=0)
    before = sum(texts[0].learnt[: texts[0].needed])
    of_both = [together[n, : len(texts[n].tokens)][torch.tensor(texts[n].learnt)] for n in range(2)]
    torch.testing.assert_close(of_both[0][:before], of_both[1][:before], atol=1e-4, rtol=0)
    assert (of_both[0][before:] - of_both[1][before:]).abs().max() > 1e-6


@pytest.mark.parametrize("fields", [{"lora": {"rank": 2}}, {"freeze": ["vision"]}])
def test_it_trains_in_bfloat16(policy: TokenPolicy, prompts: list[Prompt], fields: dict[str, Any]) -> None:
    """Adapters on a model in bfloat16, and a model in float32 that is computed in bfloat16, with a part that is frozen."""
    section = VlmConfig.model_validate(
        {"type": "vlm", "pretrained": policy.model.config.pretrained, **fields}, strict=False
    )
    rounded = TokenPolicy(build(section, torch.device("cpu")), keep_reference=True)
    [rollout] = rounded.sample(prompts, 1, range(5), PLAN)
    replay = rounded.replay(rollout, rounded.parts(rollout)[0], reference=True)
    assert replay.reference_BS is not None and rollout.mask_BS is not None
    assert torch.equal(replay.reference_BS, replay.logp_BS.detach()), "new adapters add nothing"
    assert float((replay.logp_BS.detach() - rollout.logp_BS)[rollout.mask_BS].abs().max()) < 0.15
    replay.logp_BS[rollout.mask_BS].sum().backward()
    for name, parameter in rounded.trainable.named_parameters():
        assert parameter.requires_grad or parameter.grad is None, name
    assert any(p.grad is not None and bool(p.grad.any()) for p in rounded.trainable.parameters())


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


def test_a_text_that_names_an_image_of_its_own_is_refused(policy: TokenPolicy, pictures: list[str]) -> None:
    model: Any = policy.model
    token = model.tokenizer.convert_ids_to_tokens(model.network.config.image_token_id)
    for images in ((), tuple(pictures[:2])):
        with pytest.raises(
            ConfigError, match=r"prompt 'p' .* has .* in its text, which stands|has 1 <image> marks and"
        ):
            model.read(Prompt("p", f"what {token} is", source_images=images))


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
