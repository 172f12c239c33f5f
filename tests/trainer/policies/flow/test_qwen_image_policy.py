"""Qwen-Image: the arithmetic of diffusers' pipeline, prompts of unequal lengths, its autoencoder of videos."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline

from tests.support.repeated_indexes import adds_in_order
from tests.support.tiny_pipelines import GUIDED, make_qwen_image
from trainer.config import ConfigError, LoraConfig, QwenImageConfig
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.registry import build_policy
from trainer.types import Prompt

CPU = torch.device("cpu")
PROMPTS = [Prompt("a", "a red cat"), Prompt("b", 'a sign that says "GDPO"')]
SHAPE = (4, 8, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen_image(tmp_path_factory.mktemp("qwen_image"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = QwenImagePipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_policy(folder: Path, *, keep_reference: bool = False, **changes: Any) -> FlowPolicy:
    fields = {"pretrained": str(folder), "dtype": "float32", "lora": LoraConfig(rank=4), **changes}
    torch.manual_seed(0)
    policy = build_policy(QwenImageConfig(type="qwen_image", **fields), CPU, keep_reference=keep_reference)
    assert isinstance(policy, FlowPolicy)
    return policy


def make_plan(**changes: Any) -> SamplingPlan:
    fields = {"stochastic_steps": (0, 1), "trained_steps": (0, 1), "noise_level": 0.7, "shift": None, **changes}
    return SamplingPlan(num_inference_steps=3, micro_batch_size=4, height=16, width=24, **fields)


@torch.no_grad()
def test_conditioning_is_the_pipelines_for_each_prompt_alone(folder: Path, pipeline: Any) -> None:
    conditioning = make_policy(folder).model.encode(PROMPTS)
    lengths = conditioning["mask"].sum(1).tolist()
    for i, prompt in enumerate(PROMPTS):
        states, mask = pipeline.encode_prompt(prompt.text)
        assert mask is None and lengths[i] == states.shape[1]
        assert torch.equal(conditioning["states"][i, : lengths[i]], states[0])
        assert not conditioning["states"][i, lengths[i] :].any()


def test_equal_lengths_need_no_mask(folder: Path) -> None:
    assert "mask" not in make_policy(folder).model.encode([PROMPTS[0], PROMPTS[0]])


@torch.no_grad()
def test_velocity_is_the_pipelines_transformer_bit_for_bit(folder: Path, pipeline: Any) -> None:
    model = make_policy(folder).model
    x, sigma_B, conditioning = torch.randn(2, *SHAPE), torch.tensor([0.9, 0.3]), model.encode(PROMPTS)
    expected = pipeline.transformer(
        hidden_states=pipeline._pack_latents(x[:, :, None], 2, *SHAPE),
        timestep=sigma_B,
        encoder_hidden_states=conditioning["states"],
        encoder_hidden_states_mask=conditioning["mask"],
        img_shapes=[[(1, SHAPE[1] // 2, SHAPE[2] // 2)]] * 2,
        return_dict=False,
    )[0]
    v = model.velocity(model.network, x, sigma_B, conditioning)
    assert torch.equal(v, pipeline._unpack_latents(expected, 16, 24, 2)[:, :, 0])


@torch.no_grad()
def test_a_velocity_does_not_depend_on_longer_neighbours(folder: Path) -> None:
    model = make_policy(folder).model
    x, sigma_B = torch.randn(2, *SHAPE), torch.tensor([0.9, 0.3])
    both = model.velocity(model.network, x, sigma_B, model.encode(PROMPTS))
    alone = model.velocity(model.network, x[:1], sigma_B[:1], model.encode(PROMPTS[:1]))
    torch.testing.assert_close(both[:1], alone)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_an_ode_sample_is_the_pipelines(folder: Path, pipeline: Any, guidance_scale: float) -> None:
    """The same noise, steps, schedule with its terminal level, and guidance that keeps norms. A last bit of a timestep near 1000 shows in the fifth digit of its sinusoid."""
    policy = make_policy(folder)
    plan = make_plan(stochastic_steps=(), trained_steps=(), guidance_scale=guidance_scale, keep_final=True)
    (rollout,) = policy.sample(PROMPTS, 2, [1, 2, 3, 4], plan)
    encoded = policy.model.encode([sample.prompt for sample in rollout.samples])
    nothing = policy.model.encode([Prompt("", "")] * 4)
    noise = torch.cat([torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in range(1, 5)])
    expected = pipeline(
        prompt_embeds=encoded["states"],
        prompt_embeds_mask=encoded["mask"],
        negative_prompt_embeds=nothing["states"],
        negative_prompt_embeds_mask=torch.ones(nothing["states"].shape[:2]),
        true_cfg_scale=guidance_scale,
        latents=pipeline._pack_latents(noise[:, :, None], 4, *SHAPE),
        num_inference_steps=3,
        height=16,
        width=24,
        output_type="latent",
    ).images
    expected = pipeline._unpack_latents(expected, 16, 24, 2)[:, :, 0]
    assert (policy.clean(rollout) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_shift_grows_with_the_picture_and_the_last_level_is_the_terminal_one(folder: Path) -> None:
    """exp(mu), mu linear from 0.5 at 256 tokens to 0.9 at 4096, in the shift of arXiv 2403.03206 eq. 23; then 1 - sigma is
    stretched so that the last level above 0 is 0.02."""
    model = make_policy(folder).model
    for size, mu in ((64, 0.5), (None, 0.9)):
        bent = [math.exp(mu) / (math.exp(mu) + 1 / t - 1) for t in (1.0, 2 / 3, 1 / 3)]
        levels = [1 - (1 - level) * 0.98 / (1 - bent[-1]) for level in bent]
        assert model.noise_levels(3, size, size) == pytest.approx([*levels, 0.0])


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
    trained = {name: p for name, p in policy.trainable.named_parameters() if p.requires_grad}
    unused = {name.partition(".lora_")[0].rpartition("blocks.")[2] for name, p in trained.items() if p.grad is None}
    assert unused == {"1.attn.to_add_out"}, "what the last block makes of the text is dropped"
    assert all(p.dtype == torch.float32 and (p.grad is None or p.grad.isfinite().all()) for p in trained.values())


@torch.no_grad()
def test_pixels_and_latents(folder: Path, pipeline: Any) -> None:
    model = make_policy(folder).model
    pixels = torch.randint(0, 256, (3, 16, 24, 3), dtype=torch.uint8)
    latents = model.to_latents(pixels)
    assert latents.shape == (3, *SHAPE) and latents.dtype == torch.float32
    mean, std = (torch.tensor(v).view(1, 4, 1, 1) for v in ([0.1, -0.2, 0.3, 0.0], [1.5, 2.0, 1.2, 0.8]))
    posterior = pipeline.vae.encode((pixels.permute(0, 3, 1, 2) / 127.5 - 1)[:, :, None]).latent_dist
    torch.testing.assert_close(latents, (posterior.mean[:, :, 0] - mean) / std)
    image = pipeline.vae.decode((latents * std + mean)[:, :, None]).sample[:, :, 0]
    decoded = model.decode(latents)
    assert decoded.dtype == torch.uint8 and decoded.shape == (3, 16, 24, 3)
    expected = ((image / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
    torch.testing.assert_close(decoded.float(), expected, atol=0.51, rtol=0)


def test_what_it_cannot_draw_is_refused(folder: Path) -> None:
    policy = make_policy(folder)
    with pytest.raises(ConfigError, match=r"prompt 'edit' .* has source_images, but policy\.type = qwen_image"):
        policy.check_prompts([Prompt("edit", "make it blue", source_images=("a.png",))])
    with pytest.raises(ConfigError, match="height = 17 pixels"):
        policy.model.latent_shape(17, 16)
