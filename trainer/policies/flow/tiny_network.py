"""The tiny policy's transformer: Stable Diffusion 3's (MM-DiT, arXiv 2403.03206) at patch size 1, with RMS norms of queries and keys.

It is `SD3Transformer2DModel` of diffusers, weight for weight by the same names and bit for bit in its numbers; a test compares
the two. Importing diffusers takes twice as long as importing torch, and nothing else of it is needed here
(docs/decisions/0140-a-first-step-soon.md). Axes: B samples, N tokens of the image, L tokens of the text, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_EPS = 1e-6
_MAX_PERIOD = 10_000
_FREQUENCIES = 256  # numbers that a noise level becomes


class TinyTransformer(nn.Module):
    """v = network(latents, text): tokens of image and text attend to each other, each with weights of their own.

    Args:
        grid: the side of the square table of positions; latents of at most grid x grid use its middle.
        channels: of the latents, which are tokens pixel by pixel.
    """

    def __init__(self, *, grid: int, channels: int, num_layers: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        width = num_heads * head_dim
        self.pos_embed = _PlacedPixels(grid, channels, width)
        self.time_text_embed = _NoiseLevelAndText(width)
        self.context_embedder = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList(
            _Block(width, num_heads, is_last=i == num_layers - 1) for i in range(num_layers)
        )
        self.norm_out = _ShiftAndScale(width)
        self.proj_out = nn.Linear(width, channels)

    def start_at_zero(self) -> None:
        """adaLN modulations and the output become zero (DiT, arXiv 2212.09748, section 3.2)."""
        for module in self.modules():
            if isinstance(module, _Modulation | _ShiftAndScale):
                nn.init.zeros_(module.linear.weight)
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, x: Tensor, timestep_B: Tensor, text_BLD: Tensor, pooled_BD: Tensor) -> Tensor:
        """The velocity at latents x (B, C, H, W), the shape of x. `timestep_B` is the noise level times 1000."""
        tokens = self.pos_embed(x)
        condition = self.time_text_embed(timestep_B, pooled_BD)
        text = self.context_embedder(text_BLD)
        for block in self.transformer_blocks:
            text, tokens = block(text, tokens, condition)
        tokens = self.proj_out(self.norm_out(tokens, condition))
        height, width = x.shape[-2:]
        return tokens.reshape(len(x), height, width, -1).permute(0, 3, 1, 2)


class _PlacedPixels(nn.Module):
    """Pixels (B, C, H, W) to tokens (B, N, D) that know their place."""

    pos_embed: Tensor

    def __init__(self, grid: int, channels: int, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.proj = nn.Conv2d(channels, width, kernel_size=1)
        self.register_buffer("pos_embed", _places(grid, width).float()[None])

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = self.proj(x).flatten(2).transpose(1, 2)
        top, left = (self.grid - height) // 2, (self.grid - width) // 2
        table = self.pos_embed.reshape(1, self.grid, self.grid, -1)
        placed: Tensor = tokens + table[:, top : top + height, left : left + width].reshape(1, height * width, -1)
        return placed.contiguous()


class _NoiseLevelAndText(nn.Module):
    """What all tokens are told: the noise level and the pooled text, (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = _TwoLayers(_FREQUENCIES, width)
        self.text_embedder = _TwoLayers(width, width)

    def forward(self, timestep_B: Tensor, pooled_BD: Tensor) -> Tensor:
        half = _FREQUENCIES // 2
        exponent = -math.log(_MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=timestep_B.device) / half
        angles = timestep_B[:, None].float() * torch.exp(exponent)[None]
        waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        told: Tensor = self.timestep_embedder(waves.to(pooled_BD.dtype)) + self.text_embedder(pooled_BD)
        return told


class _TwoLayers(nn.Module):
    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(size, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(functional.silu(self.linear_1(x)))
        return out


class _Modulation(nn.Module):
    """adaLN-Zero (arXiv 2212.09748): a norm without weights, and shift, scale and gates that come from the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Returns the input of attention, its gate, and shift, scale and gate of the layers after it."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.linear(functional.silu(condition)).chunk(6, dim=1)
        return _normed(x) * (1 + scale[:, None]) + shift[:, None], gate, shift_mlp, scale_mlp, gate_mlp


class _ShiftAndScale(nn.Module):
    """The same without gates, for what is not added to anything."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.linear(functional.silu(condition)).chunk(2, dim=1)
        return _normed(x) * (1 + scale)[:, None] + shift[:, None]


class _RmsNorm(nn.Module):
    """Of each head by itself (arXiv 1910.07467)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        of_size_one = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + _EPS)
        return of_size_one.to(self.weight.dtype) * self.weight


class _JointAttention(nn.Module):
    """Queries, keys and values of image and text come from layers of their own, and everything attends to everything."""

    def __init__(self, width: int, num_heads: int, *, is_last: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        # In the order in which diffusers makes them, which decides what random weights a seed gives.
        self.norm_q, self.norm_k = _RmsNorm(width // num_heads), _RmsNorm(width // num_heads)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.add_k_proj, self.add_v_proj, self.add_q_proj = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width))
        self.to_add_out = None if is_last else nn.Linear(width, width)
        self.norm_added_q, self.norm_added_k = _RmsNorm(width // num_heads), _RmsNorm(width // num_heads)

    def forward(self, tokens: Tensor, text: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is added to the image's tokens, and to the text's, whose end is not needed behind the last block."""
        query, key, value = (self._heads(layer(tokens)) for layer in (self.to_q, self.to_k, self.to_v))
        query, key = self.norm_q(query), self.norm_k(key)
        added = (self._heads(layer(text)) for layer in (self.add_q_proj, self.add_k_proj, self.add_v_proj))
        text_query, text_key, text_value = added
        found = functional.scaled_dot_product_attention(
            torch.cat([query, self.norm_added_q(text_query)], dim=2),
            torch.cat([key, self.norm_added_k(text_key)], dim=2),
            torch.cat([value, text_value], dim=2),
        )
        found = found.transpose(1, 2).reshape(len(tokens), -1, tokens.shape[2])
        of_image, of_text = found[:, : tokens.shape[1]], found[:, tokens.shape[1] :]
        return self.to_out(of_image), None if self.to_add_out is None else self.to_add_out(of_text)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, heads, N, D / heads)."""
        return x.view(len(x), -1, self.num_heads, x.shape[2] // self.num_heads).transpose(1, 2)


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # Names of diffusers: its activation owns the first layer, and a dropout that drops nothing is between the two.
        self.net = nn.Sequential(_Gelu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class _Gelu(nn.Module):
    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(size, width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.proj(x), approximate="tanh")


class _Block(nn.Module):
    """Attention and a feed-forward layer for the image's tokens and, but in the last block, for the text's."""

    def __init__(self, width: int, num_heads: int, *, is_last: bool) -> None:
        super().__init__()
        self.norm1 = _Modulation(width)
        self.norm1_context: nn.Module = _ShiftAndScale(width) if is_last else _Modulation(width)
        self.attn = _JointAttention(width, num_heads, is_last=is_last)
        self.ff = _FeedForward(width)
        self.ff_context = None if is_last else _FeedForward(width)

    def forward(self, text: Tensor, tokens: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        given, gate, shift, scale, gate_mlp = self.norm1(tokens, condition)
        if self.ff_context is None:
            attended, _ = self.attn(given, self.norm1_context(text, condition))
        else:
            text_given, text_gate, text_shift, text_scale, text_gate_mlp = self.norm1_context(text, condition)
            attended, of_text = self.attn(given, text_given)
        tokens = tokens + gate[:, None] * attended
        tokens = tokens + gate_mlp[:, None] * self.ff(_normed(tokens) * (1 + scale[:, None]) + shift[:, None])
        if self.ff_context is not None:
            text = text + text_gate[:, None] * of_text
            moved = _normed(text) * (1 + text_scale[:, None]) + text_shift[:, None]
            text = text + text_gate_mlp[:, None] * self.ff_context(moved)
        return text, tokens


def _normed(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=_EPS)


def _places(grid: int, width: int) -> Tensor:
    """Sines and cosines of column and row, (grid * grid, width), in float64."""
    along = torch.arange(grid, dtype=torch.float32)
    columns, rows = torch.meshgrid(along, along, indexing="xy")
    frequencies = torch.arange(width // 4, dtype=torch.float64) / (width / 4)
    angles = [torch.outer(each.reshape(-1), 1.0 / _MAX_PERIOD**frequencies) for each in (columns, rows)]
    return torch.cat([wave(each) for each in angles for wave in (torch.sin, torch.cos)], dim=1)
