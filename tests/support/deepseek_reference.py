"""What a Janus model computes, by DeepSeek's names of its tensors: written out from the equations, with no class of a library.

github.com/deepseek-ai/Janus, janus/models: siglip_vit.py and projector.py (what is read), modeling_vlm.py (embedding and head of
image tokens), vq_model.py (the decoder of image tokens), and a Llama between them. Float32 throughout, no dropout, no cache.

Axes: B images or rows, P patches or codes, T tokens, d width, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]


class DeepSeek:
    """A model of DeepSeek's by its weights and the fields of its config.json."""

    def __init__(self, weights: Weights, fields: Mapping[str, Any]) -> None:
        self.w, self.fields = weights, fields

    def image_features(self, pixels: Tensor) -> Tensor:
        """(B, P, d of the language model) of pixels (B, 3, H, W), normalised: the tower's last layer, then the aligner."""
        params = self.fields["vision_config"]["params"]
        tower = "vision_model.vision_tower"
        x = F.conv2d(
            pixels,
            self.w[f"{tower}.patch_embed.proj.weight"],
            self.w[f"{tower}.patch_embed.proj.bias"],
            stride=params["patch_size"],
        )
        x = x.flatten(2).mT + self.w[f"{tower}.pos_embed"]  # patches row by row
        for number in range(params["layers"]):
            block = f"{tower}.blocks.{number}"
            x = x + self._tower_attention(self._layer_norm(x, f"{block}.norm1"), f"{block}.attn", params["heads"])
            inner = F.gelu(self._linear(self._layer_norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
            x = x + self._linear(inner, f"{block}.mlp.fc2")
        return self._projected(self._layer_norm(x, f"{tower}.norm"), "aligner")

    def image_embeddings(self, tokens: Tensor) -> Tensor:
        """(..., d) of image tokens, as the language model takes them."""
        return self._projected(self.w["gen_embed.weight"][tokens], "gen_aligner")

    def text_embeddings(self, tokens: Tensor) -> Tensor:
        """(..., d) of text tokens."""
        return self.w["language_model.model.embed_tokens.weight"][tokens]

    def image_logits(self, hidden: Tensor) -> Tensor:
        """(..., codes) of the next image token."""
        inner = F.gelu(self._linear(hidden, "gen_head.output_mlp_projector"))
        return self._linear(inner, "gen_head.vision_head")

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(..., vocabulary) of the next text token; the head is a matrix of its own, not the embedding's."""
        return hidden @ self.w["language_model.lm_head.weight"].T

    def hidden(self, x: Tensor) -> Tensor:
        """(B, T, d): the Llama's last hidden states of embeddings (B, T, d), all of which are attended to."""
        config, root = self.fields["language_config"], "language_model.model"
        heads, count = config["num_attention_heads"], x.shape[1]
        head_dim = config["hidden_size"] // heads
        # Rotary positions: the first half of a head's numbers is turned against the second (arXiv 2104.09864).
        base = config.get("rope_theta", 10000.0)
        frequency = base ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        angle = (torch.arange(count).float()[:, None] * frequency).repeat(1, 2)
        later = torch.ones(count, count).triu(1).bool()
        for number in range(config["num_hidden_layers"]):
            layer = f"{root}.layers.{number}"
            y = self._rms_norm(x, f"{layer}.input_layernorm")
            q, k, v = (
                (y @ self.w[f"{layer}.self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, head_dim)).transpose(1, 2)
                for name in "qkv"
            )
            repeats = heads // k.shape[1]
            q, k = (each * angle.cos() + _turned(each) * angle.sin() for each in (q, k))
            k, v = (each.repeat_interleave(repeats, 1) for each in (k, v))
            scores = (q @ k.mT / math.sqrt(head_dim)).masked_fill(later, -math.inf)
            attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = x + attended @ self.w[f"{layer}.self_attn.o_proj.weight"].T
            y = self._rms_norm(x, f"{layer}.post_attention_layernorm")
            gate, up = (y @ self.w[f"{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            x = x + (gate * gate.sigmoid() * up) @ self.w[f"{layer}.mlp.down_proj.weight"].T
        return self._rms_norm(x, f"{root}.norm")

    def pixels(self, tokens: Tensor) -> Tensor:
        """(B, 3, H, W), about -1 to 1, of a square of image tokens (B, P): the decoder of VQ-16."""
        root, params = "gen_vision_model", self.fields["gen_vision_config"]["params"]
        side = math.isqrt(tokens.shape[1])
        codes = self.w[f"{root}.quantize.embedding.weight"]
        codes = codes / codes.norm(dim=1, keepdim=True)  # the codebook lies on a sphere
        x = codes[tokens].mT.unflatten(-1, (side, side))
        x = self._conv(x, f"{root}.post_quant_conv")
        x = self._conv(x, f"{root}.decoder.conv_in", padding=1)
        x = self._residual(x, f"{root}.decoder.mid.0")
        x = self._spatial_attention(x, f"{root}.decoder.mid.1")
        x = self._residual(x, f"{root}.decoder.mid.2")
        levels = len(params["channel_multiplier"])
        for level in range(levels):
            block = f"{root}.decoder.conv_blocks.{level}"
            for number in range(params["num_res_blocks"] + 1):
                x = self._residual(x, f"{block}.res.{number}")
                if level == 0:  # the coarsest alone attends
                    x = self._spatial_attention(x, f"{block}.attn.{number}")
            if level < levels - 1:
                doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self._conv(doubled, f"{block}.upsample.conv", padding=1)
        x = _swish(self._group_norm(x, f"{root}.decoder.norm_out"))
        return self._conv(x, f"{root}.decoder.conv_out", padding=1)

    def _projected(self, x: Tensor, name: str) -> Tensor:
        """Two linear layers with a GELU between them."""
        return self._linear(F.gelu(self._linear(x, f"{name}.layers.0")), f"{name}.layers.2")

    def _tower_attention(self, x: Tensor, name: str, heads: int) -> Tensor:
        """Every patch attends to all; queries, keys and values are the thirds of one layer's outputs."""
        q, k, v = (
            each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in self._linear(x, f"{name}.qkv").chunk(3, -1)
        )
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return self._linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.proj")

    def _residual(self, x: Tensor, name: str) -> Tensor:
        y = self._conv(_swish(self._group_norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        y = self._conv(_swish(self._group_norm(y, f"{name}.norm2")), f"{name}.conv2", padding=1)
        return y + (self._conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in self.w else x)

    def _spatial_attention(self, x: Tensor, name: str) -> Tensor:
        """One head over all places of a feature map."""
        y = self._group_norm(x, f"{name}.norm")
        q, k, v = (self._conv(y, f"{name}.{each}").flatten(2) for each in "qkv")  # (B, C, places)
        weights = (q.mT @ k / math.sqrt(q.shape[1])).softmax(-1)
        return x + self._conv((v @ weights.mT).unflatten(-1, x.shape[2:]), f"{name}.proj_out")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def _conv(self, x: Tensor, name: str, padding: int = 0) -> Tensor:
        return F.conv2d(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], padding=padding)

    def _layer_norm(self, x: Tensor, name: str) -> Tensor:
        spread = (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return (x - x.mean(-1, keepdim=True)) / spread * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def _group_norm(self, x: Tensor, name: str) -> Tensor:
        """Over 32 groups of channels."""
        groups = x.unflatten(1, (32, -1))
        over = (2, 3, 4)
        spread = (groups.var(over, correction=0, keepdim=True) + 1e-6).sqrt()
        normed = ((groups - groups.mean(over, keepdim=True)) / spread).flatten(1, 2)
        return normed * self.w[f"{name}.weight"][:, None, None] + self.w[f"{name}.bias"][:, None, None]

    def _rms_norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[f"{name}.weight"]


def _swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def _turned(x: Tensor) -> Tensor:
    """A quarter turn of each pair (a number of the first half, the one as far into the second)."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)
