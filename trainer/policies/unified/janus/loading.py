"""Where a Janus model comes from: a folder in transformers' layout, or one in DeepSeek's, which is converted into the former."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.config import ConfigError, JanusConfig
from trainer.policies.tokens.hub import local_folder
from trainer.policies.tokens.loading import from_transformers
from trainer.policies.unified.janus.deepseek import converted
from trainer.policies.unified.janus.geometry import is_deepseek

_FILES = JanusConfig.from_hub["pretrained"]


def load(config: JanusConfig) -> tuple[Any, Any, str]:
    """The network in float32, its processor, and a sentence on where they come from.

    Raises:
        ConfigError: files are missing, damaged, or of no Janus model.
    """
    source = local_folder(config.pretrained, "policy.pretrained", _FILES)
    folder = transformers_folder(config)
    network, processor = from_transformers(folder)
    if network.config.model_type != "janus":
        raise ConfigError(
            f"policy.pretrained = {config.pretrained} is a model of type {network.config.model_type}, which policy.type janus "
            "does not read; give a Janus folder, or set policy.type to vlm, which draws nothing"
        )
    _untie(network)
    by_way = "" if folder == source else f", converted from DeepSeek's layout into {folder}"
    return network, processor, f"Started from {config.pretrained}{by_way}."


def transformers_folder(config: JanusConfig, *, fetch: bool = True) -> Path:
    """The folder in transformers' layout that `pretrained` is or is converted into. Raises ConfigError as `converted`."""
    folder = local_folder(config.pretrained, "policy.pretrained", _FILES, fetch=fetch)
    if not is_deepseek(folder):
        return folder
    return converted(folder, None if config.converted is None else Path(config.converted))


def deepseek_folder(config: JanusConfig) -> Path | None:
    """The folder in DeepSeek's layout that `pretrained` is; None where it is in transformers'."""
    folder = local_folder(config.pretrained, "policy.pretrained", _FILES, fetch=False)
    return folder if is_deepseek(folder) else None


def _untie(network: Any) -> None:
    """Let the configuration say of head and embedding what the weights say.

    `JanusConfig` ties the two unless its file says otherwise, and files that others have written leave it out. transformers
    reads a head that the file has all the same, but whatever ties weights later (a copy, an export that is read again) would put
    the embedding in its place without a word.
    """
    head, embedding = network.get_output_embeddings().weight, network.get_input_embeddings().weight
    network.config.tie_word_embeddings = head is embedding
