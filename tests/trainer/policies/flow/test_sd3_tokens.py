"""Source tokens and masks of the SD3 transformer, against the same network without them and against shapes by hand."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from PIL import Image

from tests.support.tiny_pipelines import make_sd3
from trainer.config import ConfigError, Sd3Config
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.frozen import check_sources, read_image
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.flow.sd3 import Sd3Flow
from trainer.policies.flow.sd3_tokens import Sd3Transformer, join_sources, token_mask
from trainer.types import Prompt

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    return Sd3Transformer.from_pretrained(folder, subfolder="transformer").requires_grad_(False)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer").requires_grad_(False)


def inputs(batch: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 10, 64, generator=generator),
        "pooled_projections": torch.randn(batch, 64, generator=generator),
        "timestep": torch.linspace(1000, 20, batch),
        "return_dict": False,
    }


def test_parameters_have_diffusers_names(ours: Any, theirs: Any) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_without_sources_and_masks_it_is_diffusers_bit_for_bit(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours(**inputs())[0], theirs(**inputs())[0])


def test_queries_and_keys_in_the_type_of_the_values_change_no_bit(folder: Path) -> None:
    """Under autocast, forward and backward; diffusers leaves them in the type of its float32 norms."""

    def results(network: Any) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            out = network(**inputs())[0]
        out.float().pow(2).sum().backward()
        return [out, *(p.grad for p in network.parameters() if p.grad is not None)]

    ours, theirs = (
        results(kind.from_pretrained(folder, subfolder="transformer"))
        for kind in (Sd3Transformer, SD3Transformer2DModel)
    )
    assert len(ours) == len(theirs) > 40
    assert all(map(torch.equal, ours, theirs))


def test_masked_text_is_as_if_it_were_not_there(ours: Any, theirs: Any) -> None:
    given = inputs()
    mask = torch.ones(3, 10, dtype=torch.bool)
    mask[:, 7:] = False
    shorter = given | {"encoder_hidden_states": given["encoder_hidden_states"][:, :7]}
    torch.testing.assert_close(ours(**given, text_mask=mask)[0], theirs(**shorter)[0])


def test_a_source_has_the_position_embedding_of_a_target_of_its_size(ours: Any) -> None:
    """The target's own latents as a source give the target's own tokens; so do smaller ones in a larger place."""
    for height, width in ((8, 8), (4, 6)):
        latents = torch.randn(2, 4, height, width)
        (expected,) = (ours.pos_embed(latents),)
        padded = torch.zeros(2, 1, 4, 8, 8)
        padded[:, 0, :, :height, :width] = latents
        grids = torch.tensor([[[height // 2, width // 2]]] * 2)
        tokens = ours._source_tokens(padded, grids)
        torch.testing.assert_close(tokens[token_mask(grids, 4, 4)].view_as(expected), expected)


def test_padding_of_sources_changes_nothing(ours: Any) -> None:
    given, sources = inputs(2), [[torch.randn(4, 8, 8), torch.randn(4, 4, 6)], [torch.randn(4, 4, 8)]]
    joined = join_sources(sources, 2)
    assert joined["source_grids"].tolist() == [[[4, 4], [2, 3]], [[2, 4], [0, 0]]]
    out = ours(**given, **joined)[0]
    for b, own in enumerate(sources):
        alone = {name: value[b : b + 1] if isinstance(value, torch.Tensor) else value for name, value in given.items()}
        torch.testing.assert_close(out[b : b + 1], ours(**alone, **join_sources([own], 2))[0])
    noise = joined | {"sources": joined["sources"].clone()}
    noise["sources"][0, 1, :, 4:] = noise["sources"][1, 1][:, 4:] = 7.0
    assert torch.equal(ours(**given, **noise)[0], out)
    assert not torch.allclose(ours(**given)[0], out)


def test_equal_sources_need_no_mask_and_none_need_nothing() -> None:
    assert set(join_sources([[torch.ones(4, 8, 8)], [torch.ones(4, 8, 8)]], 2)) == {"sources", "source_grids"}
    assert join_sources([[], []], 2) == {}


def test_gradient_checkpointing_changes_no_bit_with_sources(folder: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = Sd3Transformer.from_pretrained(folder, subfolder="transformer")
        if checkpointing:
            network.enable_gradient_checkpointing()
        sources = [[torch.ones(4, 8, 8)], [], [torch.ones(4, 4, 4)]]
        network(**inputs(), **join_sources(sources, 2))[0].square().sum().backward()
        gradients.append(network.pos_embed.proj.weight.grad)
    assert torch.equal(*gradients) and gradients[0].any()


@pytest.mark.parametrize(("size", "expected"), [((64, 64), (16, 16)), ((200, 50), (8, 32)), ((10, 1000), (160, 4))])
def test_a_source_picture_is_brought_to_an_area(tmp_path: Path, size: Any, expected: Any) -> None:
    """PIL's sizes are (width, height), the tensor's (height, width)."""
    Image.new("RGBA", size, (255, 0, 0, 255)).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", 16 * 16, 4)
    assert pixels.shape == (*expected, 3)
    assert (pixels == torch.tensor([255, 0, 0])).all()


def test_a_source_too_narrow_for_the_positions_is_refused(tmp_path: Path, folder: Path) -> None:
    """A side of 40 tokens in a table of 16: indices before the table would be taken from its end."""
    Image.new("RGB", (10, 1000)).save(tmp_path / "narrow.png")
    Image.new("RGB", (100, 400)).save(tmp_path / "tall.png")
    config = Sd3Config(type="sd3", pretrained=str(folder), dtype="float32", max_sequence_length=8)
    model = Sd3Flow(config, CPU)
    narrow, tall = (Prompt(n, "round", source_images=(str(tmp_path / f"{n}.png"),)) for n in ("narrow", "tall"))
    model.check_prompts([tall, Prompt("plain", "a circle")])
    with pytest.raises(ConfigError, match=r"narrow\.png has 10 x 1000 pixels .* at most 64 on a side; crop it"):
        model.check_prompts([tall, narrow])


def bomb(path: Path) -> None:
    """A header that claims 60,000 x 60,000 pixels."""
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_text("no picture"), "cannot identify image file"),
        (lambda path: path.unlink(), "No such file"),
        (bomb, "could be decompression bomb"),
    ],
)
def test_a_source_that_is_no_picture_is_refused(tmp_path: Path, damage: Callable[[Path], object], reason: str) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    for path in (good, bad):
        Image.new("RGB", (16, 16)).save(path)
    damage(bad)
    both = Prompt("second", "round", source_images=(str(good), str(bad)), dataset="edits")
    prompts = [Prompt("first", "round", source_images=(str(good),)), both, replace(both, id="third")]
    with pytest.raises(ConfigError, match=reason) as raised:
        check_sources(prompts, 16 * 16, 4, 64)
    assert f"prompt 'second' of data set 'edits' has the source image {bad}" in str(raised.value)
    assert str(raised.value).endswith("replace the file or leave the prompt out")


def test_an_edit_depends_on_its_own_sources_alone(tmp_path: Path, folder: Path) -> None:
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (32, 16), color).save(tmp_path / f"{name}.png")
    red, blue = (Prompt(n, "make it round", source_images=(str(tmp_path / f"{n}.png"),)) for n in ("red", "blue"))
    plain = Prompt("plain", "a circle")
    config = Sd3Config(type="sd3", pretrained=str(folder), dtype="float32", max_sequence_length=8)
    policy = FlowPolicy(Sd3Flow(config, CPU), keep_reference=False)
    plan = SamplingPlan(
        num_inference_steps=2, micro_batch_size=3, stochastic_steps=(0,), trained_steps=(0,), noise_level=0.7,
        guidance_scale=2.0, keep_final=True,
    )  # fmt: skip
    (rollout,) = policy.sample([red, blue, plain], 1, [5, 5, 5], plan)
    final = policy.clean(rollout)
    assert torch.equal(policy.replay(rollout, slice(0, 1)).logp_BS.detach(), rollout.logp_BS)
    for i, prompt in enumerate((red, blue, plain)):
        (alone,) = policy.sample([prompt], 1, [5], plan)
        torch.testing.assert_close(final[i : i + 1], policy.clean(alone), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(final[0], final[1], atol=1e-2)
