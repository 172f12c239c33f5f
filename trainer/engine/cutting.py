"""How ZeRO-3 takes a network over: parameter by parameter, so that no device ever holds all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from trainer.processes.distributed import World


def cut(module: nn.Module, settings: Mapping[str, Any], world: World) -> None:
    """Share out a module that may be on the host: each parameter goes to the device in the type that it is held as, is made rank 0's,
    and is cut into one part a rank. Buffers go there whole.

    Args:
        settings: what DeepSpeed is given.
    """
    import deepspeed
    from deepspeed.utils import groups

    # An empty module: what DeepSpeed sets up for a given one, without the weights. Ranks with a second copy (hpZ) are grouped once a process.
    shared = deepspeed.zero.Init(
        module=nn.Module(),
        config_dict_or_path=dict(settings),
        dtype=torch.float32,
        zero_param_parallel_group=groups._get_zero_param_intra_parallel_group(),
    )
    for parameter in module.parameters():
        if hasattr(parameter, "ds_tensor"):
            continue
        parameter.data = parameter.data.to(world.device, getattr(parameter, "held_as", parameter.dtype))
        shared._convert_to_zero_parameters([parameter])
    for buffer in module.buffers():
        buffer.data = buffer.data.to(world.device)


def cut_frozen(module: nn.Module, settings: Mapping[str, Any], world: World) -> Any:
    """Share out a module that is not trained; gives what gathers its weights around every call of one of its modules, to be kept."""
    import deepspeed

    zero = {key: value for key, value in settings["zero_optimization"].items() if key != "offload_optimizer"}
    own = {**settings, "zero_optimization": zero, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    cut(module, own, world)
    engine, *_ = deepspeed.initialize(model=module, config=own)
    return engine
