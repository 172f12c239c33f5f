"""Source pictures: through the vision tower into the prompt, and through the autoencoder beside the target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2VLImageProcessor

from tests.support.tiny_qwen3vl import byte_tokenizer
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.deepgen.conditioning import encode, render
from trainer.policies.flow.deepgen.model import DeepGenFlow
from trainer.policies.flow.deepgen.sources import look, read_source
from trainer.policies.flow.policy import FlowPolicy
from trainer.types import Prompt

Build = Callable[..., DeepGenFlow]
PLAN = SamplingPlan(
    num_inference_steps=3,
    micro_batch_size=4,
    noise_level=0.7,
    stochastic_steps=(0, 1),
    trained_steps=(0, 1),
    guidance_scale=3.0,
    shift=None,
)


def picture(folder: Path, name: str, width: int, height: int) -> str:
    generator = torch.Generator().manual_seed(width * height)
    noise = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    Image.fromarray(noise.numpy()).save(folder / name)
    return str(folder / name)


@pytest.fixture
def square(tmp_path: Path) -> str:
    return picture(tmp_path, "square.png", 64, 64)


@pytest.fixture
def wide(tmp_path: Path) -> str:
    return picture(tmp_path, "wide.png", 128, 64)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(64, 64, (64, 64)), (128, 64, (32, 96)), (10, 10, (64, 64)), (500, 10, (32, 448)), (1024, 1024, (64, 64))],
)
def test_a_source_has_the_area_asked_for_and_fitting_sides(
    tmp_path: Path, width: int, height: int, expected: tuple[int, int]
) -> None:
    read = read_source(picture(tmp_path, "source.png", width, height), 64 * 64)
    assert tuple(read.shape) == (*expected, 3)
    assert read.dtype == torch.uint8


def test_a_source_of_the_right_size_is_read_as_it_is(square: str) -> None:
    with Image.open(square) as opened:
        assert read_source(square, 64 * 64).flatten().tolist() == list(opened.tobytes())


def processed(source_HWC: Tensor) -> dict[str, Tensor]:
    """What transformers' own image processor makes of a source at 28/32 of its size."""
    pixels = functional.interpolate(
        source_HWC.permute(2, 0, 1)[None].float() / 255, scale_factor=28 / 32, mode="bilinear"
    )
    processor = Qwen2VLImageProcessor(do_resize=False, do_rescale=False)
    made: dict[str, Tensor] = processor(
        images=[pixels[0].numpy()], return_tensors="pt", input_data_format="channels_first"
    )
    return made


def test_the_vision_tower_sees_what_its_own_processor_shows_it(build: Build, wide: str) -> None:
    lmm, source = build().networks.lmm, read_source(wide, 64 * 64)
    own = processed(source)
    with torch.no_grad():
        (seen,), grid = look(lmm, [source])
        (expected,) = lmm.get_image_features(own["pixel_values"], own["image_grid_thw"]).pooler_output
    assert grid.tolist() == own["image_grid_thw"].tolist() == [[1, 2, 6]]
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)


def test_the_language_model_reads_an_edit_as_transformers_does(build: Build, square: str, wide: str) -> None:
    """Two pictures, text, queries: were the queries tokens, the whole model's forward would give the same states."""
    networks, tokenizer = build().networks, byte_tokenizer()
    stand_ins = [70, 71, 72, 73]
    networks.meta_queries.data = networks.lmm.language_model.embed_tokens.weight[stand_ins].clone()
    sources = [read_source(each, 64 * 64) for each in (square, wide)]
    own = [processed(source) for source in sources]
    ids = torch.tensor([tokenizer(render("swap them", [4, 3]))["input_ids"] + stand_ins])
    kinds = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    fused: list[Tensor] = []
    networks.projector_1.register_forward_pre_hook(lambda _, inputs: fused.append(inputs[0]))
    with torch.no_grad():
        expected = networks.lmm(
            input_ids=ids,
            pixel_values=torch.cat([each["pixel_values"] for each in own]),
            image_grid_thw=torch.cat([each["image_grid_thw"] for each in own]),
            mm_token_type_ids=kinds,
            output_hidden_states=True,
        ).hidden_states
    encode(networks, tokenizer, ["swap them"], [sources])
    torch.testing.assert_close(fused[0], torch.cat([expected[12], expected[6]], -1), rtol=1e-4, atol=1e-5)


def sampled(model: DeepGenFlow, prompts: list[Prompt]) -> Any:
    policy = FlowPolicy(model, keep_reference=False)
    (rollout,) = policy.sample(prompts, 1, list(range(7, 7 + len(prompts))), PLAN)
    return rollout


def test_edits_of_unequal_sizes_and_plain_prompts_share_a_batch(build: Build, square: str, wide: str) -> None:
    """One source, two of other sizes, none: each picture is the one it would be alone."""
    model = build(image_size=64)
    prompts = [
        Prompt(id="one", text="make it red", source_images=(square,)),
        Prompt(id="two", text="swap", source_images=(wide, square)),
        Prompt(id="none", text="a cat"),
    ]
    encoded = model.encode(prompts)
    assert encoded["sources"].shape == (3, 2, 4, 8, 12)
    assert encoded["source_grids"].tolist() == [[[4, 4], [0, 0]], [[2, 6], [4, 4]], [[0, 0], [0, 0]]]
    assert encoded["source_mask"].sum(1).tolist() == [16, 28, 0]
    both = sampled(model, prompts)
    for row, prompt in enumerate(prompts):
        policy = FlowPolicy(model, keep_reference=False)
        (alone,) = policy.sample([prompt], 1, [7 + row], PLAN)
        torch.testing.assert_close(alone.trace.x_BT[0], both.trace.x_BT[row], rtol=1e-4, atol=1e-5)
    assert torch.equal(FlowPolicy(model, keep_reference=False).replay(both, slice(0, 2)).logp_BS, both.logp_BS)


def test_sources_that_fill_their_places_need_no_mask(build: Build, square: str) -> None:
    prompt = Prompt(id="one", text="make it red", source_images=(square,))
    encoded = build(image_size=64).encode([prompt, replace(prompt, id="again")])
    assert set(encoded) == {"states", "pooled", "sources", "source_grids"}


def test_a_source_is_the_mean_of_its_latents_scaled(build: Build, square: str) -> None:
    model = build(image_size=64)
    prompt = Prompt(id="one", text="make it red", source_images=(square,))
    images = read_source(square, 64 * 64).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        mean = model.networks.vae.encode(images).latent_dist.mean
    torch.testing.assert_close(model.encode([prompt])["sources"][0], (mean - 0.0609) * 1.5305)


@pytest.mark.parametrize("conditioning", ["single", "padded"])
def test_the_source_reaches_the_picture(build: Build, tmp_path: Path, square: str, conditioning: str) -> None:
    model = build(image_size=64, conditioning=conditioning)
    other = picture(tmp_path, "other.png", 65, 64)
    latents = [
        sampled(model, [Prompt(id="one", text="make it red", source_images=(source,))]).trace.x_BT
        for source in (square, other)
    ]
    assert (latents[0] - latents[1]).abs().max() > 1e-3


def test_a_source_that_changes_on_disk_is_encoded_again(build: Build, tmp_path: Path, square: str) -> None:
    model = build(image_size=64)
    prompt = Prompt(id="one", text="make it red", source_images=(square,))
    before = model.encode([prompt])["sources"]
    picture(tmp_path, "square.png", 96, 96)
    assert not torch.equal(model.encode([prompt])["sources"], before)
