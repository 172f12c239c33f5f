"""What a step of a native model on its longest pack takes beside what is held all along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainer.config.neo import NeoConfig
from trainer.policies.unified.neo.geometry import NeoGeometry
from trainer.policies.unified.neo.sizes import geometry_of
from trainer.policies.unified.pack_memory import LEARNT, PackTokens, Trunk, training_bytes

if TYPE_CHECKING:
    from trainer.config import Config


def working_bytes(config: Config) -> Mapping[str, float]:
    """Bytes of the device at the peak of a step on packs; nothing is said of a run on rewards. Raises OSError, ValueError."""
    policy, packed = config.policy, config.packed
    assert isinstance(policy, NeoConfig), "the configuration has checked it"
    if packed is None:
        return {}
    tokens = packed.max_tokens
    pack = PackTokens(tokens, round(LEARNT * tokens))
    return {f"training on a pack of {tokens} tokens": pack_bytes(geometry_of(policy), policy, pack)}


def pack_bytes(geometry: NeoGeometry, config: NeoConfig, pack: PackTokens, *, on_cpu: bool | None = None) -> float:
    """Bytes at the peak of a step on a pack.

    Args:
        on_cpu: as in `training_bytes`.
    """
    recompute = config.gradient_checkpointing
    return training_bytes(
        trunk_of(geometry), geometry.vocab_size, config.dtype, pack, recompute=recompute, on_cpu=on_cpu
    )


def trunk_of(geometry: NeoGeometry) -> Trunk:
    """All weights are held in float32, frozen ones too."""
    d, q, k = geometry.hidden_size, geometry.num_heads * geometry.head_dim, geometry.num_kv_heads * geometry.head_dim
    cast = d * (3 * q + 3 * k + 3 * geometry.intermediate_size)
    return Trunk("neo", geometry.num_layers, d, q, k, geometry.intermediate_size, float(cast))
