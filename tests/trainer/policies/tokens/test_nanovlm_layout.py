"""A nanoVLM file and the Idefics3 network it is read onto: the same logits to the last bit, the same tensors both ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support import nanovlm_reference as reference
from trainer.config import ConfigError
from trainer.config.nanovlm import NanoVlmConfig
from trainer.policies.tokens.nanovlm import layout
from trainer.policies.tokens.nanovlm.network import idefics3_config, is_placed_alike, load_state, new_network

IMAGE, PAD, END = 70, 2, 2


def network_of(
    config: NanoVlmConfig, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    network = new_network(idefics3_config(config, IMAGE, PAD, END), dtype)
    load_state(network, layout.to_idefics3(tensors, config, "model.safetensors"))
    return network


def row(*pieces: int | str) -> list[int]:
    """Token ids; "tile" stands for the four places of a tile."""
    return [token for piece in pieces for token in ([IMAGE] * 4 if piece == "tile" else [int(piece)])]


@pytest.mark.parametrize("side", [2, 6, 7, 19])
@torch.no_grad()
def test_logits_are_equal_to_the_last_bit(side: int) -> None:
    """Several images in a row, several rows, patches a side that Idefics3's own positions get wrong (19)."""
    factor = {2: 1, 6: 3, 7: 7, 19: 19}[side]
    tokens = (side // factor) ** 2
    config = reference.settings(
        vit_img_size=4 * side, max_img_size=4 * side, mp_pixel_shuffle_factor=factor, mp_image_token_length=tokens
    )
    tensors = reference.random_tensors(config, layout.key_table(config))
    network = network_of(config, tensors)
    ids_BT = torch.tensor(
        [
            [5, 71, *[IMAGE] * tokens, 8, 72, *[IMAGE] * tokens, 9, 3],
            [1] * (tokens + 2) + [*[IMAGE] * tokens] + [2, 4, 6, 7],
        ]
    )
    assert len(ids_BT[0]) == len(ids_BT[1])
    tiles = torch.rand(3, 3, 4 * side, 4 * side, generator=torch.Generator().manual_seed(1))
    tiles[1] = 0
    tiles[1, 0, 0, 0] = 1e-30  # as `read_tiles` marks a black tile
    expected = reference.logits(tensors, config, ids_BT, tiles, IMAGE)
    found = network(input_ids=ids_BT, pixel_values=tiles[None]).logits
    assert torch.equal(found, expected)
    black = tiles.clone()
    black[1] = 0
    assert torch.equal(reference.logits(tensors, config, ids_BT, black, IMAGE), expected)


@torch.no_grad()
def test_logits_of_a_text_alone_are_equal_to_the_last_bit() -> None:
    config = reference.settings()
    tensors = reference.random_tensors(config, layout.key_table(config))
    ids_BT = torch.arange(60).view(2, 30)
    found = network_of(config, tensors)(input_ids=ids_BT).logits
    assert torch.equal(found, reference.logits(tensors, config, ids_BT, None, IMAGE))


@torch.no_grad()
def test_patches_are_in_their_places_in_bfloat16() -> None:
    config = reference.settings()
    tensors = {k: v.bfloat16() for k, v in reference.random_tensors(config, layout.key_table(config)).items()}
    network = network_of(config, tensors, torch.bfloat16)
    tiles = torch.rand(2, 3, 24, 24).bfloat16()
    found = network.get_image_features(tiles[None]).pooler_output
    assert torch.equal(found, reference.image_features(tensors, config, tiles))


def test_it_is_known_where_transformers_places_patches_otherwise() -> None:
    found = {}
    for side in (4, 6, 14, 19):
        config = reference.settings(
            vit_img_size=4 * side, max_img_size=4 * side, mp_pixel_shuffle_factor=1, mp_image_token_length=side**2
        )
        network = new_network(idefics3_config(config, IMAGE, PAD, END), torch.float32)
        found[side] = [is_placed_alike(network, dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert found == {4: [True, True], 6: [True, False], 14: [True, False], 19: [False, False]}


@pytest.mark.parametrize("is_tied", [True, False])
def test_written_back_tensors_are_the_file_they_came_from(is_tied: bool) -> None:
    config = reference.settings(lm_tie_weights=is_tied)
    tensors = reference.random_tensors(config, layout.key_table(config))
    network = network_of(config, tensors)
    written = layout.to_nanovlm(network.state_dict(), config)
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == layout.key_table(config)
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())
    assert ("decoder.token_embedding.weight" in written) is not is_tied
    assert layout.to_idefics3(tensors, config, "").keys() == network.state_dict().keys()


def test_the_names_in_a_file_are_those_that_nanovlm_writes() -> None:
    """Counted by hand for 2 + 2 blocks: 4 + 1 + 2 x 12 of the encoder, the projector, 2 x 9 + 3 of the decoder."""
    table = layout.key_table(reference.settings())
    assert len(table) == 5 + 2 * 12 + 1 + 2 * 9 + 3
    assert table["vision_encoder.blocks.1.attn.qkv_proj.weight"] == (96, 32)
    assert table["vision_encoder.blocks.0.mlp.fc1.bias"] == (48,)
    assert table["vision_encoder.patch_embedding.position_embedding"] == (1, 36, 32)
    assert table["MP.proj.weight"] == (32, 288)
    assert table["decoder.blocks.1.attn.k_proj.weight"] == (16, 32)
    assert table["decoder.head.weight"] == (96, 32)
    assert table["decoder.rotary_embd.inv_freq"] == (4,)
    assert "decoder.token_embedding.weight" not in table


def test_tied_weights_are_found_by_either_name() -> None:
    config = reference.settings()
    tensors = reference.random_tensors(config, layout.key_table(config))
    embedding = tensors.pop("decoder.head.weight")
    tensors["decoder.token_embedding.weight"] = embedding
    network = network_of(config, tensors)
    assert torch.equal(network.lm_head.weight, embedding)
    assert network.lm_head.weight is network.model.text_model.embed_tokens.weight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 tensors are missing \(MP.proj.weight\), 0 are unknown"),
        ("strange", r"0 tensors are missing, 1 are unknown \(vision_encoder.cls_token\)"),
        ("shape", r"MP.proj.weight has shape \(32, 16\), by config.json it has \(32, 288\)"),
        ("frequencies", r"inv_freq is not what lm_re_base = 1000 gives \(last 0.5 against"),
        (
            "untied",
            r"token_embedding.weight and decoder.head.weight differ, but config.json says lm_tie_weights = true",
        ),
    ],
)
def test_a_file_that_is_not_the_model_of_its_settings_is_refused(change: str, message: str) -> None:
    config = reference.settings()
    tensors = reference.random_tensors(config, layout.key_table(config))
    if change == "missing":
        del tensors["MP.proj.weight"]
    elif change == "strange":
        tensors["vision_encoder.cls_token"] = torch.zeros(1, 1, 32)
    elif change == "shape":
        tensors["MP.proj.weight"] = torch.zeros(32, 16)
    elif change == "frequencies":
        tensors[layout.FREQUENCIES] = torch.full((4,), 0.5)
    else:
        tensors[layout.EMBEDDING] = torch.zeros(96, 32)
    with pytest.raises(ConfigError, match=message):
        layout.to_idefics3(tensors, config, "model.safetensors")
