"""Folders of nanoVLM: read, written, and told from others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from trainer.config import ConfigError
from trainer.config.nanovlm import NanoVlmConfig
from trainer.config.network import TOKENIZER_FILES
from trainer.policies.tokens.hub import local_folder
from trainer.policies.tokens.nanovlm.layout import EMBEDDING, HEAD, to_idefics3, to_nanovlm
from trainer.policies.tokens.nanovlm.network import idefics3_config, load_state, new_network, place_whole_tiles
from trainer.policies.tokens.nanovlm.processor import NanoVlmProcessor, load_tokenizer

SETTINGS, WEIGHTS = "config.json", "model.safetensors"
_OWN_FIELDS = ("vit_hidden_dim", "lm_hidden_dim")
_TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
# Where an Idefics3 configuration that was a nanoVLM model keeps that model's settings.
_KEPT = "nanovlm"


def is_nanovlm(folder: Path) -> bool:
    """Whether a folder is in nanoVLM's layout: its config.json has nanoVLM's fields and names no model of transformers."""
    fields = _fields(folder / SETTINGS)
    return "model_type" not in fields and all(name in fields for name in _OWN_FIELDS)


def read_settings(path: Path) -> NanoVlmConfig:
    """nanoVLM's config.json. Fields that an older file lacks have nanoVLM's defaults.

    Raises:
        ConfigError: a field is unknown, or its value cannot be used here; it is named.
    """
    return settings_of(_fields(path), str(path))


def settings_of(fields: dict[str, Any], where: str) -> NanoVlmConfig:
    """Settings from fields. Raises ConfigError, as `read_settings`."""
    try:
        return NanoVlmConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(each) for each in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            said = (
                "is no field of nanoVLM's configuration that can be used here; remove it if the model does not need it"
            )
        raise ConfigError(f"{where}: {f'{name}: ' if name else ''}{said}") from error


def read_folder(folder: Path) -> tuple[Any, NanoVlmProcessor]:
    """The Idefics3 network of a nanoVLM folder, in float32, and its processor.

    The tokenizer is the folder's where it has one, which nanoVLM's own do not, else the one that `lm_tokenizer` names.

    Raises:
        ConfigError: a file is missing, damaged, or not of this model.
    """
    settings = read_settings(folder / SETTINGS)
    processor = NanoVlmProcessor(settings, load_tokenizer(_tokenizer_folder(folder, settings), settings))
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; download the folder again") from error
    state = to_idefics3(tensors, settings, str(path))
    network = empty_network(processor)
    load_state(network, {name: tensor.float() for name, tensor in state.items()})
    return network, processor


def empty_network(processor: NanoVlmProcessor) -> Any:
    """The network of a processor's settings, with random weights in float32. Its configuration keeps the settings."""
    ids = processor.tokenizer
    config = idefics3_config(processor.settings, processor.image_token_id, ids.pad_token_id, ids.eos_token_id)
    setattr(config, _KEPT, processor.settings.model_dump())
    return new_network(config, torch.float32)


def kept_settings(config: Any) -> NanoVlmConfig | None:
    """The nanoVLM settings that an Idefics3 configuration keeps; None where the model was none of nanoVLM's."""
    fields = getattr(config, _KEPT, None)
    return None if fields is None else settings_of(dict(fields), f"config.json, {_KEPT}")


def as_nanovlm(network: Any, folder: Path, settings: NanoVlmConfig) -> NanoVlmProcessor:
    """Let an Idefics3 network that was written from a nanoVLM model place patches and read images as that did."""
    place_whole_tiles(network)
    return NanoVlmProcessor(settings, load_tokenizer(folder, settings))


def write_folder(network: nn.Module, processor: NanoVlmProcessor, folder: Path, dtype: torch.dtype) -> None:
    """Write a folder that nanoVLM reads: all fields of its configuration, exactly its tensors, and the tokenizer beside."""
    settings = processor.settings
    fields = json.dumps(settings.model_dump(), indent=4, ensure_ascii=False)
    (folder / SETTINGS).write_text(f"{fields}\n", encoding="utf-8")
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() and "inv_freq" not in name else tensor
        for name, tensor in to_nanovlm(network.state_dict(), settings).items()
    }
    # As safetensors' save_model, which nanoVLM writes with, says that one tensor has two names.
    header = {"format": "pt"} | ({EMBEDDING: HEAD} if settings.lm_tie_weights else {})
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, folder / WEIGHTS, metadata=header)
    processor.save_pretrained(folder)


def _tokenizer_folder(folder: Path, settings: NanoVlmConfig) -> Path:
    if any((folder / name).is_file() for name in _TOKENIZER_NAMES):
        return folder
    try:
        return local_folder(settings.lm_tokenizer, "lm_tokenizer", TOKENIZER_FILES)
    except ConfigError as error:
        raise ConfigError(
            f"{folder} holds no tokenizer, as all folders that nanoVLM writes, and the one that its config.json names is not "
            f"here either: {error}. Or save a tokenizer's files into {folder}"
        ) from error


def _fields(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; give a model's folder") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} holds no fields; give a model's folder")
    return fields
