"""The networks of DeepGen in one module, with the parameter names of its published checkpoints.

Axes: B prompts, L tokens of a prompt with its queries, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

from trainer.policies.flow.deepgen.geometry import FUSION_STRIDE, HEAD_DIM, ConnectorGeometry, Geometry
from trainer.policies.flow.sd3_tokens import Sd3Transformer


class _Attention(nn.Module):
    """Every token attends to every token of its row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        projected = (self.q_proj(x_BLD), self.k_proj(x_BLD), self.v_proj(x_BLD))
        q, k, v = (each.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for each in projected)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x_BLD), approximate="tanh"))
        return out


class _ConnectorLayer(nn.Module):
    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attn = _Attention(width)
        self.layer_norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width, mlp_width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD + self.self_attn(self.layer_norm1(x_BLD))
        out: Tensor = x_BLD + self.mlp(self.layer_norm2(x_BLD))
        return out


class Connector(nn.Module):
    """A bidirectional pre-norm transformer without positions or final norm, (B, L, D) to the same."""

    def __init__(self, width: int, mlp_width: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_ConnectorLayer(width, mlp_width) for _ in range(num_layers))

    def forward(self, x_BLD: Tensor) -> Tensor:
        for layer in self.layers:
            x_BLD = layer(x_BLD)
        return x_BLD


class DeepGenNetworks(nn.Module):
    """Language model, queries, connector, transformer and autoencoder.

    The language model has no head: nothing here reads a next-token distribution.
    """

    def __init__(self, lmm: Any, transformer: Any, vae: Any, sizes: ConnectorGeometry) -> None:
        """Takes a Qwen2_5_VLModel, an Sd3Transformer and an AutoencoderKL; what stands between them gets random weights."""
        super().__init__()
        self.lmm = lmm
        self.meta_queries = nn.Parameter(torch.randn(sizes.num_queries, sizes.lmm_width) / math.sqrt(sizes.lmm_width))
        self.projector_1 = nn.Linear(sizes.num_fused * sizes.lmm_width, sizes.width)
        self.connector = Connector(sizes.width, sizes.mlp_width, sizes.num_layers)
        self.projector_2 = nn.Linear(sizes.width, sizes.pooled_width)
        self.projector_3 = nn.Linear(sizes.width, sizes.joint_width)
        self.transformer = transformer
        self.vae = vae

    @classmethod
    def from_geometry(cls, geometry: Geometry) -> DeepGenNetworks:
        """Random weights; under `torch.device("meta")` none, which takes a moment even at full size."""
        return cls(
            Qwen2_5_VLModel(Qwen2_5_VLConfig(**geometry.lmm)),
            Sd3Transformer(**geometry.transformer),
            AutoencoderKL(**geometry.vae),
            geometry.connector,
        )

    @property
    def fused_layers(self) -> list[int]:
        """Which of the language model's hidden states (0 the embeddings, n the output of layer n) are concatenated."""
        num_fused = self.projector_1.in_features // self.meta_queries.shape[1]
        return list(range(len(self.lmm.language_model.layers) - 1, 0, -FUSION_STRIDE))[:num_fused]

    def condition(self, hidden_states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The language model's hidden states, each (B, L, D), to the transformer's (B, L, joint) and pooled (B, pooled)."""
        fused = torch.cat([hidden_states[index] for index in self.fused_layers], dim=-1)
        tokens = self.connector(self.projector_1(fused))
        return self.projector_3(tokens), self.projector_2(tokens.mean(1))
