"""The doctor's forecast of FLUX's and Qwen-Image's activations against what autograd keeps, counted by CUDA's casting rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel

from tests.support.cuda_autocast import kept_bytes
from tests.support.tiny_pipelines import make_flux, make_qwen_image
from trainer.config import Config, LoraConfig
from trainer.config.file import load_config
from trainer.config.policy import FluxConfig, QwenImageConfig
from trainer.policies.flow.memory import training_bytes, working_bytes
from trainer.policies.lora import add_adapters

# The published width, with few blocks.
WIDTH: dict[str, Any] = {
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "in_channels": 64,
    "axes_dims_rope": (16, 56, 56),
}
FLUX = WIDTH | {
    "num_layers": 3,
    "num_single_layers": 4,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
QWEN = WIDTH | {"num_layers": 4, "joint_attention_dim": 3584, "out_channels": 16, "patch_size": 2}
RECIPE = Path(__file__).resolve().parents[4] / "configs" / "quickstart.yaml"
GOING_BACK = 24  # by number of a token, which is no part of what is kept


def given(kind: str, rows: int, side: int, texts: int) -> dict[str, Any]:
    shared = {
        "hidden_states": torch.zeros(rows, side * side, 64, dtype=torch.bfloat16),
        "timestep": torch.zeros(rows),
    }
    if kind == "qwen_image":
        states = torch.zeros(rows, texts, 3584, dtype=torch.bfloat16)
        return shared | {"encoder_hidden_states": states, "img_shapes": [[(1, side, side)]] * rows}
    return shared | {
        "encoder_hidden_states": torch.zeros(rows, texts, 4096, dtype=torch.bfloat16),
        "pooled_projections": torch.zeros(rows, 768, dtype=torch.bfloat16),
        "guidance": torch.zeros(rows),
        "img_ids": torch.zeros(side * side, 3),
        "txt_ids": torch.zeros(texts, 3),
    }


@pytest.mark.parametrize("kind", ["flux", "qwen_image"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=32)], ids=["full", "lora"])
def test_it_is_what_autograd_keeps(kind: str, lora: LoraConfig | None) -> None:
    fields: dict[str, Any] = {"type": kind, "pretrained": "x", "lora": lora, "max_sequence_length": 300}
    policy = FluxConfig(**fields) if kind == "flux" else QwenImageConfig(**fields)
    geometry = FLUX if kind == "flux" else QWEN
    with torch.device("meta"):
        plain: Any = FluxTransformer2DModel(**FLUX) if kind == "flux" else QwenImageTransformer2DModel(**QWEN)
        network = plain if lora is None else add_adapters(plain.bfloat16().requires_grad_(False), lora)
        blocks = [*plain.transformer_blocks, *getattr(plain, "single_transformer_blocks", [])]
        for rows, side in ((8, 32), (2, 16)):
            inputs = given(kind, rows, side, 300)
            with kept_bytes(network, blocks) as found:
                network(**inputs, return_dict=False)
            told = training_bytes(geometry, policy, rows, side * side) - rows * 3072 * (side * side + 300) * GOING_BACK
            assert told == pytest.approx(sum(found.values()), rel=0.03 if lora else 0.01)


@pytest.mark.parametrize(("kind", "make"), [("flux", make_flux), ("qwen_image", make_qwen_image)])
def test_the_doctor_says_it_of_a_folder(kind: str, make: Any, tmp_path: Path) -> None:
    """Twice the side has more than three times the bytes, as texts are no longer; guidance has twice the rows."""

    def told(*overrides: str, **policy: Any) -> dict[str, float]:
        section = {"type": kind, "pretrained": str(folder), "dtype": "bfloat16", **policy}
        size = ["sampling.height=64", "sampling.width=64", "optim.micro_batch_size=4"]
        return dict(working_bytes(load_config(RECIPE, Config, [f"policy={json.dumps(section)}", *size, *overrides])))

    folder = make(tmp_path / kind)
    alone = told("sampling.guidance_scale=1.0", max_sequence_length=8)
    assert ("decoding" in " ".join(alone)) == (kind == "flux")
    first = alone["training on 4 images"]
    large = told("sampling.guidance_scale=1.0", "sampling.height=128", "sampling.width=128", max_sequence_length=8)
    assert 2 < large["training on 4 images"] / first < 4
    assert 1.2 < told("sampling.guidance_scale=4.0", max_sequence_length=8)["training on 4 images"] / first <= 2
    assert told(dtype="float32") == {}
