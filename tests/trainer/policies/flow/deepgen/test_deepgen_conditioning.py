"""What a prompt becomes, against the same arithmetic written out; alone, and as the first trainer padded a micro-batch.

Axes: B prompts, L tokens of a prompt with its queries, D channels, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.support.tiny_deepgen import TinyDeepGen
from tests.support.tiny_qwen3vl import byte_tokenizer
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.deepgen.conditioning import render
from trainer.policies.flow.deepgen.model import DeepGenFlow
from trainer.policies.flow.policy import FlowPolicy
from trainer.types import Prompt

Build = Callable[..., DeepGenFlow]
SHORT, LONG = Prompt(id="short", text="a cat"), Prompt(id="long", text="a very large dog on the top of a hill")
HEADS, HEAD_DIM, THETA = 4, 16, 1e4  # of the tiny language model
FUSED = (12, 6)  # of its 13 layers


def test_a_prompt_is_a_user_turn_without_a_system_turn() -> None:
    assert render("a cat") == "<|im_start|>user\nGenerate an image: a cat<|im_end|>\n<|im_start|>assistant\n"
    assert render("") == "<|im_start|>user\nGenerate an image: <|im_end|>\n<|im_start|>assistant\n"


def test_an_edit_shows_its_pictures_before_the_text() -> None:
    first = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    second = "<|vision_start|><|image_pad|><|vision_end|>"
    assert render("swap", [2, 1]) == f"<|im_start|>user\n{first}{second}\nswap<|im_end|>\n<|im_start|>assistant\n"


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    out = x @ state[f"{name}.weight"].T
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def rms_norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]


def layer_norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return normed * state[f"{name}.weight"] + state[f"{name}.bias"]


def attend(q_HLD: Tensor, k_HLD: Tensor, v_HLD: Tensor, seen_LL: Tensor) -> Tensor:
    """Softmax attention to what is seen; a token that sees nothing gets nothing, as flash attention leaves padding."""
    scores = (q_HLD @ k_HLD.transpose(1, 2) / math.sqrt(q_HLD.shape[-1])).exp() * seen_LL
    weights = scores / scores.sum(-1, keepdim=True).clamp(min=1e-30)
    return (weights @ v_HLD).transpose(0, 1).flatten(1)


def split(x_LD: Tensor, heads: int) -> Tensor:
    return x_LD.unflatten(1, (heads, -1)).transpose(0, 1)


def rotate(x_HLD: Tensor, positions_L: Tensor) -> Tensor:
    half = HEAD_DIM // 2
    angles = positions_L[:, None] * THETA ** (-torch.arange(half) / half)
    first, second = x_HLD[..., :half], x_HLD[..., half:]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def decoder_layer(state: dict[str, Tensor], n: int, x: Tensor, positions_L: Tensor, seen_LL: Tensor) -> Tensor:
    name = f"lmm.language_model.layers.{n}"
    normed = rms_norm(state, f"{name}.input_layernorm", x)
    q = rotate(split(linear(state, f"{name}.self_attn.q_proj", normed), HEADS), positions_L)
    k = rotate(split(linear(state, f"{name}.self_attn.k_proj", normed), HEADS // 2), positions_L)
    v = split(linear(state, f"{name}.self_attn.v_proj", normed), HEADS // 2)
    k, v = (each.repeat_interleave(2, dim=0) for each in (k, v))
    x = x + linear(state, f"{name}.self_attn.o_proj", attend(q, k, v, seen_LL))
    normed = rms_norm(state, f"{name}.post_attention_layernorm", x)
    gate = functional.silu(linear(state, f"{name}.mlp.gate_proj", normed))
    return x + linear(state, f"{name}.mlp.down_proj", gate * linear(state, f"{name}.mlp.up_proj", normed))


def connector(state: dict[str, Tensor], x: Tensor) -> Tensor:
    for n in range(2):
        name = f"connector.layers.{n}"
        normed = layer_norm(state, f"{name}.layer_norm1", x)
        q, k, v = (split(linear(state, f"{name}.self_attn.{each}_proj", normed), 2) for each in "qkv")
        x = x + linear(state, f"{name}.self_attn.out_proj", attend(q, k, v, torch.ones(len(x), len(x))))
        hidden = linear(state, f"{name}.mlp.fc1", layer_norm(state, f"{name}.layer_norm2", x))
        cubic = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
        x = x + linear(state, f"{name}.mlp.fc2", 0.5 * hidden * (1 + cubic.tanh()))
    return x


def written_out(model: DeepGenFlow, texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """Token states (L, joint) and pooled vector of each text, left-padded to the longest."""
    state, tokenizer = model.networks.state_dict(), byte_tokenizer()
    rows = [
        tokenizer(f"<|im_start|>user\nGenerate an image: {text}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        for text in texts
    ]
    longest = max(map(len, rows))
    done = []
    for row in rows:
        padding = longest - len(row)
        tokens = state["lmm.language_model.embed_tokens.weight"][[tokenizer.pad_token_id] * padding + row]
        x = torch.cat([tokens, state["meta_queries"]])
        places = torch.arange(len(x))
        seen_LL = ((places[:, None] >= places) & (places >= padding)).float()
        hidden = {0: x}
        for n in range(12):
            hidden[n + 1] = decoder_layer(state, n, hidden[n], places - padding, seen_LL)
        x = connector(state, linear(state, "projector_1", torch.cat([hidden[n] for n in FUSED], -1)))
        done.append((linear(state, "projector_3", x), linear(state, "projector_2", x.mean(0))))
    return done


def test_a_prompt_alone_is_encoded_as_written_out(build: Build) -> None:
    model = build()
    ((states, pooled),) = written_out(model, [SHORT.text])
    found = model.encode([SHORT])
    assert set(found) == {"states", "pooled"}  # no mask where nothing is padded
    torch.testing.assert_close(found["states"][0], states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["pooled"][0], pooled, rtol=1e-4, atol=1e-5)


def test_padded_conditioning_is_the_first_trainers(build: Build) -> None:
    """Left-padded to the longest; padding is read by the connector, by the mean and, without a mask, by the transformer."""
    model = build(conditioning="padded")
    expected = written_out(model, [SHORT.text, LONG.text])
    found = model.encode([SHORT, LONG])
    assert set(found) == {"states", "pooled"}
    for row, (states, pooled) in enumerate(expected):
        torch.testing.assert_close(found["states"][row], states, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["pooled"][row], pooled, rtol=1e-4, atol=1e-5)
    alone = model.encode([SHORT])
    assert not torch.allclose(alone["pooled"][0], found["pooled"][0], rtol=1e-2, atol=1e-3)


def test_a_mixed_batch_is_right_padded_and_masked(build: Build) -> None:
    model = build()
    both, short = model.encode([SHORT, LONG]), model.encode([SHORT])
    length = short["states"].shape[1]
    assert both["text_mask"].sum(1).tolist() == [length, both["states"].shape[1]]
    assert both["text_mask"][0, :length].all()
    assert torch.equal(both["states"][0, :length], short["states"][0])
    assert torch.equal(both["pooled"][0], short["pooled"][0])


def plan(**changes: Any) -> SamplingPlan:
    given = {
        "noise_level": 0.7,
        "stochastic_steps": (0, 1),
        "trained_steps": (0, 1),
        "guidance_scale": 3.0,
        "shift": None,
    }
    return SamplingPlan(num_inference_steps=3, **{"micro_batch_size": 2, **given, **changes})


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_picture_does_not_depend_on_its_neighbour(build: Build, guidance_scale: float) -> None:
    policy = FlowPolicy(build(), keep_reference=False)
    (both,) = policy.sample([SHORT, LONG], 1, [7, 8], plan(guidance_scale=guidance_scale))
    for row, (prompt, seed) in enumerate([(SHORT, 7), (LONG, 8)]):
        (alone,) = policy.sample([prompt], 1, [seed], plan(guidance_scale=guidance_scale))
        torch.testing.assert_close(alone.trace.x_BT[0], both.trace.x_BT[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.logp_BS[0], both.logp_BS[row], rtol=1e-5, atol=1e-5)


def test_with_padded_conditioning_it_does(build: Build) -> None:
    policy = FlowPolicy(build(conditioning="padded"), keep_reference=False)
    (both,) = policy.sample([SHORT, LONG], 1, [7, 8], plan())
    (alone,) = policy.sample([SHORT], 1, [7], plan())
    assert not torch.allclose(alone.trace.x_BT[0], both.trace.x_BT[0], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("conditioning", ["single", "padded"])
def test_the_first_ratio_is_exactly_one(build: Build, conditioning: str) -> None:
    policy = FlowPolicy(build(conditioning=conditioning), keep_reference=True)
    (rollout,) = policy.sample([SHORT, LONG], 1, [7, 8], plan())
    replay = policy.replay(rollout, slice(0, 2), reference=True)
    assert torch.equal(replay.logp_BS, rollout.logp_BS)
    assert not replay.kl_BS["velocity"].any()


def test_the_prompt_reaches_the_picture_through_both_ways(build: Build) -> None:
    model = build()
    encoded, x, sigma = model.encode([SHORT]), torch.randn(1, *model.latent_shape(None, None)), torch.tensor([0.5])
    with torch.no_grad():
        base = model.velocity(model.network, x, sigma, encoded)
        for name in ("states", "pooled"):
            moved = model.velocity(model.network, x, sigma, {**encoded, name: encoded[name] + 1})
            assert (moved - base).abs().max() > 1e-3, name


class Calls:
    """Counts how often the connector works: once per encoding."""

    def __init__(self, model: DeepGenFlow) -> None:
        self.count = 0
        model.networks.connector.register_forward_hook(self)

    def __call__(self, *_: Any) -> None:
        self.count += 1


def test_a_distinct_prompt_is_encoded_once(build: Build) -> None:
    model = build()
    calls = Calls(model)
    group = model.encode([SHORT, SHORT, LONG])
    swapped = model.encode([LONG, SHORT])
    assert calls.count == 2
    for name in ("states", "pooled", "text_mask"):
        assert torch.equal(group[name], swapped[name][[1, 1, 0]])


def test_encodings_are_shared_on_disk_by_runs_of_the_same_weights(
    build: Build, tiny: TinyDeepGen, tmp_path: Path
) -> None:
    first, again = (build(embedding_cache=str(tmp_path / "cache")) for _ in range(2))
    calls = Calls(again)
    expected = first.encode([SHORT])
    found = again.encode([SHORT])
    assert calls.count == 0
    assert torch.equal(found["states"], expected["states"])
    other = tmp_path / "other.safetensors"
    other.write_bytes(tiny.checkpoint.read_bytes()[:-1] + b"\0")
    changed = build(embedding_cache=str(tmp_path / "cache"), checkpoint=str(other))
    calls = Calls(changed)
    changed.encode([SHORT])
    assert calls.count == 1


def test_offloaded_parts_visit_the_device_once_for_all_that_was_said_to_come(build: Build) -> None:
    model = build(offload_encoders=True)
    visitors = model.encode_prompts.encoders.visitors
    assert visitors is not None
    model.expect([[SHORT, SHORT], [LONG]])
    expected = build().encode([LONG])
    model.encode([SHORT, SHORT])
    assert torch.equal(model.encode([LONG])["states"], expected["states"])
    assert visitors.visits == 1 and not visitors.here


def test_a_damaged_file_of_the_cache_is_encoded_again_on_the_device(build: Build, tmp_path: Path) -> None:
    expected = build(embedding_cache=str(tmp_path)).encode([SHORT])
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    model = build(embedding_cache=str(tmp_path), offload_encoders=True)
    assert torch.equal(model.encode([SHORT])["states"], expected["states"])
    visitors = model.encode_prompts.encoders.visitors
    assert visitors is not None and visitors.visits == 1
