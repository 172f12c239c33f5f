"""The network's parts against others' code for the same parts: Qwen3 for the understanding expert, SigLIP for the vision encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from tests.support.small_mot import row, small_mot, text
from trainer.config import ConfigError
from trainer.data.sequences import SequencePlan
from trainer.policies.base import Laying
from trainer.policies.unified.mot.pack import pack_rows
from trainer.policies.unified.mot.policy import MotPolicy
from trainer.policies.unified.mot.vision import from_patches, places, to_patches


def test_the_understanding_expert_on_a_text_is_a_qwen_with_normed_queries(policy: MotPolicy) -> None:
    """BAGEL's is Qwen2.5, whose q, k, v have biases, with Qwen3's norms of queries and keys; Qwen3's class has both."""
    model, language = policy.model, policy.model.network.geometry.language
    config = Qwen3Config(
        vocab_size=language.vocab_size,
        hidden_size=language.hidden_size,
        intermediate_size=language.intermediate_size,
        num_hidden_layers=language.num_hidden_layers,
        num_attention_heads=language.num_attention_heads,
        num_key_value_heads=language.num_key_value_heads,
        head_dim=language.head_dim,
        rms_norm_eps=language.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
        attention_bias=True,
        tie_word_embeddings=False,
        pad_token_id=None,
    )
    oracle: Any = Qwen3ForCausalLM(config).eval()
    ours = {
        name.removeprefix("language_model."): each
        for name, each in model.network.state_dict().items()
        if name.startswith("language_model.") and "_moe_gen" not in name
    }
    left = oracle.load_state_dict(ours, strict=False)
    assert not left.unexpected_keys and all(name.endswith("o_proj.bias") for name in left.missing_keys)
    for layer in oracle.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.bias)
    laid = model.lay(row("text", text("draw red disc left of nothing", learnt=True)), Laying(0))
    given = pack_rows([laid], model.codec, model.network.geometry, model.device, "rows")
    with torch.no_grad():
        und, _ = model.network(given.tokens, given.attends)
        wanted = oracle(torch.tensor([laid.words])).logits[0]
    torch.testing.assert_close(model.network.logits(und), wanted, rtol=1e-5, atol=1e-5)


def test_the_vision_encoder_on_a_square_image_is_siglip(policy: MotPolicy) -> None:
    network, vision = policy.model.network, policy.model.network.geometry.vision
    config = SiglipVisionConfig(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_hidden_layers=vision.num_hidden_layers,
        num_attention_heads=vision.num_attention_heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        vision_use_head=False,
    )
    oracle: Any = SiglipVisionModel(config).eval()
    ours = {
        name.removeprefix("vit_model.vision_model."): each
        for name, each in network.state_dict().items()
        if name.startswith("vit_model.")
    }
    linear = ours[
        "embeddings.patch_embedding.weight"
    ]  # a convolution whose pixels and colours are one axis, colours last
    patch = vision.patch_size
    ours["embeddings.patch_embedding.weight"] = linear.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2)
    renamed = {
        name: ours[name.removeprefix("vision_model.")]
        for name in oracle.state_dict()
        if not name.endswith("position_ids")
    }
    oracle.load_state_dict(renamed, strict=False)
    pixels = torch.rand(2, 3, vision.image_size, vision.image_size) * 2 - 1
    where = places(vision.side, vision.side, vision.side)
    with torch.no_grad():
        wanted = oracle(pixels).last_hidden_state
        found = network.vit_model(
            torch.cat([to_patches(each, patch) for each in pixels]), where.repeat(2), [vision.side**2] * 2
        )
    torch.testing.assert_close(found, wanted.flatten(0, 1), rtol=1e-5, atol=1e-5)


def test_patches_are_put_together_as_they_were_cut() -> None:
    picture = torch.arange(3 * 16 * 24.0).reshape(3, 16, 24)
    cut = to_patches(picture, 8)
    assert cut.shape == (6, 192)
    assert torch.equal(cut[1].reshape(8, 8, 3), picture[:, :8, 8:16].permute(1, 2, 0)), "row by row, colours last"
    assert torch.equal(from_patches(cut, 2, 3, 8), picture)
    assert torch.equal(from_patches(torch.stack([cut, cut]), 2, 3, 8)[1], picture)


def _gradients(policy: MotPolicy) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in policy.trainable.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("kind", ["texts", "images", "nothing"])
def test_every_trained_parameter_has_a_gradient_whatever_a_pack_holds(kind: str, plans: Sequence[SequencePlan]) -> None:
    policy = small_mot()
    given = {
        "texts": [row("one", text("draw", learnt=True))],
        "images": [row("one", *(item for item in plans[0].items[1:]))],
        "nothing": [],
    }[kind]
    out = policy.read([policy.lay(plan, Laying(0)) for plan in given])
    (out.cross_entropy_T.sum() + out.squared_error_L.sum()).backward()
    trained = {name for name, each in policy.trainable.named_parameters() if each.requires_grad}
    assert _gradients(policy).keys() == trained


def test_recomputed_layers_give_the_same_errors_and_gradients(plans: Sequence[SequencePlan]) -> None:
    found = []
    for again in (False, True):
        policy = small_mot(gradient_checkpointing=again)
        out = policy.read([policy.lay(plan, Laying(1)) for plan in plans])
        (out.cross_entropy_T.mean() + out.squared_error_L.mean()).backward()
        found.append((out, _gradients(policy)))
    (first, one), (second, two) = found
    assert torch.equal(first.squared_error_L, second.squared_error_L)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("parts", "kept"),
    [
        (("language", "vision", "connector"), ("_moe_gen", "vae2llm", "llm2vae", "time_embedder")),
        (("vision",), ("language_model", "connector", "vae2llm", "llm2vae", "time_embedder")),
        (("generation", "language"), ("vit_model", "connector")),
    ],
)
def test_frozen_parts_have_no_gradient_and_never_the_tables(
    parts: tuple[str, ...], kept: tuple[str, ...], plans: Sequence[SequencePlan]
) -> None:
    policy = small_mot(freeze=parts)
    out = policy.read([policy.lay(plan, Laying(1)) for plan in plans])
    (out.cross_entropy_T.sum() + out.squared_error_L.sum()).backward()
    trained = set(_gradients(policy))
    assert trained and all(any(part in name for part in kept) for name in trained)
    assert not any("pos_embed" in name for name in trained)


def test_in_half_precision_the_errors_are_about_the_same(plans: Sequence[SequencePlan], policy: MotPolicy) -> None:
    half = small_mot(dtype="bfloat16", freeze=("vision",))
    assert half.model.network.connector.fc1.weight.dtype == torch.float32, "what is trained stays whole"
    assert half.model.network.vit_model.vision_model.post_layernorm.weight.dtype == torch.bfloat16
    rows = [policy.lay(plan, Laying(seed)) for seed, plan in enumerate(plans)]
    whole, found = policy.read(rows), half.read(rows)
    assert found.squared_error_L.dtype == found.cross_entropy_T.dtype == torch.float32
    torch.testing.assert_close(found.squared_error_L.mean(), whole.squared_error_L.mean(), rtol=0.03, atol=0)
    torch.testing.assert_close(found.cross_entropy_T.mean(), whole.cross_entropy_T.mean(), rtol=0.03, atol=0)


def test_a_kernel_for_gpus_is_refused_elsewhere() -> None:
    with pytest.raises(ConfigError, match=r"policy\.attention = flex has no gradients on cpu"):
        small_mot(attention="flex")


@pytest.mark.parametrize(("height", "width", "side"), [(4, 4, 64), (3, 5, 64), (7, 1, 70), (70, 64, 70)])
def test_interpolated_places_are_the_buckets_of_fractions(height: int, width: int, side: int) -> None:
    """BAGEL cuts [0, 1) into as many buckets as the table has positions a side, and patch i of n lies at i / n."""
    ends = np.arange(1, side) / side
    rows, columns = (np.searchsorted(ends, np.arange(n) / n, side="right") for n in (height, width))
    assert places(height, width, side, spread=True).tolist() == (rows[:, None] * side + columns).flatten().tolist()
    assert places(height, width, side).tolist() == [y * side + x for y in range(height) for x in range(width)]


def test_interpolated_places_reach_both_tables(plans: Sequence[SequencePlan]) -> None:
    """Of 4 x 4 patches in tables of 8 x 8 latents and 4 x 4 seen patches: every other position, and each."""
    model = small_mot(interpolate_positions=True).model
    given = pack_rows(
        [model.lay(plans[1], Laying(seed=0))], model.codec, model.network.geometry, model.device, model.way
    )
    latents = [16 * y + 2 * x for y in range(4) for x in range(4)]
    assert given.tokens.latent_places_G.tolist() == latents * (len(given.tokens.latent_places_G) // 16)
    assert given.tokens.patch_places_V.tolist() == list(range(16))
