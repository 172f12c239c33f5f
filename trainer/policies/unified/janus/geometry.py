"""DeepSeek's config.json of a Janus model, and transformers' configuration of the same network.

DeepSeek's file names the vision tower and the decoder of image tokens, and its code knows their sizes. A model of other sizes,
such as a small one, has them as fields beside the name; DeepSeek's own code passes over these, so it cannot build it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import ConfigError

MODEL_TYPE = "multi_modality"
_GENERATIVE = "gen_vision_config"  # DeepSeek-VL has the same model_type and draws nothing

Fields = dict[str, Any]

# Sizes by name, as janus/models/siglip_vit.py of DeepSeek's repository has them, with no pooling.
_TOWERS: Mapping[str, Mapping[str, float]] = {
    "siglip_large_patch16_384": {"patch_size": 16, "width": 1024, "layers": 24, "heads": 16, "mlp_ratio": 4.0},
    "siglip_so400m_patch14_384": {"patch_size": 14, "width": 1152, "layers": 27, "heads": 16, "mlp_ratio": 3.7362},
    "siglip_so400m_patch14_224": {"patch_size": 14, "width": 1152, "layers": 27, "heads": 16, "mlp_ratio": 3.7362},
}
_DEFAULT_TOWER = "siglip_large_patch16_384"
# As janus/models/vq_model.py, which takes none of the fields in config.json.
_DECODERS: Mapping[str, Mapping[str, Any]] = {
    "VQ-16": {
        "base_channels": 128,
        "channel_multiplier": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "latent_channels": 256,
    },
}
_DEFAULT_DECODER = "VQ-16"
# Of a language model's section, what is its own and not how its file was written.
_NOT_THE_NETWORKS = ("model_type", "torch_dtype", "dtype", "architectures", "transformers_version")


def is_deepseek(folder: Path) -> bool:
    """Whether a folder is in DeepSeek's layout, by its config.json."""
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # what reads the folder otherwise says what is wrong with it
    return isinstance(fields, dict) and fields.get("model_type") == MODEL_TYPE


def read_fields(folder: Path) -> Fields:
    """DeepSeek's config.json. Raises ConfigError where it cannot be read, or is of a model that draws nothing."""
    path = folder / "config.json"
    try:
        fields: Fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; download the folder again") from error
    if _GENERATIVE not in fields:
        raise ConfigError(
            f"{path} has no {_GENERATIVE}: a model of this type without one (DeepSeek-VL) draws no images; give a folder of "
            "Janus or Janus-Pro"
        )
    return fields


@dataclass(frozen=True)
class TokenIds:
    """Ids that DeepSeek's config.json does not hold; its tokenizer does."""

    pad: int
    begin: int
    end: int
    image: int


def to_janus(fields: Fields, ids: TokenIds, where: str) -> Any:
    """transformers' `JanusConfig` of the network that DeepSeek's fields describe.

    Args:
        where: config.json, for messages.

    Raises:
        ConfigError: a part is of a kind that Janus does not have, or its sizes do not fit those of its neighbours.
    """
    from transformers import JanusConfig

    head, aligner = _params(fields, "gen_head_config", where), _params(fields, "gen_aligner_config", where)
    if head["image_token_embed"] != aligner["n_embed"]:
        raise ConfigError(
            f"{where}: gen_head_config.params.image_token_embed = {head['image_token_embed']} and "
            f"gen_aligner_config.params.n_embed = {aligner['n_embed']} differ, which transformers' Janus cannot hold"
        )
    return JanusConfig(
        text_config=_text_config(fields, ids, where),
        vision_config=_vision_config(fields, where),
        vq_config=_vq_config(fields, where),
        image_token_id=ids.image,
        # The class would tie head and embedding by itself, and so put the embedding in the head's place.
        tie_word_embeddings=False,
    )


def to_fields(config: Any, dtype: str) -> Fields:
    """DeepSeek's fields of a network of transformers.

    Args:
        dtype: of the weights, as `bfloat16`.
    """
    vision, vq, text = config.vision_config, config.vq_config, config.text_config
    tower = {
        "patch_size": vision.patch_size,
        "width": vision.hidden_size,
        "layers": vision.num_hidden_layers,
        "heads": vision.num_attention_heads,
        "mlp_ratio": float(vision.mlp_ratio),
    }
    decoder = {
        "base_channels": vq.base_channels,
        "channel_multiplier": list(vq.channel_multiplier),
        "num_res_blocks": vq.num_res_blocks,
        "latent_channels": vq.latent_channels,
    }
    name = next((each for each, sizes in _TOWERS.items() if dict(sizes) == tower), None)
    coder = next((each for each, sizes in _DECODERS.items() if dict(sizes) == decoder), None)
    rope = text.rope_parameters or {}
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["MultiModalityCausalLM"],
        "torch_dtype": dtype,
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {
                "image_size": vision.image_size,
                "model_name": name or _DEFAULT_TOWER,
                "select_feature": "same",
                "select_layer": -1,
                **({} if name else tower),
            },
        },
        "aligner_config": _projector("aligner", vision.hidden_size, vision.projection_dim, vision.depth),
        "gen_vision_config": {
            "cls": coder or _DEFAULT_DECODER,
            "model_type": "gen_vision",
            "params": {
                "image_token_size": vq.num_embeddings,
                "n_embed": vq.embed_dim,
                **({} if coder else decoder),
            },
        },
        "gen_aligner_config": _projector("gen_aligner", vq.embed_dim, vq.projection_dim, vq.num_hidden_layers),
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {
                "image_token_embed": vq.projection_dim,
                "image_token_size": vq.num_embeddings,
                "n_embed": vq.image_token_embed_dim,
            },
        },
        "language_config": {
            "model_type": "llama",
            "torch_dtype": dtype,
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": rope.get("rope_theta", 10000.0),
        },
    }


def has_published_sizes(config: Any) -> bool:
    """Whether DeepSeek's own code knows the sizes of the vision tower and of the decoder by a name."""
    fields = to_fields(config, "bfloat16")
    return (
        "width" not in fields["vision_config"]["params"]
        and "base_channels" not in fields["gen_vision_config"]["params"]
    )


def _text_config(fields: Fields, ids: TokenIds, where: str) -> Fields:
    """The language model's section: a Llama, with Llama's own defaults for what the file leaves out."""
    section = dict(fields.get("language_config") or {})
    if section.get("model_type", "llama") != "llama":
        raise ConfigError(f"{where}: language_config.model_type = {section['model_type']}; Janus has a llama")
    for name in _NOT_THE_NETWORKS:
        section.pop(name, None)
    numbers = {"pad_token_id": ids.pad, "bos_token_id": ids.begin, "eos_token_id": ids.end}
    return {"model_type": "llama", **section, **numbers, "tie_word_embeddings": False}


def _vision_config(fields: Fields, where: str) -> Fields:
    params, aligner = _params(fields, "vision_config", where), _params(fields, "aligner_config", where)
    name = params.get("model_name", _DEFAULT_TOWER)
    if name not in _TOWERS:
        raise ConfigError(
            f"{where}: vision_config.params.model_name = {name} is none of DeepSeek's towers ({', '.join(_TOWERS)})"
        )
    if params.get("select_layer", -1) != -1:
        raise ConfigError(
            f"{where}: vision_config.params.select_layer = {params['select_layer']}; here the last layer's features are read (-1)"
        )
    sizes = {**_TOWERS[name], **{key: params[key] for key in _TOWERS[name] if key in params}}
    return {
        "image_size": params["image_size"],
        "patch_size": int(sizes["patch_size"]),
        "hidden_size": int(sizes["width"]),
        "num_hidden_layers": int(sizes["layers"]),
        "num_attention_heads": int(sizes["heads"]),
        "mlp_ratio": float(sizes["mlp_ratio"]),
        "projection_dim": aligner["n_embed"],
        "depth": aligner.get("depth", 1),
        "num_image_tokens": (params["image_size"] // int(sizes["patch_size"])) ** 2,
    }


def _vq_config(fields: Fields, where: str) -> Fields:
    params, aligner = _params(fields, _GENERATIVE, where), _params(fields, "gen_aligner_config", where)
    name = fields[_GENERATIVE].get("cls", _DEFAULT_DECODER)
    if name not in _DECODERS:
        raise ConfigError(f"{where}: gen_vision_config.cls = {name} is none of DeepSeek's ({', '.join(_DECODERS)})")
    sizes = {**_DECODERS[name], **{key: params[key] for key in _DECODERS[name] if key in params}}
    return {
        "num_embeddings": params["image_token_size"],
        "embed_dim": params["n_embed"],
        "projection_dim": aligner["n_embed"],
        "num_hidden_layers": aligner.get("depth", 1),
        "image_token_embed_dim": _params(fields, "gen_head_config", where)["n_embed"],
        **sizes,
    }


def _params(fields: Fields, section: str, where: str) -> Fields:
    """The sizes of a part, those that Janus needs among them."""
    params = (fields.get(section) or {}).get("params")
    wanted = {
        "vision_config": ("image_size",),
        _GENERATIVE: ("image_token_size", "n_embed"),
        "gen_head_config": ("image_token_embed", "n_embed"),
    }.get(section, ("n_embed",))
    lacking = [name for name in wanted if not isinstance(params, dict) or name not in params]
    if lacking:
        raise ConfigError(
            f"{where} has no {section}.params.{lacking[0]}, without which the network cannot be built; download it again"
        )
    assert isinstance(params, dict)
    kind = params.get("projector_type", "mlp_gelu")
    if kind != "mlp_gelu":
        raise ConfigError(f"{where}: {section}.params.projector_type = {kind}; Janus has mlp_gelu")
    return params


def _projector(name: str, inputs: int, width: int, depth: int) -> Fields:
    params = {"depth": depth, "input_dim": inputs, "n_embed": width, "projector_type": "mlp_gelu"}
    return {"cls": "MlpProjector", "model_type": name, "params": params}
