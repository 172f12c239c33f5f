"""How large a Mixture-of-Transformers is: BAGEL's two JSON files, read with the corrections that its own programs make."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import ConfigError
from trainer.config.mot import MotSizes

Fields = dict[str, Any]
LLM_CONFIG, VIT_CONFIG = "llm_config.json", "vit_config.json"
TIME_WIDTH = 256  # sinusoids of a noise level
COLOURS = 3
PATCH = 8  # of a fresh small model, for seeing and for drawing
CODEC_CHANNELS = 32
# SigLIP's file describes one layer more than is run: BAGEL reads the features before the last.
_UNUSED_LAYERS = 1


@dataclass(frozen=True)
class LanguageGeometry:
    """Of the decoder, of whose layers each has two experts; the names are Qwen2's."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VisionGeometry:
    """Of the vision encoder; the names are SigLIP's, but `num_hidden_layers` are those that are run.

    Attributes:
        image_size: the longest side in pixels that positions are made for.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    patch_size: int
    image_size: int
    layer_norm_eps: float = 1e-6

    @property
    def side(self) -> int:
        """Patches a side that positions are made for."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class Geometry:
    """Of all that is trained: everything but the codec.

    Attributes:
        token_channels: numbers of a latent token: those of the codec times the square of the latent patch.
        max_latent_size: latent tokens a side that positions are made for.
        interpolated: images of any size take the whole of both tables of positions.
    """

    language: LanguageGeometry
    vision: VisionGeometry
    token_channels: int
    max_latent_size: int
    interpolated: bool = False


def read_geometry(folder: Path, token_channels: int, max_latent_size: int) -> Geometry:
    """The sizes of the folder's network. Raises ConfigError where a file is missing or describes another kind of network."""
    llm, vit = read_fields(folder / LLM_CONFIG), read_fields(folder / VIT_CONFIG)
    return Geometry(
        _language(llm, folder / LLM_CONFIG), _vision(vit, folder / VIT_CONFIG), token_channels, max_latent_size
    )


def fresh_geometry(sizes: MotSizes, vocab_size: int, max_latent_size: int) -> Geometry:
    """Of a fresh small model."""
    language = LanguageGeometry(
        sizes.hidden_size,
        sizes.num_layers,
        sizes.num_heads,
        sizes.num_kv_heads,
        sizes.intermediate_size,
        vocab_size,
    )
    vision = VisionGeometry(
        sizes.hidden_size, sizes.vision_layers, sizes.num_heads, sizes.intermediate_size, PATCH, sizes.image_size
    )
    return Geometry(language, vision, CODEC_CHANNELS, max_latent_size)


def read_fields(path: Path) -> Fields:
    """A JSON file with fields. Raises ConfigError where it cannot be read as such."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; download the folder again") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} holds no fields; download the folder again")
    return fields


# What these programs know to compute; a file that says otherwise is of another network.
_KNOWN_LLM = {"model_type": "qwen2", "hidden_act": "silu", "rope_scaling": None, "use_sliding_window": False}
_KNOWN_VIT = {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh", "num_channels": COLOURS}


def _check_known(fields: Mapping[str, Any], known: Mapping[str, Any], path: Path) -> None:
    for name, value in known.items():
        if fields.get(name, value) != value:
            raise ConfigError(f"{path}: {name} = {fields[name]!r}; a network in BAGEL's layout has {value!r}")


def _language(fields: Mapping[str, Any], path: Path) -> LanguageGeometry:
    _check_known(fields, _KNOWN_LLM, path)
    return LanguageGeometry(
        hidden_size=_number(fields, "hidden_size", path),
        num_hidden_layers=_number(fields, "num_hidden_layers", path),
        num_attention_heads=_number(fields, "num_attention_heads", path),
        num_key_value_heads=_number(fields, "num_key_value_heads", path),
        intermediate_size=_number(fields, "intermediate_size", path),
        vocab_size=_number(fields, "vocab_size", path),
        rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
        rope_theta=float(fields.get("rope_theta", 1e6)),
    )


def _vision(fields: Mapping[str, Any], path: Path) -> VisionGeometry:
    _check_known(fields, _KNOWN_VIT, path)
    names = ("hidden_size", "num_attention_heads", "intermediate_size", "patch_size", "image_size")
    width, heads, mlp, patch, image = (_number(fields, name, path) for name in names)
    layers = _number(fields, "num_hidden_layers", path) - _UNUSED_LAYERS
    return VisionGeometry(width, layers, heads, mlp, patch, image, float(fields.get("layer_norm_eps", 1e-6)))


def _number(fields: Mapping[str, Any], name: str, path: Path) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{path}: {name} = {value!r} is no whole number above 0; download the folder again")
    return value


def llm_fields(geometry: LanguageGeometry) -> Fields:
    """llm_config.json of a network that no file describes yet."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": geometry.hidden_size,
        "num_hidden_layers": geometry.num_hidden_layers,
        "num_attention_heads": geometry.num_attention_heads,
        "num_key_value_heads": geometry.num_key_value_heads,
        "intermediate_size": geometry.intermediate_size,
        "vocab_size": geometry.vocab_size,
        "rms_norm_eps": geometry.rms_norm_eps,
        "rope_theta": geometry.rope_theta,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "qk_norm": True,
        "tie_word_embeddings": False,
        "layer_module": "Qwen2MoTDecoderLayer",
    }


def vit_fields(geometry: VisionGeometry) -> Fields:
    """vit_config.json of a network that no file describes yet."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": geometry.hidden_size,
        "num_hidden_layers": geometry.num_hidden_layers + _UNUSED_LAYERS,
        "num_attention_heads": geometry.num_attention_heads,
        "intermediate_size": geometry.intermediate_size,
        "patch_size": geometry.patch_size,
        "image_size": geometry.image_size,
        "num_channels": COLOURS,
        "layer_norm_eps": geometry.layer_norm_eps,
        "hidden_act": "gelu_pytorch_tanh",
    }
