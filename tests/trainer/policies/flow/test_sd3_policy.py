"""SD3: the arithmetic of diffusers' pipeline, replay that repeats sampling, adapters, sources, masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from tests.support.repeated_indexes import adds_in_order
from tests.support.tiny_pipelines import make_flux, make_sd3
from trainer.config import ConfigError, LoraConfig, Sd3Config
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.lora import autocast
from trainer.policies.registry import build_policy
from trainer.types import Prompt, Rollout

CPU = torch.device("cpu")
PROMPTS = [Prompt("a", "a red cat"), Prompt("b", 'a sign that says "GDPO"')]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_policy(folder: Path, *, keep_reference: bool = False, **changes: Any) -> FlowPolicy:
    fields = {"pretrained": str(folder), "dtype": "float32", "max_sequence_length": 8, **changes}
    torch.manual_seed(0)
    policy = build_policy(Sd3Config(type="sd3", **fields), CPU, keep_reference=keep_reference)
    assert isinstance(policy, FlowPolicy)
    return policy


def make_plan(**changes: Any) -> SamplingPlan:
    fields = {"stochastic_steps": (0, 1), "trained_steps": (0, 1), "noise_level": 0.7, "shift": None, **changes}
    return SamplingPlan(num_inference_steps=3, micro_batch_size=4, **fields)


@pytest.fixture(params=["full", "lora", "full-bfloat16", "lora-bfloat16"])
def changes(request: pytest.FixtureRequest) -> dict[str, Any]:
    how, _, dtype = request.param.partition("-")
    return {"lora": LoraConfig(rank=4, alpha=8.0) if how == "lora" else None, "dtype": dtype or "float32"}


def sample(policy: FlowPolicy, plan: SamplingPlan) -> Rollout:
    (rollout,) = policy.sample(PROMPTS, 2, [1, 2, 3, 4], plan)
    return rollout


@torch.no_grad()
def test_conditioning_is_the_pipelines(folder: Path, pipeline: Any) -> None:
    encoded = make_policy(folder).model.encode(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        states, _, pooled, _ = pipeline.encode_prompt(
            prompt.text, None, None, max_sequence_length=8, do_classifier_free_guidance=False
        )
        assert torch.equal(encoded["states"][i], states[0])
        assert torch.equal(encoded["pooled"][i], pooled[0])


@torch.no_grad()
def test_velocity_is_the_pipelines_transformer_bit_for_bit(folder: Path, pipeline: Any) -> None:
    model = make_policy(folder).model
    x, sigma_B, conditioning = torch.randn(2, 4, 8, 8), torch.tensor([0.9, 0.3]), model.encode(PROMPTS)
    expected = pipeline.transformer(
        hidden_states=x,
        timestep=sigma_B * 1000,
        encoder_hidden_states=conditioning["states"],
        pooled_projections=conditioning["pooled"],
        return_dict=False,
    )[0]
    assert torch.equal(model.velocity(model.network, x, sigma_B, conditioning), expected)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.5])
def test_an_ode_sample_is_the_pipelines(folder: Path, pipeline: Any, guidance_scale: float) -> None:
    """Same noise, steps, shift and guidance. The pipeline computes its noise levels in float32, ours are rounded from
    float64: a last bit of a timestep near 1000 shows in the fifth digit of its sinusoid."""
    policy = make_policy(folder)
    plan = make_plan(stochastic_steps=(), trained_steps=(), guidance_scale=guidance_scale, keep_final=True)
    rollout = sample(policy, plan)
    noise = torch.stack(
        [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(1, 5)]
    )
    encoded = policy.model.encode([sample.prompt for sample in rollout.samples])
    nothing = policy.model.encode([Prompt("", "")] * 4)
    expected = pipeline(
        prompt_embeds=encoded["states"],
        pooled_prompt_embeds=encoded["pooled"],
        negative_prompt_embeds=nothing["states"],
        negative_pooled_prompt_embeds=nothing["pooled"],
        latents=noise[:, 0],
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        height=16,
        width=16,
        max_sequence_length=8,
        output_type="latent",
    ).images
    assert (policy.clean(rollout) - expected).abs().max() < 1e-5 * expected.abs().max()
    levels = policy.model.noise_levels(3, None, None)
    assert levels == pipeline.scheduler.sigmas.tolist() and levels[-2] < 0.01, "not spaced evenly"


def test_replay_before_an_update_repeats_sampling_bit_for_bit(folder: Path, changes: dict[str, Any]) -> None:
    policy = make_policy(folder, keep_reference=True, **changes)
    check_replay(policy, sample(policy, make_plan(guidance_scale=4.5)))


def test_a_replay_with_a_conditional_gradient_repeats_sampling_too(folder: Path) -> None:
    """Adapters and bfloat16, where a row's last bits depend most on how many others are beside it."""
    policy = make_policy(folder, keep_reference=True, lora=LoraConfig(rank=4, alpha=8.0), dtype="bfloat16")
    check_replay(policy, sample(policy, make_plan(guidance_scale=4.5, guidance_gradient="conditional")))


def check_replay(policy: FlowPolicy, rollout: Rollout) -> None:
    replay = policy.replay(rollout, slice(0, 2), reference=True)
    assert replay.logp_BS.requires_grad
    assert torch.equal(replay.logp_BS.detach(), rollout.logp_BS)
    assert torch.equal(replay.kl_BS["velocity"].detach(), torch.zeros(4, 2))


def test_the_reference_keeps_the_starting_weights(folder: Path, changes: dict[str, Any]) -> None:
    policy = make_policy(folder, keep_reference=True, **changes)
    rollout = sample(policy, make_plan())
    x, sigma_B = rollout.trace.x_BT[:, 0], torch.full((4,), 0.8)
    before = policy.predict(rollout.prompts, x, sigma_B).detach()
    trained = [parameter for parameter in policy.trainable.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert not torch.equal(policy.predict(rollout.prompts, x, sigma_B), before)
    assert torch.equal(policy.predict(rollout.prompts, x, sigma_B, reference=True), before)
    kl_BS = policy.replay(rollout, slice(0, 2), reference=True).kl_BS["velocity"]
    assert (kl_BS > 0).all()
    with adds_in_order():
        kl_BS.sum().backward()
    assert all(parameter.grad is not None for parameter in trained)


def test_adapters_are_small_float32_and_alone_in_training(folder: Path) -> None:
    full, policy = make_policy(folder), make_policy(folder, lora=LoraConfig(rank=4, alpha=8.0), dtype="bfloat16")
    trained = {name: p for name, p in policy.trainable.named_parameters() if p.requires_grad}
    assert all(".lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert not any("attn2" in name or "ff" in name for name in trained)
    assert len(trained) == 2 * (8 + 7), "the last block has no to_add_out"
    assert all(p.dtype == torch.bfloat16 for p in policy.trainable.parameters() if not p.requires_grad)
    assert all(p.requires_grad for p in full.trainable.parameters())


def test_full_training_in_bfloat16_keeps_float32_weights_and_velocities(folder: Path) -> None:
    policy, exact = make_policy(folder, dtype="bfloat16"), make_policy(folder)
    assert all(p.dtype == torch.float32 for p in policy.trainable.parameters())
    model = policy.model
    x, sigma_B, conditioning = torch.randn(2, 4, 8, 8), torch.tensor([0.9, 0.3]), model.encode(PROMPTS)
    v = model.velocity(model.network, x, sigma_B, conditioning)
    expected = exact.model.velocity(exact.model.network, x, sigma_B, exact.model.encode(PROMPTS))
    assert conditioning["states"].dtype == torch.bfloat16 and v.dtype == torch.float32
    assert 0 < (v - expected).norm() < 0.05 * expected.norm()


def test_gradient_checkpointing_changes_no_bit(folder: Path) -> None:
    plan = make_plan()
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy(folder, gradient_checkpointing=checkpointing)
        policy.replay(sample(policy, plan), slice(0, 1)).logp_BS.sum().backward()
        gradients.append([p.grad for p in policy.trainable.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch's compiler, when imported
def test_compiling_names_the_weights_as_before(folder: Path) -> None:
    plain, compiled = make_policy(folder).trainable, make_policy(folder, compile=True).trainable
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert all(block._compiled_call_impl is not None for block in compiled.transformer_blocks)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8.0)], ids=["full", "lora"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning", "ignore:The .grad attribute")
@pytest.mark.slow
def test_compiling_lasts_through_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch, lora: LoraConfig | None) -> None:
    """Sampling, replay, the reference and evaluation in batches of several sizes: every block stays compiled. Which
    compiler makes no difference to that, so it is the one that takes no time."""
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compile_(self, backend="eager", **how))
    torch._dynamo.reset()
    policy, plan = make_policy(folder, compile=True, lora=lora, keep_reference=True), make_plan(same_noise=True)
    bigger = make_plan(stochastic_steps=(), trained_steps=(), height=32, width=32)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for count in (2, 1, 3):
            for rollout in list(policy.sample(PROMPTS, count, range(2 * count), plan)):
                policy.replay(rollout, slice(0, 2), reference=True).logp_BS.sum().backward()
        assert len(list(policy.sample(PROMPTS, 1, range(2), bigger))) == 1
    with policy._reference() as network:
        blocks = getattr(network, "base_model", network).get_submodule("model" if lora else "").transformer_blocks
        assert all(block._compiled_call_impl is not None for block in blocks)


def test_autocast_keeps_no_second_network(folder: Path) -> None:
    """Its cache would hold every trained weight in bfloat16 as well, until the end of a call."""
    config = make_policy(folder, dtype="bfloat16").model.config  # type: ignore[attr-defined]
    with autocast(config, CPU):
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()


def test_a_folder_without_t5_conditions_on_zeros(tmp_path: Path) -> None:
    policy = make_policy(make_sd3(tmp_path / "no_t5", t5=False))
    states = policy.model.encode(PROMPTS)["states"]
    assert states.shape == (2, 77 + 8, 64) and not states[:, 77:].any() and states[:, :77].any()


def test_pixels_and_latents(folder: Path, pipeline: Any) -> None:
    model = make_policy(folder).model
    pixels = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    latents = model.to_latents(pixels)
    with torch.no_grad():
        mean = pipeline.vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
        torch.testing.assert_close(latents, (mean - 0.06) * 1.5)
        image = pipeline.vae.decode(latents / 1.5 + 0.06).sample
    decoded = model.decode(latents)
    assert decoded.dtype == torch.uint8 and decoded.shape == (3, 16, 16, 3)
    expected = ((image / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
    torch.testing.assert_close(decoded.float(), expected, atol=0.51, rtol=0)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((18, 16), "height = 18 pixels: this model draws multiples of 4 up to 64; the nearest is 16"),
        ((16, 68), "width = 68 pixels.*the nearest is 64"),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(folder: Path, size: tuple[int, int], message: str) -> None:
    model = make_policy(folder).model
    assert model.latent_shape(None, None) == (4, 8, 8)
    assert model.latent_shape(32, 16) == (4, 16, 8)
    with pytest.raises(ConfigError, match=message):
        model.latent_shape(*size)


def test_what_is_no_model_is_refused_with_the_remedy(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.pretrained = .*no diffusers folder.*save_pretrained"):
        make_policy(tmp_path)
    with pytest.raises(ConfigError, match="holds a FluxPipeline, not a StableDiffusion3Pipeline"):
        make_policy(make_flux(tmp_path / "flux"))
    with pytest.raises(ConfigError, match=r"no linear layer ends in 'to_p'; there are .*attn.to_q"):
        make_policy(folder, lora=LoraConfig(target_modules=("to_p",)))


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """Diffusers itself would train on random ones after a warning."""
    damaged = make_sd3(tmp_path / "damaged")
    path = damaged / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if n != "proj_out.weight"}, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"its transformer lacks 1 weights, first proj_out\.weight"):
        make_policy(damaged)
