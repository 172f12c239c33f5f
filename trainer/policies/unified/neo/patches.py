"""Patches of images as tokens: two linear maps with a turn between them, in place of a vision encoder.

Axes: M patches, I image tokens (each `merge` x `merge` patches, which lie behind one another), C numbers of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.policies.unified.neo.geometry import NeoGeometry


class _Whole(nn.Conv2d):
    """A convolution over inputs of exactly its kernel's size, which is a linear map; its weight has a convolution's shape."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__(inputs, outputs, side, side)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.flatten(1), self.weight.flatten(1), self.bias)


class PatchEmbedding(nn.Module):
    """A patch's numbers, GELU, then turned by its column and its row; then `merge` x `merge` patches become a token."""

    def __init__(self, geometry: NeoGeometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.patch_embedding = _Whole(3, geometry.vision_hidden_size, geometry.patch_size)
        self.dense_embedding = _Whole(geometry.vision_hidden_size, geometry.hidden_size, geometry.merge)

    def forward(self, patches_MC: Tensor, places_M2: Tensor) -> Tensor:
        """Embeddings (I, d).

        Args:
            patches_MC: float32, the channels, rows and columns of each patch behind one another, normalised.
            places_M2: int64, row and column of each patch in its image.
        """
        geometry = self.geometry
        x = functional.gelu(self.patch_embedding(patches_MC))
        x = turned_by_place(x.float(), places_M2, geometry.rope_theta_vision).to(x.dtype)
        # Tokens have their patches row by row; a convolution's weight has its channels first.
        tokens = x.unflatten(0, (-1, geometry.merge**2)).transpose(1, 2)
        out: Tensor = self.dense_embedding(tokens)
        return out


def turned_by_place(x_MD: Tensor, places_M2: Tensor, theta: float) -> Tensor:
    """The first half of the features turned by the patch's column, the second by its row: neighbours (2 i, 2 i + 1) are a pair,
    not (i, i + half) as in the layers."""
    columns, rows = x_MD.chunk(2, -1)
    return torch.cat([_turned(columns, places_M2[:, 1], theta), _turned(rows, places_M2[:, 0], theta)], -1)


def _turned(x_MD: Tensor, place_M: Tensor, theta: float) -> Tensor:
    width = x_MD.shape[-1]
    steps = torch.arange(0, width, 2, device=x_MD.device, dtype=torch.float32)
    angle = place_M.float()[:, None] * theta ** (-steps / width)
    first, second = x_MD[:, 0::2], x_MD[:, 1::2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(1)
