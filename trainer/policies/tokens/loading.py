"""Where the networks of a policy that writes come from: transformers' folders, nanoVLM's, and nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from trainer.config import ConfigError, VlmConfig
from trainer.policies.tokens.hub import local_folder
from trainer.policies.tokens.nanovlm import files as nanovlm
from trainer.policies.tokens.nanovlm.fresh import initialize
from trainer.policies.tokens.processors import load_processor

_ADAPTER = "adapter_config.json"


def load(config: VlmConfig) -> tuple[Any, Any, str]:
    """The network in float32, its processor, and a sentence on where they come from.

    Raises:
        ConfigError: files are missing, damaged, or of no model that reads images and writes texts.
    """
    if config.initialize is not None:
        network, processor = initialize(config.initialize)
        chosen = processor.settings
        backbones = f"between {chosen.vit_model_type} and {chosen.lm_model_type}"
        how = backbones if config.initialize.load_backbone else "with random weights"
        return network, processor, f"A fresh nanoVLM model, {how}."
    assert config.pretrained is not None, "the configuration has checked it"
    folder, about = local_folder(config.pretrained, "policy.pretrained"), f"Started from {config.pretrained}."
    _refuse_adapters(folder)
    if nanovlm.is_nanovlm(folder):
        return *nanovlm.read_folder(folder), about
    return *from_transformers(folder), about


def from_transformers(folder: Path) -> tuple[Any, Any]:
    """Network and processor of a folder in transformers' layout. Raises ConfigError as `load`."""
    import transformers

    loader: Any = transformers.AutoModelForImageTextToText
    place = f"policy.pretrained = {folder}"
    try:
        network, found = loader.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with both shapes
        )
    except SafetensorError as error:
        raise ConfigError(
            f"{place} cannot be loaded: its weights are damaged, or a pointer in their place ({error}); download the folder again"
        ) from error
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{place} cannot be loaded: {error}{_remedy(str(error))}") from error
    if missing := sorted(found["missing_keys"]):  # would stay random
        raise ConfigError(
            f"{place} lacks {len(missing)} weights, first {missing[0]}: save or download the folder again"
        )
    if mismatched := sorted(found["mismatched_keys"]):
        name, held, wanted = mismatched[0]
        raise ConfigError(
            f"{place}: {name} has shape {tuple(held)}, by config.json it has {tuple(wanted)}; the two files do not belong together"
        )
    if (settings := nanovlm.kept_settings(network.config)) is not None:
        return network, nanovlm.as_nanovlm(network, folder, settings)
    return network, load_processor(folder, network.config.model_type)


def _remedy(said: str) -> str:
    """What to do, where transformers' own words do not say it."""
    if "Unrecognized configuration class" in said:
        return " It reads no images: give a vision-language model"
    return ""


def _refuse_adapters(folder: Path) -> None:
    """Raises ConfigError for a folder that holds adapters and no model."""
    path = folder / _ADAPTER
    if not path.is_file() or (folder / "config.json").is_file():
        return
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path") or "their base"
    raise ConfigError(
        f"policy.pretrained = {folder} holds adapters alone: set policy.pretrained to {base} and policy.lora.path to {folder}"
    )
