"""The vision encoder: SigLIP (arXiv 2303.15343) on images of any size (NaViT, arXiv 2307.06304), by BAGEL's names.

Patches of all images of a pack stand in one row; each image sees itself alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainer.policies.unified.mot.geometry import COLOURS, VisionGeometry


class VisionAttention(nn.Module):
    """Attention inside each image, without a mask."""

    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        width = geometry.hidden_size
        self.heads = geometry.num_attention_heads
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        q, k, v = (p(x).unflatten(1, (self.heads, -1)).transpose(0, 1) for p in (self.q_proj, self.k_proj, self.v_proj))
        images = zip(*(each.split(list(lengths), dim=1) for each in (q, k, v)), strict=True)
        seen = [functional.scaled_dot_product_attention(*(each[None] for each in image))[0] for image in images]
        nothing = q[:, :0] + k[:, :0] + v[:, :0]  # a pack without images has gradients of 0, not none
        out: Tensor = self.out_proj(torch.cat([*seen, nothing], dim=1).transpose(0, 1).flatten(1))
        return out


class VisionMlp(nn.Module):
    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.fc1 = nn.Linear(geometry.hidden_size, geometry.intermediate_size)
        self.fc2 = nn.Linear(geometry.intermediate_size, geometry.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return out


class VisionLayer(nn.Module):
    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.self_attn, self.mlp = VisionAttention(geometry), VisionMlp(geometry)
        self.layer_norm1 = nn.LayerNorm(geometry.hidden_size, geometry.layer_norm_eps)
        self.layer_norm2 = nn.LayerNorm(geometry.hidden_size, geometry.layer_norm_eps)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), lengths)
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class _Embeddings(nn.Module):
    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(geometry.patch_size**2 * COLOURS, geometry.hidden_size)
        self.position_embedding = nn.Embedding(geometry.side**2, geometry.hidden_size)

    def forward(self, patches: Tensor, places: Tensor) -> Tensor:
        out: Tensor = self.patch_embedding(patches) + self.position_embedding(places)
        return out


class _Encoder(nn.Module):
    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(geometry) for _ in range(geometry.num_hidden_layers))


class VisionModel(nn.Module):
    """Patches (V, colours in a patch) with their places (V,) in the table to features (V, width)."""

    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.embeddings, self.encoder = _Embeddings(geometry), _Encoder(geometry)
        self.post_layernorm = nn.LayerNorm(geometry.hidden_size, geometry.layer_norm_eps)

    def forward(self, patches: Tensor, places: Tensor, lengths: Sequence[int], *, recompute: bool = False) -> Tensor:
        """`recompute`: layers are computed again in the backward pass."""
        x = self.embeddings(patches, places)
        for layer in self.encoder.layers:
            x = checkpoint(layer, x, lengths, use_reentrant=False) if recompute else layer(x, lengths)
        out: Tensor = self.post_layernorm(x)
        return out


class VisionTower(nn.Module):
    """The name that files have around it."""

    def __init__(self, geometry: VisionGeometry) -> None:
        super().__init__()
        self.vision_model = VisionModel(geometry)

    def forward(self, patches: Tensor, places: Tensor, lengths: Sequence[int], *, recompute: bool = False) -> Tensor:
        out: Tensor = self.vision_model(patches, places, lengths, recompute=recompute)
        return out


def to_patches(image: Tensor, patch: int) -> Tensor:
    """(C, H, W) to (H/patch * W/patch, patch * patch * C): row by row, and inside a patch pixel by pixel, channels last."""
    channels, height, width = image.shape
    cut = image.reshape(channels, height // patch, patch, width // patch, patch)
    return cut.permute(1, 3, 2, 4, 0).reshape(-1, patch * patch * channels)


def from_patches(tokens: Tensor, height: int, width: int, patch: int) -> Tensor:
    """What `to_patches` cut, put together: (..., height * width, patch * patch * C) to (..., C, height * patch, width * patch)."""
    cut = tokens.unflatten(-2, (height, width)).unflatten(-1, (patch, patch, -1))
    *leading, _, _, _, _, channels = cut.shape
    first = len(leading)
    order = (*range(first), first + 4, first, first + 2, first + 1, first + 3)
    return cut.permute(order).reshape(*leading, channels, height * patch, width * patch)


def places(height: int, width: int, side: int, *, spread: bool = False) -> Tensor:
    """Where the patches of an image (height, width, in patches) lie in a table of `side` x `side` positions, int64.

    Args:
        spread: patch i of n lies at i / n of the table, rounded down, so that every image takes the whole table, as BAGEL's programs place
            them where they interpolate; else patch i lies at i.
    """
    row_H, column_W = (torch.arange(count) * (side if spread else count) // count for count in (height, width))
    return (row_H[:, None] * side + column_W).flatten()
