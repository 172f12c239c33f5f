"""Engines: what owns the optimizer. Chosen by the configuration, heavy modules imported when one is built."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from trainer.config import DistributedConfig, OptimConfig
from trainer.config.deepspeed import read_deepspeed, stage
from trainer.engine.base import Engine
from trainer.processes.distributed import World

__all__ = ["Engine", "build_engine", "shares_weights"]


def shares_weights(distributed: DistributedConfig) -> bool:
    """Whether the engine will cut weights into parts: networks then wait for it on the host. Raises ConfigError: the file cannot be read."""
    return distributed.deepspeed is not None and stage(read_deepspeed(distributed.deepspeed)) == 3


def build_engine(
    module: nn.Module,
    optim: OptimConfig,
    distributed: DistributedConfig,
    world: World,
    group_of: Mapping[str, str] | None = None,
    frozen: nn.Module | None = None,
) -> Engine:
    """The engine for the trainable parameters of `module`.

    Args:
        group_of: the policy's name of a parameter's group, by parameter name, for `optim.groups`; None names no group.
        frozen: another network that is not trained; ZeRO-3 shares it out, too.

    Raises:
        ConfigError: the DeepSpeed file cannot be used, or `optim.groups` does not fit the policy.
    """
    settings = None if distributed.deepspeed is None else read_deepspeed(distributed.deepspeed)
    if settings is None or stage(settings) == 0:  # stage 0 shards nothing, as LocalEngine
        from trainer.engine.local import LocalEngine

        return LocalEngine(module, optim, world, group_of)
    from trainer.engine.zero import ZeroEngine

    return ZeroEngine(module, optim, settings, world, group_of, frozen)
