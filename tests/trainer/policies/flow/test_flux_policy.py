"""FLUX.1: the arithmetic of diffusers' pipeline, packed latents, distilled guidance, dynamic shift."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from tests.support.repeated_indexes import adds_in_order
from tests.support.tiny_pipelines import GUIDED, make_flux
from trainer.config import ConfigError, FluxConfig, LoraConfig
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.packing import pack, unpack
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.registry import build_policy
from trainer.types import Prompt

CPU = torch.device("cpu")
PROMPTS = [Prompt("a", "a red cat"), Prompt("b", 'a sign that says "GDPO"')]
SHAPE = (4, 8, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = FluxPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_policy(folder: Path, *, keep_reference: bool = False, **changes: Any) -> FlowPolicy:
    fields = {
        "pretrained": str(folder),
        "dtype": "float32",
        "max_sequence_length": 8,
        "lora": LoraConfig(rank=4),
        **changes,
    }
    torch.manual_seed(0)
    policy = build_policy(FluxConfig(type="flux", **fields), CPU, keep_reference=keep_reference)
    assert isinstance(policy, FlowPolicy)
    return policy


def make_plan(**changes: Any) -> SamplingPlan:
    fields = {"stochastic_steps": (0, 1), "trained_steps": (0, 1), "noise_level": 0.7, "shift": None, **changes}
    return SamplingPlan(num_inference_steps=3, micro_batch_size=4, height=16, width=24, **fields)


def test_packing_is_the_pipelines_and_is_undone() -> None:
    latents = torch.randn(2, *SHAPE)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, *SHAPE))
    assert torch.equal(unpack(pack(latents), *SHAPE[1:]), latents)


@torch.no_grad()
def test_velocity_is_the_pipelines_transformer_bit_for_bit(folder: Path, pipeline: Any) -> None:
    model = make_policy(folder, distilled_guidance=2.0).model
    x, sigma_B, conditioning = torch.randn(2, *SHAPE), torch.tensor([0.9, 0.3]), model.encode(PROMPTS)
    states, pooled, txt_ids = pipeline.encode_prompt(PROMPTS[1].text, max_sequence_length=8)
    assert torch.equal(conditioning["states"][1], states[0]) and torch.equal(conditioning["pooled"][1], pooled[0])
    expected = pipeline.transformer(
        hidden_states=pipeline._pack_latents(x, 2, *SHAPE),
        timestep=sigma_B,
        guidance=torch.tensor([2.0, 2.0]),
        encoder_hidden_states=conditioning["states"],
        pooled_projections=conditioning["pooled"],
        txt_ids=txt_ids,
        img_ids=pipeline._prepare_latent_image_ids(2, SHAPE[1] // 2, SHAPE[2] // 2, CPU, torch.float32),
        return_dict=False,
    )[0]
    v = model.velocity(model.network, x, sigma_B, conditioning)
    assert torch.equal(v, pipeline._unpack_latents(expected, 16, 24, 2))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_an_ode_sample_is_the_pipelines(folder: Path, pipeline: Any, guidance_scale: float) -> None:
    """`guidance_scale` is the pipeline's true guidance, `distilled_guidance` its other one; the schedule is its own.

    A last bit of a timestep near 1000 shows in the fifth digit of its sinusoid, hence the tolerance.
    """
    policy = make_policy(folder)
    plan = make_plan(stochastic_steps=(), trained_steps=(), guidance_scale=guidance_scale, keep_final=True)
    (rollout,) = policy.sample(PROMPTS, 2, [1, 2, 3, 4], plan)
    encoded = policy.model.encode([sample.prompt for sample in rollout.samples])
    nothing = policy.model.encode([Prompt("", "")] * 4)
    noise = torch.cat([torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(1, 5)])
    expected = pipeline(
        prompt_embeds=encoded["states"],
        pooled_prompt_embeds=encoded["pooled"],
        negative_prompt_embeds=nothing["states"],
        negative_pooled_prompt_embeds=nothing["pooled"],
        latents=pipeline._pack_latents(noise, 4, *SHAPE),
        num_inference_steps=3,
        guidance_scale=3.5,
        true_cfg_scale=guidance_scale,
        height=16,
        width=24,
        output_type="latent",
    ).images
    expected = pipeline._unpack_latents(expected, 16, 24, 2)
    assert (policy.clean(rollout) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_shift_grows_with_the_picture(folder: Path) -> None:
    """exp(mu), mu linear from 0.5 at 256 tokens to 1.15 at 4096, in the shift of arXiv 2403.03206 eq. 23."""
    model = make_policy(folder).model
    for size, mu in ((64, 0.5), (256, 1.15), (None, 1.15)):
        middle = math.exp(mu) / (1 + math.exp(mu))  # half the way, bent: s t / (1 + (s - 1) t) at t = 1/2
        assert model.noise_levels(2, size, size) == pytest.approx([1.0, middle, 0.0])


@pytest.mark.parametrize(("dtype", "checkpointing", "through"), GUIDED)
def test_replay_repeats_sampling_and_the_reference_is_without_adapters(
    folder: Path, dtype: str, checkpointing: bool, through: str
) -> None:
    policy = make_policy(folder, keep_reference=True, dtype=dtype, gradient_checkpointing=checkpointing)
    plan = make_plan(guidance_scale=2.0, guidance_gradient=through)
    (rollout,) = policy.sample(PROMPTS, 2, [1, 2, 3, 4], plan)
    replay = policy.replay(rollout, slice(0, 2), reference=True)
    assert torch.equal(replay.logp_BS.detach(), rollout.logp_BS)
    assert not replay.kl_BS["velocity"].any()
    with torch.no_grad():
        for parameter in policy.trainable.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    moved = policy.replay(rollout, slice(0, 2), reference=True)
    assert (moved.kl_BS["velocity"] > 0).all() and not torch.equal(moved.logp_BS, rollout.logp_BS)
    with adds_in_order():
        moved.kl_BS["velocity"].sum().backward()
    trained = [parameter for parameter in policy.trainable.parameters() if parameter.requires_grad]
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_adapters_stand_in_both_kinds_of_blocks(folder: Path) -> None:
    names = [name for name, p in make_policy(folder).trainable.named_parameters() if p.requires_grad]
    assert len([name for name in names if ".transformer_blocks.0." in name]) == 2 * 8
    assert len([name for name in names if ".single_transformer_blocks.0." in name]) == 2 * 3
    assert len(names) == 2 * 11


def test_a_model_without_a_distilled_guidance_refuses_one(tmp_path: Path, folder: Path) -> None:
    schnell = make_flux(tmp_path / "schnell", guidance=False)
    with pytest.raises(ConfigError, match=r"policy\.distilled_guidance = 3, but .*leave it out"):
        make_policy(schnell, distilled_guidance=3.0)
    assert make_policy(schnell).model.noise_levels(2, 256, 256) == [1.0, 0.5, 0.0]
    assert len(list(make_policy(schnell).sample(PROMPTS, 2, [1, 2, 3, 4], make_plan()))) == 1
    dev = make_policy(folder).model
    assert dev.guidance == 3.5


def test_edits_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompt 'edit' .* has source_images, but policy\.type = flux"):
        make_policy(folder).check_prompts([PROMPTS[0], Prompt("edit", "make it blue", source_images=("a.png",))])


def test_sizes_that_do_not_fit_name_the_nearest(folder: Path) -> None:
    model = make_policy(folder).model
    assert model.latent_shape(None, None) == (4, 128, 128)
    assert model.latent_shape(16, 24) == SHAPE
    with pytest.raises(ConfigError, match="width = 26 pixels: this model draws multiples of 4; the nearest is 24"):
        model.latent_shape(16, 26)
