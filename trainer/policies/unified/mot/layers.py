"""A layer of two experts with one attention: words and seen images go through one, latents through the other.

The names of all parameters are BAGEL's (arXiv 2505.14683): the second expert's end in `_moe_gen`. The two kinds of tokens are held
apart as two tensors, so that each linear layer runs on a whole tensor; only attention brings them together.

Axes: U tokens of words and seen images, G latent tokens, H heads, D numbers of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.policies.unified.attends import Attends, Pair
from trainer.policies.unified.mot.geometry import LanguageGeometry


class RmsNorm(nn.Module):
    """x / rms(x) * weight, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Mlp(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, geometry: LanguageGeometry) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(geometry.hidden_size, geometry.intermediate_size, bias=False)
        self.up_proj = nn.Linear(geometry.hidden_size, geometry.intermediate_size, bias=False)
        self.down_proj = nn.Linear(geometry.intermediate_size, geometry.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class MotAttention(nn.Module):
    """Projections of both experts; queries and keys are normed, then turned by their positions."""

    def __init__(self, geometry: LanguageGeometry) -> None:
        super().__init__()
        width, size = geometry.hidden_size, geometry.head_dim
        inner, shared = geometry.num_attention_heads * size, geometry.num_key_value_heads * size
        self.head_dim = size
        self.q_proj, self.q_proj_moe_gen = nn.Linear(width, inner), nn.Linear(width, inner)
        self.k_proj, self.k_proj_moe_gen = nn.Linear(width, shared), nn.Linear(width, shared)
        self.v_proj, self.v_proj_moe_gen = nn.Linear(width, shared), nn.Linear(width, shared)
        self.o_proj, self.o_proj_moe_gen = (nn.Linear(inner, width, bias=False) for _ in range(2))
        self.q_norm, self.q_norm_moe_gen = (RmsNorm(size, geometry.rms_norm_eps) for _ in range(2))
        self.k_norm, self.k_norm_moe_gen = (RmsNorm(size, geometry.rms_norm_eps) for _ in range(2))

    def forward(self, layer: int, x: Pair, turns: tuple[Pair, Pair], attends: Attends) -> Pair:
        und, gen = x
        q = self._heads(self.q_proj(und)), self._heads(self.q_proj_moe_gen(gen))
        k = self._heads(self.k_proj(und)), self._heads(self.k_proj_moe_gen(gen))
        v = self._heads(self.v_proj(und)), self._heads(self.v_proj_moe_gen(gen))
        q = turned(self.q_norm(q[0]), turns[0]), turned(self.q_norm_moe_gen(q[1]), turns[1])
        k = turned(self.k_norm(k[0]), turns[0]), turned(self.k_norm_moe_gen(k[1]), turns[1])
        out_und, out_gen = attends(layer, q, k, v)
        return self.o_proj(out_und.flatten(1)), self.o_proj_moe_gen(out_gen.flatten(1))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.head_dim))


class MotLayer(nn.Module):
    """Attention and MLP behind norms, each added to what came in."""

    def __init__(self, geometry: LanguageGeometry) -> None:
        super().__init__()
        self.self_attn = MotAttention(geometry)
        self.mlp, self.mlp_moe_gen = Mlp(geometry), Mlp(geometry)
        width, eps = geometry.hidden_size, geometry.rms_norm_eps
        self.input_layernorm, self.input_layernorm_moe_gen = RmsNorm(width, eps), RmsNorm(width, eps)
        self.post_attention_layernorm = RmsNorm(width, eps)
        self.post_attention_layernorm_moe_gen = RmsNorm(width, eps)

    def forward(self, layer: int, und: Tensor, gen: Tensor, turns: tuple[Pair, Pair], attends: Attends) -> Pair:
        normed = self.input_layernorm(und), self.input_layernorm_moe_gen(gen)
        seen_und, seen_gen = self.self_attn(layer, normed, turns, attends)
        und, gen = und + seen_und, gen + seen_gen
        und = und + self.mlp(self.post_attention_layernorm(und))
        gen = gen + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(gen))
        return und, gen


def turning(positions_N: Tensor, geometry: LanguageGeometry) -> Pair:
    """cos and sin (N, 1, D), float32, of rotary positions (arXiv 2104.09864)."""
    half = torch.arange(0, geometry.head_dim, 2, device=positions_N.device, dtype=torch.float32) / geometry.head_dim
    angles = positions_N.float()[:, None] * geometry.rope_theta**-half
    doubled = torch.cat([angles, angles], dim=1)[:, None, :]
    return doubled.cos(), doubled.sin()


def turned(x: Tensor, turn: Pair) -> Tensor:
    """Heads (N, H, D), each turned by its position: the first half of a head with the second."""
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
