"""The sizes of a native model, and the two ways they are written: NEO's config.json, and that of the Qwen3 it grows from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.config import ConfigError
from trainer.config.neo import GrowConfig

MODEL_TYPE = "neo_chat"
SETTINGS = "config.json"

Fields = dict[str, Any]

# What a section may say that this network cannot compute: the field, and the values that mean the usual.
_USUAL: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "hidden_act": ("silu", None),
    "use_sliding_window": (False, None),
    "rope_scaling": (None,),
    "attention_dropout": (0, None),
}


@dataclass(frozen=True)
class NeoGeometry:
    """Sizes of the network.

    Attributes:
        hidden_size: width d of the language model.
        intermediate_size: width of its MLPs.
        num_layers: layers, new ones and the language model's own.
        num_heads, num_kv_heads: heads of queries, and of keys and values.
        head_dim: D: a head has D numbers along time, D / 2 along rows and D / 2 along columns.
        vocab_size: rows of the embedding and of the head.
        rms_norm_eps: of all norms.
        rope_theta: base of the rotary frequencies along time.
        rope_theta_hw: of those along rows and columns.
        vision_hidden_size: width of the patch embedding.
        patch_size: side of a patch, in pixels.
        merge: patches a side of a token.
        rope_theta_vision: base of the rotary frequencies of patches.
        extra_layers: how many of the layers are new, the first ones (the pre-buffer); None where nobody has said.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_theta_hw: float
    vision_hidden_size: int
    patch_size: int
    merge: int
    rope_theta_vision: float
    extra_layers: int | None = None

    @property
    def stride(self) -> int:
        """Side of a token's square, in pixels: both sides of an image are multiples of it."""
        return self.patch_size * self.merge


def read_fields(folder: Path) -> Fields:
    """The fields of a folder's config.json. Raises ConfigError where it cannot be read."""
    path = folder / SETTINGS
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; give a model's folder") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} holds no fields; give a model's folder")
    return fields


def geometry_of(fields: Mapping[str, Any], where: str) -> NeoGeometry:
    """The sizes that NEO's config.json gives.

    Args:
        where: the file, for messages.

    Raises:
        ConfigError: it is of another model, lacks a size, or asks for what this network does not compute.
    """
    if fields.get("model_type") != MODEL_TYPE:
        raise ConfigError(
            f"{where}: model_type = {fields.get('model_type')}, but policy.pretrained of policy.type neo is a folder with {MODEL_TYPE}; to "
            "start from a Qwen3 language model, give policy.grow.language"
        )
    language, vision = _section(fields, "llm_config", where), _section(fields, "vision_config", where)
    geometry = _language_sizes(language, f"{where}: llm_config")
    _refuse_unusual(language, f"{where}: llm_config")
    channels = vision.get("num_channels", 3)
    if channels != 3:
        raise ConfigError(f"{where}: vision_config.num_channels = {channels}; images here have 3")
    inner = _whole(vision, "llm_hidden_size", f"{where}: vision_config")
    if inner != geometry.hidden_size:
        raise ConfigError(
            f"{where}: vision_config.llm_hidden_size = {inner}, but llm_config.hidden_size = {geometry.hidden_size}; they are one "
            "width: correct the file"
        )
    extra = fields.get("extra_num_layers")
    return replace(
        geometry,
        rope_theta_hw=float(language.get("rope_theta_hw", 10000.0)),
        vision_hidden_size=_whole(vision, "hidden_size", f"{where}: vision_config"),
        patch_size=_whole(vision, "patch_size", f"{where}: vision_config"),
        merge=merge_of(float(vision.get("downsample_ratio", fields.get("downsample_ratio", 0.5))), where),
        rope_theta_vision=float(vision.get("rope_theta_vision", 10000.0)),
        extra_layers=None if extra is None else int(extra),
    )


def grown_geometry(fields: Mapping[str, Any], grow: GrowConfig, vocab_size: int, where: str) -> NeoGeometry:
    """The sizes of the network that grows from a Qwen3 with this config.json.

    Args:
        vocab_size: rows of the grown embedding.

    Raises:
        ConfigError: it is no Qwen3, or one that this network does not compute.
    """
    if fields.get("model_type") != "qwen3":
        raise ConfigError(
            f"{where}: model_type = {fields.get('model_type')}; policy.grow.language is a Qwen3 folder (model_type qwen3), such as "
            "Qwen3-1.7B-Base"
        )
    _refuse_unusual(fields, where)
    base = _language_sizes(fields, where)
    return replace(
        base,
        vocab_size=vocab_size,
        num_layers=base.num_layers + grow.extra_layers,
        rope_theta_hw=grow.rope_theta_hw,
        vision_hidden_size=grow.vision_hidden_size,
        patch_size=grow.patch_size,
        merge=merge_of(grow.downsample_ratio, "policy.grow"),
        rope_theta_vision=grow.rope_theta_vision,
        extra_layers=grow.extra_layers,
    )


def to_fields(geometry: NeoGeometry, ids: Mapping[str, int], dtype: str) -> Fields:
    """NEO's config.json of a network.

    Args:
        ids: `img_start_token_id`, `img_context_token_id`, `eos_token_id`.
        dtype: of the weights, as `bfloat16`.
    """
    ratio = 1 / geometry.merge
    return {
        "architectures": ["NEOChatModel"],
        "model_type": MODEL_TYPE,
        "downsample_ratio": ratio,
        "extra_num_layers": geometry.extra_layers,
        **ids,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "llm_config": {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "head_dim": geometry.head_dim,
            "hidden_act": "silu",
            "hidden_size": geometry.hidden_size,
            "intermediate_size": geometry.intermediate_size,
            "num_attention_heads": geometry.num_heads,
            "num_hidden_layers": geometry.num_layers,
            "num_key_value_heads": geometry.num_kv_heads,
            "rms_norm_eps": geometry.rms_norm_eps,
            "rope_scaling": None,
            "rope_theta": geometry.rope_theta,
            "rope_theta_hw": geometry.rope_theta_hw,
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
            "use_sliding_window": False,
            "vocab_size": geometry.vocab_size,
        },
        "vision_config": {
            "architectures": ["NEOVisionModel"],
            "model_type": "neo_vision",
            "downsample_ratio": ratio,
            "hidden_size": geometry.vision_hidden_size,
            "llm_hidden_size": geometry.hidden_size,
            "num_channels": 3,
            "patch_size": geometry.patch_size,
            "rope_theta_vision": geometry.rope_theta_vision,
            "torch_dtype": dtype,
        },
    }


def merge_of(ratio: float, where: str) -> int:
    """Patches a side of a token, from the ratio of tokens to patches. Raises ConfigError where it is no whole number."""
    merge = round(1 / ratio)
    if merge < 1 or abs(merge * ratio - 1) > 1e-6:
        raise ConfigError(f"{where}: downsample_ratio = {ratio:g} is not 1 / a whole number, such as 0.5")
    return merge


def _language_sizes(section: Mapping[str, Any], where: str) -> NeoGeometry:
    """The language model's sizes; those of images are filled in by the caller."""
    hidden, heads = _whole(section, "hidden_size", where), _whole(section, "num_attention_heads", where)
    geometry = NeoGeometry(
        hidden_size=hidden,
        intermediate_size=_whole(section, "intermediate_size", where),
        num_layers=_whole(section, "num_hidden_layers", where),
        num_heads=heads,
        num_kv_heads=_whole(section, "num_key_value_heads", where),
        head_dim=int(section.get("head_dim") or hidden // heads),
        vocab_size=_whole(section, "vocab_size", where),
        rms_norm_eps=float(section.get("rms_norm_eps", 1e-6)),
        rope_theta=_rope_theta(section, where),
        rope_theta_hw=0.0,
        vision_hidden_size=0,
        patch_size=0,
        merge=0,
        rope_theta_vision=0.0,
    )
    if geometry.head_dim % 4:
        raise ConfigError(
            f"{where}: head_dim = {geometry.head_dim} is no multiple of 4, so it has no halves for rows and columns"
        )
    return geometry


def _rope_theta(section: Mapping[str, Any], where: str) -> float:
    """The base along time: newer files keep it among `rope_parameters`."""
    parameters = section.get("rope_parameters") or {}
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        raise ConfigError(f"{where}: rope_type = {kind} stretches positions, which this network does not compute")
    return float(parameters.get("rope_theta", section.get("rope_theta", 1_000_000.0)))


def _refuse_unusual(section: Mapping[str, Any], where: str) -> None:
    for name, usual in _USUAL.items():
        if section.get(name) not in usual:
            raise ConfigError(f"{where}: {name} = {section[name]}, which this network does not compute")


def _section(fields: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    section = fields.get(name)
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where} has no {name}, without which the network cannot be built; download it again")
    return section


def _whole(section: Mapping[str, Any], name: str, where: str) -> int:
    value = section.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{where}: {name} = {value} is no size; download the file again")
    return value
