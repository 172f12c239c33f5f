"""The tiny policy's transformer is diffusers' SD3 transformer: its names, its first weights, its numbers, and no import of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from diffusers import SD3Transformer2DModel

from trainer.policies.flow.tiny_network import TinyTransformer

LAYERS, HEADS, HEAD_DIM, CHANNELS, GRID = 3, 2, 16, 48, 6
WIDTH = HEADS * HEAD_DIM
# What takes seconds to import, and what a step of the tiny policy does not need.
HEAVY = ("diffusers", "transformers", "peft", "accelerate", "scipy", "pandas", "matplotlib", "torchvision", "sklearn")


@pytest.fixture(scope="module")
def both() -> tuple[TinyTransformer, SD3Transformer2DModel]:
    """Ours and diffusers', made from the same seed."""
    torch.manual_seed(3)
    ours = TinyTransformer(grid=GRID, channels=CHANNELS, num_layers=LAYERS, num_heads=HEADS, head_dim=HEAD_DIM)
    torch.manual_seed(3)
    theirs = SD3Transformer2DModel(
        sample_size=GRID,
        pos_embed_max_size=GRID,
        patch_size=1,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        qk_norm="rms_norm",
    )
    return ours, theirs


def test_a_seed_makes_the_same_weights_by_the_same_names_in_the_same_order(
    both: tuple[TinyTransformer, SD3Transformer2DModel],
) -> None:
    ours, theirs = both
    # In the same order, too: optimizers and checkpoints go by it.
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_predicts_and_learns_bit_for_bit_as_the_model_of_diffusers_does(
    both: tuple[TinyTransformer, SD3Transformer2DModel], dtype: torch.dtype
) -> None:
    ours, theirs = (each.to(dtype) for each in both)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, CHANNELS, 3, 6, generator=generator).to(dtype).requires_grad_()
    text, pooled = (torch.randn(2, *shape, generator=generator).to(dtype) for shape in ((5, WIDTH), (WIDTH,)))
    levels = torch.tensor([12.5, 870.0])
    found = ours(x, levels, text, pooled)
    wanted = theirs(
        hidden_states=x,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=levels,
        return_dict=False,
    )[0]
    assert torch.equal(found, wanted)
    assert found.stride() == wanted.stride()  # sums go through memory in this order
    gradients = [
        torch.autograd.grad(out.square().mean(), [x, *network.parameters()])
        for out, network in ((found, ours), (wanted, theirs))
    ]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.slow
def test_what_a_run_of_the_tiny_policy_imports_has_nothing_of_the_libraries_of_large_models() -> None:
    code = (
        "import sys, trainer.loop, trainer.programs.rl, trainer.policies.flow.tiny as tiny\n"
        "from trainer.config import TinyConfig\n"
        "import torch\n"
        "tiny.TinyFlow.build(TinyConfig(), torch.device('cpu'))\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
