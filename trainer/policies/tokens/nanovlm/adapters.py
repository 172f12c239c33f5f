"""Adapters of a nanoVLM model by its own names and by Idefics3's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from trainer.config import ConfigError
from trainer.config.nanovlm import NanoVlmConfig
from trainer.policies.lora_files import Adapter
from trainer.policies.tokens.nanovlm.layout import fused, modules

_NO_LINEAR = ("norm", "ln1", "ln2", "norm1", "norm2", "layer_norm", "token_embedding", "head", "conv")


def layers_of(settings: NanoVlmConfig, end: str) -> list[str]:
    """Idefics3's names of the linear layers, but the head, whose nanoVLM names end in `end`."""
    found: list[str] = []
    for ours, theirs in _linear(settings).items():
        if ours == end or ours.endswith(f".{end}"):
            found += theirs
    return found


def to_idefics3_layers(adapters: Mapping[str, Adapter], settings: NanoVlmConfig) -> dict[str, Adapter]:
    """Adapters by Idefics3's names. That of a joined query, key and value matrix becomes three, with one A and a third of B
    each, which add the same. Names that are Idefics3's already stay."""
    table = _linear(settings)
    found = {}
    for name, adapter in adapters.items():
        names = table.get(name, (name,))
        for part, b in zip(names, adapter.b.chunk(len(names)), strict=True):
            found[part] = replace(adapter, b=b)
    return found


def to_nanovlm_name(layer: str, settings: NanoVlmConfig) -> str:
    """nanoVLM's name of a layer.

    Raises:
        ConfigError: it is a third of one of nanoVLM's, so an adapter of its own cannot be written.
    """
    for ours, theirs in _linear(settings).items():
        if theirs == (layer,):
            return ours
    raise ConfigError(
        f"the adapter of {layer} has no place in nanoVLM's layout, where query, key and value of the vision encoder are one "
        "layer: export with --to nanovlm or hf, which merge adapters, or train without these layers"
    )


def _linear(settings: NanoVlmConfig) -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {
        ours: (theirs,) for ours, theirs in modules(settings).items() if ours.split(".")[-1] not in _NO_LINEAR
    }
    names |= fused(settings)
    return names
