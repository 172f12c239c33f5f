"""nanoVLM's forward pass written again, in plain torch on a dictionary of its tensors: what the mapped network must equal.

It knows nothing of transformers. Axes: N tiles, P patches, B rows, T tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from trainer.config.nanovlm import NanoVlmConfig

WORDS = (
    "[UNK]",
    "<|im_start|>",
    "<|im_end|>",
    "user",
    "assistant",
    "system",
    "image",
    "what",
    "is",
    "this",
    "a",
    "cat",
    "0",
    "1",
)
SMALL: dict[str, Any] = {
    "vit_hidden_dim": 32,
    "vit_inter_dim": 48,
    "vit_patch_size": 4,
    "vit_img_size": 24,
    "vit_n_heads": 2,
    "vit_n_blocks": 2,
    "lm_hidden_dim": 32,
    "lm_inter_dim": 40,
    "lm_base_vocab_size": 64,
    "lm_vocab_size": 96,
    "lm_n_heads": 4,
    "lm_n_kv_heads": 2,
    "lm_n_blocks": 2,
    "lm_re_base": 1000,
    "lm_max_position_embeddings": 256,
    "mp_pixel_shuffle_factor": 3,
    "mp_image_token_length": 4,
    "max_img_size": 72,
}


def settings(**changes: Any) -> NanoVlmConfig:
    """A small model: 2 + 2 blocks, grouped keys and values, 6 patches a side, 4 image tokens a tile."""
    sides = range(1, 4)
    tags = {f"r{row}c{column}": f"<row_{row}_col_{column}>" for row in sides for column in sides}
    tokens = {"image_token": "<|image|>", "global_image_token": "<|global_image|>", **tags}
    return NanoVlmConfig.model_validate(SMALL | {"vlm_extra_tokens": tokens} | changes)


def random_tensors(config: NanoVlmConfig, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Random weights of these shapes, with the frequencies that belong to the configuration."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    head_dim = config.lm_hidden_dim // config.lm_n_heads
    tensors["decoder.rotary_embd.inv_freq"] = 1.0 / (
        config.lm_re_base ** (torch.arange(0, head_dim, 2).float() / head_dim)
    )
    return tensors


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of words, without nanoVLM's tokens for images, as a base tokenizer is."""
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    ).save_pretrained(folder)


def save_folder(folder: Path, config: NanoVlmConfig, tensors: Mapping[str, Tensor]) -> None:
    """A folder as nanoVLM writes it: the configuration, the tensors, and no tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.model_dump_json(indent=4), encoding="utf-8")
    header = {"format": "pt", "decoder.token_embedding.weight": "decoder.head.weight"}
    save_file(dict(tensors), str(folder / "model.safetensors"), metadata=header)


def image_features(w: Mapping[str, Tensor], config: NanoVlmConfig, tiles: Tensor) -> Tensor:
    """(N, image tokens, width of the language model) of tiles (N, 3, side, side)."""
    at = "vision_encoder"
    x = functional.conv2d(
        tiles,
        w[f"{at}.patch_embedding.conv.weight"],
        w[f"{at}.patch_embedding.conv.bias"],
        stride=config.vit_patch_size,
    )
    x = x.flatten(2).transpose(1, 2) + w[f"{at}.patch_embedding.position_embedding"]
    for i in range(config.vit_n_blocks):
        block = f"{at}.blocks.{i}"
        y = _layer_norm(w, f"{block}.ln1", x, config.vit_ln_eps)
        q, k, v = (_heads(each, config.vit_n_heads) for each in _linear(w, f"{block}.attn.qkv_proj", y).chunk(3, -1))
        x = x + _linear(w, f"{block}.attn.out_proj", _flat(functional.scaled_dot_product_attention(q, k, v)))
        y = _layer_norm(w, f"{block}.ln2", x, config.vit_ln_eps)
        x = x + _linear(w, f"{block}.mlp.fc2", functional.gelu(_linear(w, f"{block}.mlp.fc1", y), approximate="tanh"))
    x = _layer_norm(w, f"{at}.layer_norm", x, config.vit_ln_eps)
    side, factor = config.patches_a_side, config.mp_pixel_shuffle_factor
    small = side // factor
    x = x.reshape(len(x), small, factor, small, factor, -1).permute(0, 1, 3, 2, 4, 5).reshape(len(x), small**2, -1)
    return functional.linear(x, w["MP.proj.weight"])


def logits(
    w: Mapping[str, Tensor], config: NanoVlmConfig, ids_BT: Tensor, tiles: Tensor | None, image_token_id: int
) -> Tensor:
    """(B, T, vocabulary). The tiles of all rows, in order, fill the places of the image token."""
    x = w["decoder.head.weight"][ids_BT]
    if tiles is not None:
        x = x.clone()
        x[ids_BT == image_token_id] = image_features(w, config, tiles).flatten(0, 1)
    angles = torch.arange(ids_BT.shape[1]).float()[:, None] * w["decoder.rotary_embd.inv_freq"][None]
    cos, sin = (each.repeat(1, 2) for each in (angles.cos(), angles.sin()))
    for i in range(config.lm_n_blocks):
        block = f"decoder.blocks.{i}"
        y = _rms_norm(w, f"{block}.norm1", x, config.lm_rms_eps)
        q = _turned(_heads(_linear(w, f"{block}.attn.q_proj", y), config.lm_n_heads), cos, sin)
        k = _turned(_heads(_linear(w, f"{block}.attn.k_proj", y), config.lm_n_kv_heads), cos, sin)
        v = _heads(_linear(w, f"{block}.attn.v_proj", y), config.lm_n_kv_heads)
        k, v = (each.repeat_interleave(config.lm_n_heads // config.lm_n_kv_heads, dim=1) for each in (k, v))
        seen = _flat(functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        x = x + _linear(w, f"{block}.attn.out_proj", seen)
        y = _rms_norm(w, f"{block}.norm2", x, config.lm_rms_eps)
        gated = functional.silu(_linear(w, f"{block}.mlp.gate_proj", y)) * _linear(w, f"{block}.mlp.up_proj", y)
        x = x + _linear(w, f"{block}.mlp.down_proj", gated)
    return functional.linear(_rms_norm(w, "decoder.norm", x, config.lm_rms_eps), w["decoder.head.weight"])


def _linear(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _layer_norm(w: Mapping[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def _rms_norm(w: Mapping[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w[f"{name}.weight"]


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _flat(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
