"""A new nanoVLM model: from random weights, or between a SigLIP vision encoder and a Llama-like language model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.config import ConfigError
from trainer.config.nanovlm import InitializeConfig, NanoVlmConfig
from trainer.config.network import TOKENIZER_FILES
from trainer.policies.tokens.hub import local_folder
from trainer.policies.tokens.nanovlm.files import empty_network, settings_of
from trainer.policies.tokens.nanovlm.processor import NanoVlmProcessor, load_tokenizer
from trainer.policies.weight_files import weight_files

_FIELD = "policy.initialize.vlm_config"
_ACTIVATION = "gelu_pytorch_tanh"
_EMBEDDING, _HEAD = "model.text_model.embed_tokens.weight", "lm_head.weight"


def initialize(section: InitializeConfig) -> tuple[Any, NanoVlmProcessor]:
    """The network, in float32, and its processor. Random weights are drawn from torch's global generator.

    Raises:
        ConfigError: a backbone or the tokenizer is missing or unfit, or a size that was given is another than the backbone's.
    """
    settings = chosen_settings(section)
    state: dict[str, Tensor] = {}
    if section.load_backbone:
        vision, language = _backbones(settings)
        state = _vision_weights(vision) | _language_weights(language)
    tokenizer = local_folder(settings.lm_tokenizer, f"{_FIELD}.lm_tokenizer", TOKENIZER_FILES)
    processor = NanoVlmProcessor(settings, load_tokenizer(tokenizer, settings))
    network = empty_network(processor)
    if state:
        _copy_backbones(network, state, settings)
    return network, processor


def chosen_settings(section: InitializeConfig, *, fetch: bool = True) -> NanoVlmConfig:
    """The settings with the sizes of the backbones, where these are loaded.

    Args:
        fetch: whether a backbone may be fetched from the hub.

    Raises:
        ConfigError: as `initialize`.
    """
    settings = section.vlm_config
    if not section.load_backbone:
        return settings
    vision, language = _backbones(settings, fetch=fetch)
    return _with_sizes(settings, _vision_sizes(vision) | _language_sizes(language))


def _backbones(settings: NanoVlmConfig, *, fetch: bool = True) -> tuple[Path, Path]:
    return (
        local_folder(settings.vit_model_type, f"{_FIELD}.vit_model_type", fetch=fetch),
        local_folder(settings.lm_model_type, f"{_FIELD}.lm_model_type", fetch=fetch),
    )


def _with_sizes(settings: NanoVlmConfig, sizes: Mapping[str, Any]) -> NanoVlmConfig:
    """The settings with the backbones' sizes, as nanoVLM takes them over; one that was given and differs is refused."""
    for name, size in sizes.items():
        given = getattr(settings, name)
        if name in settings.model_fields_set and given != size:
            raise ConfigError(
                f"{_FIELD}.{name} = {given}, but the backbone has {size}: leave it out, give another backbone, or set "
                "policy.initialize.load_backbone to false"
            )
    return settings_of(settings.model_dump() | dict(sizes), _FIELD)


def _vision_sizes(folder: Path) -> dict[str, Any]:
    from transformers import SiglipVisionConfig

    config = _config(SiglipVisionConfig, folder, "vit_model_type")
    if config.hidden_act != _ACTIVATION:
        raise ConfigError(
            f"{_FIELD}.vit_model_type: {folder} computes with {config.hidden_act}, nanoVLM with {_ACTIVATION}"
        )
    return {
        "vit_hidden_dim": config.hidden_size,
        "vit_inter_dim": config.intermediate_size,
        "vit_patch_size": config.patch_size,
        "vit_img_size": config.image_size,
        "vit_n_heads": config.num_attention_heads,
        "vit_n_blocks": config.num_hidden_layers,
        "vit_ln_eps": config.layer_norm_eps,
        "vit_dropout": config.attention_dropout,
    }


def _language_sizes(folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    config = _config(AutoConfig, folder, "lm_model_type")
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type != "llama" or config.attention_bias or config.mlp_bias or rope.get("rope_type") != "default":
        raise ConfigError(
            f"{_FIELD}.lm_model_type: {folder} is of type {config.model_type}; a plain Llama without biases and scaled positions "
            "is needed, such as SmolLM2"
        )
    return {
        "lm_hidden_dim": config.hidden_size,
        "lm_inter_dim": config.intermediate_size,
        "lm_rms_eps": config.rms_norm_eps,
        "lm_re_base": rope["rope_theta"],
        "lm_max_position_embeddings": config.max_position_embeddings,
        "lm_n_heads": config.num_attention_heads,
        "lm_n_kv_heads": config.num_key_value_heads,
        "lm_n_blocks": config.num_hidden_layers,
        "lm_dropout": config.attention_dropout,
    }


def _config(kind: Any, folder: Path, field: str) -> Any:
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{_FIELD}.{field}: {folder} has no configuration that can be read: {error}") from error


def _vision_weights(folder: Path) -> dict[str, Tensor]:
    """The encoder by Idefics3's names, which are SigLIP's; a text encoder and the pooling head are left behind."""
    found, start = _tensors(folder), "vision_model."
    inner = {name.removeprefix(start): tensor for name, tensor in found.items() if name.startswith(start)} or found
    return {f"model.{start}{name}": tensor for name, tensor in inner.items() if not name.startswith("head.")}


def _language_weights(folder: Path) -> dict[str, Tensor]:
    found = _tensors(folder)
    state = {
        f"model.text_model.{name.removeprefix('model.')}": tensor
        for name, tensor in found.items()
        if name.startswith("model.")
    }
    state[_HEAD] = found.get(_HEAD, state.get(_EMBEDDING, torch.empty(0)))
    return state


def _tensors(folder: Path) -> dict[str, Tensor]:
    try:
        return {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder}: its weights cannot be read: {error}; download it again") from error


@torch.no_grad()
def _copy_backbones(network: Any, state: dict[str, Tensor], settings: NanoVlmConfig) -> None:
    """Copy every tensor but the projector's. Rows of the embedding beyond the backbone's stay as they were drawn."""
    own = network.state_dict()
    projector = {name for name in own if name.startswith("model.connector.")}
    if missing := sorted(own.keys() - state.keys() - projector):
        raise ConfigError(
            f"{_FIELD}: the backbones {settings.vit_model_type} and {settings.lm_model_type} lack {len(missing)} tensors, first "
            f"{missing[0]}: download them again"
        )
    for name, tensor in own.items():
        if name in projector or (name == _HEAD and settings.lm_tie_weights):
            continue
        given = state[name]
        rows = len(given) if name in (_EMBEDDING, _HEAD) else len(tensor)
        if rows > len(tensor) or given.shape != tensor[:rows].shape:
            raise ConfigError(
                f"{_FIELD}: the backbone's {name} has shape {tuple(given.shape)}, the model's has {tuple(tensor.shape)}; for an "
                f"embedding set lm_vocab_size = {settings.lm_vocab_size} to at least the backbone's rows"
            )
        tensor[:rows].copy_(given)
