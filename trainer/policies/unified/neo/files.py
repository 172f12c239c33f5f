"""Folders in NEO's layout: read strictly, and written back with every key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.config import ConfigError
from trainer.config.neo import GrowConfig, NeoConfig
from trainer.config.network import TOKENIZER_FILES
from trainer.policies.tokens.hub import local_folder
from trainer.policies.unified.neo.geometry import (
    SETTINGS,
    Fields,
    NeoGeometry,
    geometry_of,
    grown_geometry,
    read_fields,
    to_fields,
)
from trainer.policies.unified.neo.growth import SPREAD, grow, read_language
from trainer.policies.unified.neo.network import NeoNetwork
from trainer.policies.unified.neo.processor import NeoProcessor
from trainer.policies.unified.neo.stages import check_stage
from trainer.policies.unified.neo.tokenizer import END, IMAGE, IMAGE_START, load_tokenizer
from trainer.policies.weight_files import weight_files

WEIGHTS = "model.safetensors"
_EMBEDDING, _HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
_DTYPES = ("torch_dtype", "dtype")


def load(config: NeoConfig) -> tuple[NeoNetwork, NeoProcessor, Fields, str]:
    """The network in float32, its processor, the fields of its config.json, and a sentence on where they come from.

    Raises:
        ConfigError: files are missing, damaged, or of another model.
    """
    if config.grow is not None:
        return _grown(config, config.grow)
    assert config.pretrained is not None, "the configuration has checked it"
    folder = local_folder(config.pretrained, "policy.pretrained", fetch=False)
    fields, geometry = read_fields(folder), read_geometry(config, folder)
    tokenizer = load_tokenizer(folder, "policy.pretrained")
    if len(tokenizer) > geometry.vocab_size:
        raise ConfigError(
            f"policy.pretrained = {folder}: its tokenizer has {len(tokenizer)} tokens with those of images, but llm_config.vocab_size = "
            f"{geometry.vocab_size}; copy the model's own tokenizer into the folder"
        )
    _check_ids(fields, tokenizer, folder)
    network, filled = _read(folder, geometry, tokenizer, bool(fields.get("tie_word_embeddings")))
    about = f"Started from {config.pretrained}{', its head from its embedding' if filled else ''}."
    return network, NeoProcessor(geometry, tokenizer, config), fields, about


def read_geometry(config: NeoConfig, folder: Path) -> NeoGeometry:
    """The sizes of a folder's model, with `policy.extra_layers`. Raises ConfigError as `geometry_of` and `check_stage` do."""
    geometry = geometry_of(read_fields(folder), str(folder / SETTINGS))
    if config.extra_layers is not None:
        geometry = replace(geometry, extra_layers=config.extra_layers)
    check_stage(config, geometry)
    return geometry


def growing(grow: GrowConfig) -> tuple[NeoGeometry, Any, Path]:
    """The sizes that a grown model will have, its tokenizer, and the language model's folder. Raises ConfigError."""
    folder = local_folder(grow.language, "policy.grow.language", fetch=False)
    if grow.tokenizer is None:
        tokenizer = load_tokenizer(folder, "policy.grow.language")
    else:
        own = local_folder(grow.tokenizer, "policy.grow.tokenizer", TOKENIZER_FILES, fetch=False)
        tokenizer = load_tokenizer(own, "policy.grow.tokenizer")
    fields = read_fields(folder)
    # A published Qwen3 has rows to spare; a smaller one gets rows for the tokens of images.
    rows = max(int(fields.get("vocab_size") or 0), len(tokenizer))
    return grown_geometry(fields, grow, rows, str(folder / SETTINGS)), tokenizer, folder


def write_folder(
    network: NeoNetwork, processor: NeoProcessor, fields: Mapping[str, Any], folder: Path, dtype: torch.dtype
) -> None:
    """Write config.json with the fields that were read (the types of weights anew), every tensor, and the tokenizer."""
    name = str(dtype).removeprefix("torch.")
    written: Fields = {**fields, "torch_dtype": name}
    for section in ("llm_config", "vision_config"):
        written[section] = {**written[section], **dict.fromkeys((n for n in _DTYPES if n in written[section]), name)}
    if network.geometry.extra_layers is not None:
        written["extra_num_layers"] = network.geometry.extra_layers
    written["tie_word_embeddings"] = False  # head and embedding are two tensors in the file
    (folder / SETTINGS).write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    state = {key: tensor.to(dtype).contiguous().cpu() for key, tensor in network.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    processor.save_pretrained(folder)


def empty_network(geometry: NeoGeometry, tokenizer: Any) -> NeoNetwork:
    """The network without numbers, on the meta device."""
    with torch.device("meta"):
        return NeoNetwork(
            geometry,
            image_id=int(tokenizer.convert_tokens_to_ids(IMAGE)),
            end_id=int(tokenizer.convert_tokens_to_ids(END)),
        )


def _grown(config: NeoConfig, section: GrowConfig) -> tuple[NeoNetwork, NeoProcessor, Fields, str]:
    geometry, tokenizer, folder = growing(section)
    network = empty_network(geometry, tokenizer)
    network.to_empty(device="cpu")
    spread = read_fields(folder).get("initializer_range", SPREAD)
    if not isinstance(spread, int | float) or not 0 < spread < 1:
        raise ConfigError(f"{folder / SETTINGS}: initializer_range = {spread} is no standard deviation of weights")
    grow(network, read_language(folder), str(folder), float(spread))
    ids = {
        "img_start_token_id": int(tokenizer.convert_tokens_to_ids(IMAGE_START)),
        "img_context_token_id": int(tokenizer.convert_tokens_to_ids(IMAGE)),
        "eos_token_id": int(tokenizer.convert_tokens_to_ids(END)),
    }
    about = f"Grown from {section.language}, with {section.extra_layers} new layers before its own."
    return network, NeoProcessor(geometry, tokenizer, config), to_fields(geometry, ids, "float32"), about


def _read(folder: Path, geometry: NeoGeometry, tokenizer: Any, tied: bool) -> tuple[NeoNetwork, bool]:
    """The network, and whether its head was made from the embedding: a file of tied weights holds one of the two."""
    try:
        state = {name: tensor.float() for path in weight_files(folder) for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder}: its weights cannot be read: {error}; download it again") from error
    network = empty_network(geometry, tokenizer)
    filled = tied and _HEAD not in state and _EMBEDDING in state
    if filled:
        state[_HEAD] = state[_EMBEDDING].clone()
    _check_tensors(state, network.state_dict(), folder)
    network.load_state_dict(state, strict=True, assign=True)
    return network, filled


def _check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path) -> None:
    """Raises ConfigError where a tensor is missing, of no use, or of another shape."""
    lacking, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if lacking:
        raise ConfigError(f"{folder} lacks {len(lacking)} weights, first {lacking[0]}: save or download it again")
    if unknown:
        raise ConfigError(
            f"{folder} has {len(unknown)} weights that this network has no place for, first {unknown[0]}; a model that also draws "
            "(SenseNova-U1) is not read here"
        )
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise ConfigError(
                f"{folder}: {name} is {tuple(tensor.shape)}, but its config.json makes it {tuple(expected[name].shape)}; the two files are "
                "not of one model"
            )


def _check_ids(fields: Mapping[str, Any], tokenizer: Any, folder: Path) -> None:
    """Raises ConfigError where config.json and tokenizer name different ids for what stands for an image."""
    for field, token in (("img_start_token_id", IMAGE_START), ("img_context_token_id", IMAGE)):
        own = int(tokenizer.convert_tokens_to_ids(token))
        if fields.get(field) not in (None, own):
            raise ConfigError(
                f"policy.pretrained = {folder}: config.json has {field} = {fields[field]}, but the tokenizer's {token} is {own}; the two "
                "files are not of one model"
            )
