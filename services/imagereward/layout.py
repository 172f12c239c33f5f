"""The published ImageReward file, as transformers' BLIP parts name the same weights.

Source: github.com/THUDM/ImageReward (Xu et al., 2023), a ViT-L/16 and a BERT with cross-attention, trained from BLIP.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.kit.models.sources import SourceError

State = Mapping[str, torch.Tensor]
REMEDY = "the published file is ImageReward.pt of huggingface.co/THUDM/ImageReward"

_HEAD_WIDTH = 64  # of attention heads, which leave no trace in the shapes; both towers have it
_VISION, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
_RENAMED = (
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embedding.\1"),
    (r"norm\.(weight|bias)", r"post_layernorm.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(weight|bias)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"encoder.layers.\1.self_attn.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"encoder.layers.\1.self_attn.projection.\2"),
    (r"blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)", r"encoder.layers.\1.mlp.\2.\3"),
)
# Saved along and not used by the score: BLIP's projections for its contrastive loss, and constants.
_UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\..*|.*\.position_ids|blip\.text_encoder\.pooler\..*")


@dataclass(frozen=True)
class Parts:
    """The weights of the three parts by the keys of their classes, and the arguments of the first two's configurations."""

    vision: dict[str, torch.Tensor]
    text: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    vision_config: dict[str, Any]
    text_config: dict[str, Any]


def split(state: State, path: Path) -> Parts:
    """Sort a published file's tensors into the three parts.

    Raises:
        SourceError: names keys that belong to none of them, or a part that is missing.
    """
    vision, text, head, strange = {}, {}, {}, []
    for key, value in state.items():
        if _UNUSED.fullmatch(key):
            continue
        if key.startswith(_VISION) and (renamed := _vision_key(key.removeprefix(_VISION))) is not None:
            vision[renamed] = value
        elif key.startswith(_TEXT):
            text[key.removeprefix(_TEXT)] = value
        elif key.startswith(_HEAD):
            head[key.removeprefix(_HEAD)] = value
        else:
            strange.append(key)
    if strange:
        raise SourceError(f"{path}: {len(strange)} keys are not ImageReward's, such as {strange[0]!r}; {REMEDY}")
    try:
        return Parts(vision, text, head, _vision_config(vision), _text_config(text))
    except KeyError as error:
        raise SourceError(f"{path}: there is no {error} among its {len(state)} keys; {REMEDY}") from error


def _vision_key(key: str) -> str | None:
    for pattern, replacement in _RENAMED:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return None


def _vision_config(state: State) -> dict[str, Any]:
    width = state["embeddings.class_embedding"].shape[-1]
    patch = state["embeddings.patch_embedding.weight"].shape[-1]
    side = math.isqrt(state["embeddings.position_embedding"].shape[1] - 1) * patch
    return {
        "hidden_size": width,
        "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _layers(state, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": width // _HEAD_WIDTH,
        "image_size": side,
        "patch_size": patch,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,  # of the ViT that BLIP was trained with; transformers' default is 1e-5
    }


def _text_config(state: State) -> dict[str, Any]:
    vocabulary, width = state["embeddings.word_embeddings.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "encoder_hidden_size": state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        "intermediate_size": state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        "num_hidden_layers": _layers(state, r"encoder\.layer\.(\d+)\."),
        "num_attention_heads": width // _HEAD_WIDTH,
        "max_position_embeddings": state["embeddings.position_embeddings.weight"].shape[0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }


def _layers(state: State, pattern: str) -> int:
    return len({match[1] for key in state if (match := re.match(pattern, key))})
