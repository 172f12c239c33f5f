"""The published model's geometry, on the meta device: every key and shape, and as many parameters as are said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support import tiny_bagel
from trainer.policies.unified.mot.flux_vae import diffusers_name, vae_settings
from trainer.policies.unified.mot.geometry import read_geometry
from trainer.policies.unified.mot.network import MotNetwork
from trainer.policies.unified.mot.parts import part_of

# BAGEL-7B-MoT: Qwen2.5-7B, SigLIP so400m/14 at 980 pixels, FLUX's latents in patches of 2 x 2.
LLM = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
VIT = {
    "model_type": "siglip_vision_model",
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "image_size": 980,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
SIZES = {
    **{"WIDTH": 3584, "HEADS": 28, "KV_HEADS": 4, "MLP": 18944, "VOCABULARY": 152064, "HEAD": 128},
    **{"VIT_WIDTH": 1152, "VIT_MLP": 4304, "PATCH": 14, "IMAGE": 980, "CHANNELS": 16, "SIDE": 64},
}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> MotNetwork:
    folder = tmp_path_factory.mktemp("published")
    for name, fields in (("llm_config.json", LLM), ("vit_config.json", VIT)):
        (Path(folder) / name).write_text(json.dumps(fields), encoding="utf-8")
    with torch.device("meta"):
        return MotNetwork(read_geometry(folder, token_channels=64, max_latent_size=64))


def test_every_key_and_shape(network: MotNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SIZES.items():
        monkeypatch.setattr(tiny_bagel, name, value)
    wanted = tiny_bagel.network_shapes(layers=28, vit_layers=26)
    found = {name: tuple(each.shape) for name, each in network.state_dict().items()}
    assert found == wanted
    assert len(found) == 67 + 27 * 28 + 25 * 16


def test_as_many_parameters_as_published(network: MotNetwork) -> None:
    """Seven billion that a token meets, about fourteen in all."""
    parts = {part: 0 for part in ("language", "vision", "connector", "generation", None)}
    for name, each in network.named_parameters():
        parts[part_of(name)] += each.numel()
    total = sum(parts.values())
    layers = network.language_model.model.layers
    one_expert = sum(each.numel() for name, each in layers.named_parameters() if "_moe_gen" not in name)
    assert one_expert * 2 == sum(each.numel() for each in layers.parameters())
    words = 2 * 152064 * 3584
    assert parts["language"] == one_expert + words + 3584
    assert round((one_expert + words) / 1e9, 2) == 7.62, "Qwen2.5-7B's own number, with norms of queries and keys"
    assert round(total / 1e9, 2) == 14.61
    assert parts["vision"] == 26 * 15_239_504 + 678_528 + 4900 * 1152 + 2304, (
        "SigLIP without its last layer and its head"
    )


def test_fluxs_autoencoder_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key and shape of diffusers' class at the published size, by the published names."""
    from diffusers import AutoencoderKL

    monkeypatch.setattr(tiny_bagel, "CHANNELS", 16)
    shapes = tiny_bagel.vae_shapes(resnets=2, widths=tiny_bagel.PUBLISHED_VAE_WIDTHS)
    with torch.device("meta"):
        settings = vae_settings({name: torch.empty(shape) for name, shape in shapes.items()})
        vae = AutoencoderKL(**settings)
    wanted = {name: tuple(each.shape) for name, each in vae.state_dict().items()}
    found = {}
    for name, shape in shapes.items():
        found[diffusers_name(name, 4)] = shape[:2] if ".attn_1." in name and len(shape) == 4 else shape
    assert found == wanted
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 83_819_683
