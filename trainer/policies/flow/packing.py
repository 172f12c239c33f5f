"""Latents as the tokens of transformers that take 2x2 patches packed into channels: FLUX.1 and Qwen-Image."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

PATCH = 2


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H/2 * W/2, 4C), row by row."""
    return functional.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`; height and width of the latents."""
    patches = tokens.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))
    return functional.pixel_shuffle(patches, PATCH)
