"""What leaves the trainer can be the start of the next training, here or in DeepGen's own trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny_deepgen import TinyDeepGen
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.deepgen.export import deepgen_state_dict
from trainer.policies.flow.deepgen.model import DeepGenFlow
from trainer.policies.flow.policy import FlowPolicy
from trainer.types import Prompt

Build = Callable[..., DeepGenFlow]


def change(model: DeepGenFlow) -> DeepGenFlow:
    """What training would: every trained parameter moves."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def draw(model: DeepGenFlow) -> torch.Tensor:
    policy = FlowPolicy(model, keep_reference=False)
    plan = SamplingPlan(num_inference_steps=4, micro_batch_size=2, guidance_scale=2.0, shift=None)
    (rollout,) = policy.sample([Prompt(id="a", text="a cat"), Prompt(id="b", text="two dogs")], 1, [1, 2], plan)
    return torch.stack([torch.from_numpy(sample.images[0]) for sample in rollout.samples])


def test_the_layout_is_the_published_one(tiny: TinyDeepGen, build: Build) -> None:
    published = {name for name in load_file(tiny.checkpoint) if not name.startswith("lmm.")}
    assert deepgen_state_dict(build()).keys() == published


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8.0}], ids=["full", "lora"])
def test_exported_weights_draw_the_same_pictures(
    tiny: TinyDeepGen, build: Build, tmp_path: Path, lora: dict[str, float] | None
) -> None:
    trained = change(build(lora=lora))
    state = deepgen_state_dict(trained)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "trained.safetensors")
    again = build(checkpoint=str(tmp_path / "trained.safetensors"), lmm_checkpoint=str(tiny.checkpoint))
    reexported = deepgen_state_dict(again)
    assert reexported.keys() == state.keys()
    assert all(torch.equal(tensor, reexported[name]) for name, tensor in state.items())
    pictures = draw(trained)
    difference = (draw(again).int() - pictures.int()).abs().max()
    assert difference <= (0 if lora is None else 1)  # an adapter beside its weight rounds otherwise than merged into it
    assert (draw(build()).int() - pictures.int()).abs().max() > 10


def test_only_the_transformer_is_trained(build: Build) -> None:
    full, adapters = build(), build(lora={"rank": 4})
    named = {name for name, parameter in full.networks.named_parameters() if parameter.requires_grad}
    assert named == {f"transformer.{name}" for name, _ in full.networks.transformer.named_parameters()}
    trained = {name for name, parameter in adapters.networks.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("transformer.") and ".lora_" in name for name in trained)
    # The last block has no output projection of the text: 8 and 7 attention projections, two halves each.
    assert len(trained) == 2 * (8 + 7)


def test_bfloat16_keeps_trained_weights_in_float32(build: Build) -> None:
    model = build(dtype="bfloat16")
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}
    frozen = [model.networks.meta_queries, *model.networks.lmm.parameters(), *model.networks.connector.parameters()]
    assert {parameter.dtype for parameter in frozen} == {torch.bfloat16}
    lora = build(dtype="bfloat16", lora={"rank": 4})
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in lora.network.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    for each in (model, lora):
        policy = FlowPolicy(each, keep_reference=False)
        plan = SamplingPlan(
            num_inference_steps=2, micro_batch_size=1, noise_level=0.7, stochastic_steps=(0,), trained_steps=(0,)
        )
        (rollout,) = policy.sample([Prompt(id="a", text="a cat")], 1, [1], plan)
        replay = policy.replay(rollout, slice(0, 1))
        assert replay.logp_BS.dtype == torch.float32
        assert torch.equal(replay.logp_BS, rollout.logp_BS)
