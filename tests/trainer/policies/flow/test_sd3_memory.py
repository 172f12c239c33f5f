"""The doctor's forecast of SD3's and SD3.5's activations against what autograd keeps, counted by CUDA's casting rules."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.first_gpu.forecast import forecast, write_sd3
from benchmarks.gpu_sd35 import MEDIUM, VAE
from tests.support.cuda_autocast import kept_bytes
from trainer.config import LoraConfig, Sd3Config
from trainer.policies.flow.memory import training_bytes
from trainer.policies.flow.sd3_tokens import Sd3Transformer
from trainer.policies.lora import add_adapters

FEW = MEDIUM | {"num_layers": 5, "dual_attention_layers": (0, 1)}  # first, dual, plain, plain, last
BEFORE = FEW | {"num_layers": 4, "dual_attention_layers": (), "qk_norm": None}  # as in SD3 before 3.5
WIDTH, TEXTS = 1536, 333


def counted(geometry: dict[str, Any], rows: int, side: int, lora: LoraConfig | None) -> Counter[int]:
    """Bytes that are kept of each block; those around the blocks are -1."""
    with torch.device("meta"):
        plain: Any = Sd3Transformer(**geometry)
        network = plain if lora is None else add_adapters(plain.bfloat16().requires_grad_(False), lora)
        given = {
            "hidden_states": torch.zeros(rows, 16, side, side, dtype=torch.bfloat16),
            "encoder_hidden_states": torch.zeros(rows, TEXTS, 4096, dtype=torch.bfloat16),
            "pooled_projections": torch.zeros(rows, 2048, dtype=torch.bfloat16),
            "timestep": torch.zeros(rows),
        }
    with kept_bytes(network, list(plain.transformer_blocks)) as found:
        network(**given, return_dict=False)
    return found


@pytest.mark.parametrize("geometry", [FEW, BEFORE], ids=["3.5", "3"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=32)], ids=["full", "lora"])
def test_it_is_what_autograd_keeps(lora: LoraConfig | None, geometry: dict[str, Any]) -> None:
    policy = Sd3Config(type="sd3", pretrained="x", lora=lora)
    for rows, side in ((8, 64), (2, 32)):
        tokens = side * side // 4
        going_back = rows * WIDTH * (tokens + TEXTS) * 24
        told = training_bytes(geometry, policy, rows, tokens) - going_back
        assert told == pytest.approx(sum(counted(geometry, rows, side, lora).values()), rel=0.03)


def test_checkpointing_keeps_what_goes_into_blocks_and_one_of_them() -> None:
    policy = Sd3Config(type="sd3", pretrained="x", gradient_checkpointing=True)
    found = counted(FEW, 8, 64, None)
    inputs = FEW["num_layers"] * 8 * (1024 + TEXTS) * WIDTH * 2
    told = training_bytes(FEW, policy, 8, 1024) - 8 * WIDTH * (1024 + TEXTS) * 24
    assert told == pytest.approx(found[-1] + inputs + found[1], rel=0.01)


def test_the_doctor_says_it_of_the_published_geometry(tmp_path: Path) -> None:
    """8 images of 512 x 512 with all weights trained: 37.7 GiB beside the 36 that are held; guidance has twice as many rows."""
    folder = write_sd3(tmp_path, MEDIUM, VAE)
    settings = {"policy.lora": None, "optim.micro_batch_size": 8, "policy.gradient_checkpointing": False}
    alone = forecast(folder, settings | {"sampling.guidance_scale": 1.0})
    assert alone["training on 8 images"] / 2**30 == pytest.approx(37.7, abs=0.2)
    guided = forecast(folder, settings | {"sampling.guidance_scale": 4.5})
    assert 1.8 < guided["training on 8 images"] / alone["training on 8 images"] < 2
    half = forecast(folder, settings | {"sampling.guidance_scale": 4.5, "sampling.guidance_gradient": "conditional"})
    assert half["training on 8 images"] == alone["training on 8 images"]
    assert not [name for name in forecast(folder, settings | {"policy.dtype": "float32"}) if "images" in name]
