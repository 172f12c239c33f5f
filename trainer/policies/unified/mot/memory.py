"""What a step of a Mixture-of-Transformers on its longest pack takes beside what is held all along."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.mot import MotConfig
from trainer.policies.unified.mot.geometry import Geometry, fresh_geometry, read_geometry
from trainer.policies.unified.mot.words import Words
from trainer.policies.unified.pack_memory import LEARNT, SEEN, PackTokens, Trunk, training_bytes

if TYPE_CHECKING:
    from trainer.config import Config


def working_bytes(config: Config) -> Mapping[str, float]:
    """Bytes of the device at the peak of a step on packs; nothing is said of a run on rewards. Raises OSError, ValueError."""
    policy, packed = config.policy, config.packed
    assert isinstance(policy, MotConfig), "the configuration has checked it"
    if packed is None:
        return {}
    tokens = packed.max_tokens
    pack = PackTokens(tokens, round(LEARNT * tokens), round(SEEN * tokens))
    return {f"training on a pack of {tokens} tokens": pack_bytes(_geometry(policy), policy, pack)}


def pack_bytes(geometry: Geometry, config: MotConfig, pack: PackTokens, *, on_cpu: bool | None = None) -> float:
    """Bytes at the peak of a step on a pack. Where a part is frozen it takes less.

    Args:
        on_cpu: as in `training_bytes`.
    """
    trained = not {"vision", "connector"} <= set(config.freeze)
    return training_bytes(
        trunk_of(geometry, config),
        geometry.language.vocab_size,
        config.dtype,
        pack,
        recompute=config.gradient_checkpointing,
        vision=_vision(geometry, config) if trained else None,
        on_cpu=on_cpu,
    )


def trunk_of(geometry: Geometry, config: MotConfig) -> Trunk:
    """A token goes through one of the two experts; the weights of both are cast where they are trained."""
    language = geometry.language
    d, k = language.hidden_size, language.num_key_value_heads * language.head_dim
    expert = d * (2 * d + 2 * k + 3 * language.intermediate_size)
    trained = 2 - len({"language", "generation"} & set(config.freeze))
    return Trunk("mot", language.num_hidden_layers, d, d, k, language.intermediate_size, float(expert * trained))


def _vision(geometry: Geometry, config: MotConfig) -> Trunk:
    vision = geometry.vision
    d, inner = vision.hidden_size, vision.intermediate_size
    weights = 0.0 if "vision" in config.freeze else float(d * (4 * d + 2 * inner))
    return Trunk("vision", vision.num_hidden_layers, d, d, d, inner, weights)


def _geometry(config: MotConfig) -> Geometry:
    if config.initialize is not None:
        words = len(Words.fresh(config.initialize.words))
        return fresh_geometry(config.initialize, words, config.max_latent_size)
    assert config.pretrained is not None, "the configuration has checked it"
    return read_geometry(Path(config.pretrained), 1, config.max_latent_size)
