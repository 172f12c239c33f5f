"""Networks that wait for their engine take no memory of their own, and a reference in bfloat16 computes the bits of one in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.tiny_pipelines import make_flux, make_qwen_image, make_sd3
from trainer.config import FluxConfig, QwenImageConfig, Sd3Config
from trainer.policies.lora import frozen_copy
from trainer.policies.placing import hold_as, place, twin, waiting
from trainer.policies.registry import build_policy
from trainer.types import Prompt

CPU = torch.device("cpu")
PROMPTS = [Prompt("a", "a red cat"), Prompt("b", 'a sign that says "GDPO"')]
POLICIES = [
    (partial(make_sd3, t5=False), partial(Sd3Config, type="sd3")),
    (make_flux, partial(FluxConfig, type="flux")),
    (make_qwen_image, partial(QwenImageConfig, type="qwen_image")),
]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight:UserWarning"
)  # torch's of its own RMSNorm in FLUX
@pytest.mark.parametrize(("make", "section"), POLICIES, ids=["sd3", "flux", "qwen_image"])
def test_the_reference_in_bfloat16_computes_the_same_bits(
    make: Callable[[Path], Path], section: Callable[..., Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    policy = build_policy(section(pretrained=str(make(tmp_path)), lora=None), CPU, keep_reference=True)
    with torch.no_grad():  # weights that bfloat16 does not hold exactly
        for parameter in policy.trainable.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    model, whole = policy.model, copy.deepcopy(policy.trainable)
    half = frozen_copy(policy.trainable, bfloat16=True)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16, torch.float32}
    assert sum(p.nbytes for p in half.parameters()) < 0.6 * sum(p.nbytes for p in whole.parameters())
    conditioning, x = model.encode(PROMPTS), torch.randn(2, *model.latent_shape(16, 16))
    with torch.no_grad():
        ours, theirs = (model.velocity(each, x, torch.tensor([0.9, 0.3]), conditioning) for each in (half, whole))
    assert torch.equal(ours, theirs)


def test_a_waiting_network_stays_and_its_twin_shares_its_memory() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)).to(torch.bfloat16)
    with waiting():
        place(network, torch.device("meta"))
        hold_as(network, torch.float32)
        other = twin(network, bfloat16=True)
    place(network, CPU)
    assert all(p.device.type == "cpu" for p in network.parameters())
    pairs = list(zip(network.parameters(), other.parameters(), strict=True))
    assert all(own.data_ptr() == copied.data_ptr() and not copied.requires_grad for own, copied in pairs)
    held = {name: parameter.held_as for name, parameter in other.named_parameters()}  # type: ignore[attr-defined]
    assert held["0.weight"] == held["0.bias"] == torch.bfloat16 and held["1.weight"] == torch.float32
    with waiting(False):
        place(network, torch.device("meta"))
    assert all(p.device.type == "meta" for p in network.parameters())


def test_a_weight_that_an_embedding_shares_stays_in_float32() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(4, 3), nn.Linear(3, 4)
            self.head.weight = self.words.weight

    found = {name: p.dtype for name, p in twin(Tied(), bfloat16=True).named_parameters()}
    assert found == {"words.weight": torch.float32, "head.bias": torch.bfloat16}
