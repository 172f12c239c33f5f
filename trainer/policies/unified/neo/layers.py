"""One layer of the native model: Qwen3's, with a second set of queries and keys for rows and columns of images.

A head's query is [T | H | W]: D numbers along time, D / 2 along the rows of an image, D / 2 along its columns; each part has its own
norm and is turned by its own position (NEO, arXiv 2510.14979, Native-RoPE). Values have D numbers. Text lies at row 0 and column 0.

Attention itself is the caller's (`Attend`). So packs, and answers with a cache, go through the same layer; and a generation expert
is a second layer of this class for its own tokens, whose heads are attended together with those of this one.

Axes: N tokens, d hidden, H heads, K heads of keys and values, D size of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.policies.unified.neo.geometry import NeoGeometry

# Queries (N, H, 2 D), keys (N, K, 2 D) and values (N, K, D) of the layer of this number: what the queries take (N, H * D).
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Turn:
    """Cosines and sines (N, 1, 2 D) of the tokens' positions, in the order [T | H | W]; the first half of each part's sines is
    negative, as `turned` takes them."""

    cos: Tensor
    sin: Tensor

    @staticmethod
    def of(places_3N: Tensor, geometry: NeoGeometry) -> Turn:
        """
        Args:
            places_3N: int64: time, row and column of each token.
        """
        parts = []
        for place_N, width, theta in (
            (places_3N[0], geometry.head_dim, geometry.rope_theta),
            (places_3N[1], geometry.head_dim // 2, geometry.rope_theta_hw),
            (places_3N[2], geometry.head_dim // 2, geometry.rope_theta_hw),
        ):
            # Always in float32: bfloat16 has no whole numbers above 256.
            steps = torch.arange(0, width, 2, device=place_N.device, dtype=torch.float32)
            parts.append(place_N.float()[:, None] * theta ** (-steps / width))
        cos = torch.cat([torch.cat([angle.cos(), angle.cos()], -1) for angle in parts], -1)
        sin = torch.cat([torch.cat([-angle.sin(), angle.sin()], -1) for angle in parts], -1)
        return Turn(cos[:, None], sin[:, None])


def turned(heads: Tensor, turn: Turn) -> Tensor:
    """Heads (N, H, 2 D) with each pair (i, i + half) of every part turned by its angle."""
    quarter = heads.shape[-1] // 8  # T has D numbers, so halves of D / 2; H and W have D / 2 each, so halves of D / 4
    t1, t2, h1, h2, w1, w2 = heads.split([2 * quarter] * 2 + [quarter] * 4, -1)
    swapped = torch.cat([t2, t1, h2, h1, w2, w1], -1)
    return heads * turn.cos + swapped * turn.sin


class RMSNorm(nn.Module):
    """x / root mean square(x) * weight over the last axis, the quotient in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), x.shape[-1:], None, self.eps).to(x.dtype) * self.weight


class NeoAttention(nn.Module):
    """Projections and norms of a layer's attention, by NEO's names."""

    def __init__(self, geometry: NeoGeometry, number: int) -> None:
        super().__init__()
        d, width, eps = geometry.hidden_size, geometry.head_dim, geometry.rms_norm_eps
        queries, keys = geometry.num_heads * width, geometry.num_kv_heads * width
        self.number, self.width = number, width
        self.q_proj = nn.Linear(d, queries, bias=False)
        self.q_proj_hw = nn.Linear(d, queries, bias=False)
        self.k_proj = nn.Linear(d, keys, bias=False)
        self.k_proj_hw = nn.Linear(d, keys, bias=False)
        self.v_proj = nn.Linear(d, keys, bias=False)
        self.o_proj = nn.Linear(queries, d, bias=False)
        self.q_norm, self.k_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.q_norm_h, self.q_norm_w = RMSNorm(width // 2, eps), RMSNorm(width // 2, eps)
        self.k_norm_h, self.k_norm_w = RMSNorm(width // 2, eps), RMSNorm(width // 2, eps)

    def forward(self, x_Nd: Tensor, turn: Turn, attend: Attend) -> Tensor:
        queries = self._heads(self.q_proj(x_Nd), self.q_proj_hw(x_Nd), (self.q_norm, self.q_norm_h, self.q_norm_w))
        keys = self._heads(self.k_proj(x_Nd), self.k_proj_hw(x_Nd), (self.k_norm, self.k_norm_h, self.k_norm_w))
        values = self.v_proj(x_Nd).unflatten(-1, (-1, self.width))
        queries, keys = (turned(each, turn).to(values.dtype) for each in (queries, keys))
        out: Tensor = self.o_proj(attend(self.number, queries, keys, values))
        return out

    def _heads(self, time_Nh: Tensor, image_Nh: Tensor, norms: tuple[nn.Module, nn.Module, nn.Module]) -> Tensor:
        """(N, heads, 2 D): [T | H | W], each part normed for itself."""
        time = time_Nh.unflatten(-1, (-1, self.width))
        rows, columns = image_Nh.unflatten(-1, (-1, self.width)).chunk(2, -1)
        return torch.cat([norm(part) for norm, part in zip(norms, (time, rows, columns), strict=True)], -1)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, geometry: NeoGeometry) -> None:
        super().__init__()
        d, inner = geometry.hidden_size, geometry.intermediate_size
        self.gate_proj, self.up_proj = nn.Linear(d, inner, bias=False), nn.Linear(d, inner, bias=False)
        self.down_proj = nn.Linear(inner, d, bias=False)

    def forward(self, x_Nd: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x_Nd)) * self.up_proj(x_Nd))
        return out


class NeoLayer(nn.Module):
    """A layer by NEO's names, which are Qwen3's and the twins for rows and columns."""

    def __init__(self, geometry: NeoGeometry, number: int) -> None:
        super().__init__()
        self.self_attn = NeoAttention(geometry, number)
        self.mlp = GatedMLP(geometry)
        self.input_layernorm = RMSNorm(geometry.hidden_size, geometry.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(geometry.hidden_size, geometry.rms_norm_eps)

    def forward(self, x_Nd: Tensor, turn: Turn, attend: Attend) -> Tensor:
        x_Nd = x_Nd + self.self_attn(self.input_layernorm(x_Nd), turn, attend)
        out: Tensor = x_Nd + self.mlp(self.post_attention_layernorm(x_Nd))
        return out
