"""Sizes, schedule, latents and gradients of the DeepGen flow model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tests.support.repeated_indexes import adds_in_order
from tests.support.tiny_deepgen import TinyDeepGen
from trainer.config import ConfigError
from trainer.policies.flow.deepgen.model import DeepGenFlow
from trainer.types import Prompt

Build = Callable[..., DeepGenFlow]


def test_sizes_are_multiples_of_a_patch(build: Build) -> None:
    model = build()
    assert model.latent_shape(None, None) == (4, 4, 4)  # 32 pixels, eight to a latent
    assert model.latent_shape(48, 256) == (4, 6, 32)
    with pytest.raises(
        ConfigError, match=r"height = 40 pixels: this model draws multiples of 16 up to 256; the nearest is"
    ):
        model.latent_shape(40, None)
    with pytest.raises(ConfigError, match=r"width = 272 pixels.*the nearest is 256"):
        model.latent_shape(None, 272)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_schedule_is_the_base_models_own(build: Build, tiny: TinyDeepGen, tmp_path: Path, dynamic: bool) -> None:
    """As FlowMatchEulerDiscreteScheduler visits them by itself; the first trainer used a largest shift of 1.16."""
    sd3 = Path(shutil.copytree(tiny.sd3_path, tmp_path / "sd3"))
    file = sd3 / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text()) | {"use_dynamic_shifting": dynamic, "base_shift": 0.5, "max_shift": 1.16}
    file.write_text(json.dumps(settings))
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(settings)
    tokens = (128 // 16) ** 2
    mu = 0.5 + (1.16 - 0.5) * (tokens - 256) / (4096 - 256)
    scheduler.set_timesteps(5, mu=mu if dynamic else None)
    assert build(sd3_path=str(sd3)).noise_levels(5, 128, 128) == scheduler.sigmas.tolist()


def test_latents_go_to_pictures_and_back(build: Build) -> None:
    """z = (encoder's mean - shift) * scale, and the decoder gets z / scale + shift."""
    model = build()
    vae = model.networks.vae
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        mean = vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
        decoded = vae.decode(mean).sample
    latents = model.to_latents(pixels)
    torch.testing.assert_close(latents, (mean - 0.0609) * 1.5305)
    expected = (127.5 * decoded.clamp(-1, 1) + 127.5).permute(0, 2, 3, 1)
    assert (model.decode(latents).float() - expected).abs().max() <= 0.51


def gradients(model: DeepGenFlow, prompts: list[Prompt]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(len(prompts), *model.latent_shape(None, None), generator=generator)
    v = model.velocity(model.network, x, torch.linspace(0.3, 0.9, len(prompts)), model.encode(prompts))
    assert v.shape == x.shape and v.dtype == torch.float32
    with adds_in_order():
        v.square().mean().backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad for name, parameter in model.network.named_parameters() if parameter.grad is not None}


def test_checkpointed_gradients_are_the_same(build: Build) -> None:
    """With a mask, which the transformer's own forward does not know."""
    prompts = [Prompt(id="a", text="a cat"), Prompt(id="b", text="two dogs on a hill")]
    plain, recomputed = (gradients(build(gradient_checkpointing=flag), prompts) for flag in (False, True))
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
