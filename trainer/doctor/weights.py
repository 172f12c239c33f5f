"""What each process of a run holds of a large policy before any activation, from the headers of its files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from safetensors import SafetensorError

from trainer.config import Config
from trainer.config.deepspeed import node_share, read_deepspeed, stage
from trainer.config.objective import AveragedSection
from trainer.config.paths import located
from trainer.objectives import needs_reference
from trainer.policies.registry import Sizes, entry_of
from trainer.programs.early import goes_apart

_FP32 = 4
_LARGE = 100e6  # parameters, frozen ones included, above which a CPU takes minutes or more for a step


def planned_ranks() -> int:
    """Processes of the run: torchrun's number, or what `train.sh` would start for NNODES and NGPUS."""
    if os.environ.get("WORLD_SIZE"):
        return process_count("WORLD_SIZE")
    return process_count("NNODES") * process_count("NGPUS")


def process_count(variable: str) -> int:
    """Of NGPUS and the like; 1 where it is empty, as in train.sh, or no whole number from 1, which the doctor says."""
    text = os.environ.get(variable, "")
    return int(text) if is_count(text) else 1


def is_count(text: str) -> bool:
    """Whether `text` is a whole number from 1, as train.sh asks of NGPUS and NNODES."""
    return re.fullmatch("[0-9]{1,9}", text) is not None and int(text) > 0


def sizes(config: Config) -> Sizes | None:
    """How large the policy is; None where files are not there or cannot be read: loading them says what is wrong."""
    try:
        return entry_of(config.policy).sizes(located(config.policy, fetch=False))
    except (OSError, ValueError, SafetensorError):  # a ConfigError is a ValueError
        return None


def working(config: Config) -> dict[str, float]:
    """Bytes of the device that each part of a step takes beside what is held; empty where the policy does not say."""
    count = entry_of(config.policy).working
    try:
        return (
            {}
            if count is None
            else dict(count(config.model_copy(update={"policy": located(config.policy, fetch=False)})))
        )
    except (OSError, ValueError):
        return {}  # as of `sizes`


def is_large(config: Config) -> bool:
    """Whether the policy has more than _LARGE parameters; one of unknown size counts as large."""
    found = sizes(config)
    if found is None:
        return True
    bytes_each = 2 if getattr(config.policy, "dtype", "") == "bfloat16" else 4
    return found.trained + (found.network + found.others) / bytes_each > _LARGE


def saved_bytes(config: Config, found: Sizes, ranks: int) -> float:
    """What one of `ranks` processes copies into the machine's memory while it saves: its share of weights, two moments and averages."""
    averages = 2 if isinstance(config.objective, AveragedSection) and config.objective.old_decay else 1
    return float(_FP32 * found.trained * (3 + averages)) / ranks


@dataclass
class Held:
    """Bytes of one process: on its device by what they are, and offloaded to the machine's memory."""

    device: dict[str, float]
    host: float = 0.0


def held_bytes(config: Config, found: Sizes, ranks: int) -> Held:
    """What one of `ranks` processes holds. ZeRO's stages share out more and more of it (arXiv 1910.02054, figure 1)."""
    settings = {} if config.distributed.deepspeed is None else read_deepspeed(config.distributed.deepspeed)
    zero = stage(settings) if settings else 0
    whole, held = float(_FP32 * found.trained), Held({})

    def add(name: str, size: float, first_stage: int, part: str) -> None:
        """Shared out from `first_stage` on, and moved where the file offloads `part`."""
        place = settings["zero_optimization"].get(f"offload_{part}", {}).get("device", "none") if zero else "none"
        share = size / (ranks if zero >= first_stage else 1)
        held.device[name] = share if place == "none" else 0.0
        held.host += share if place == "cpu" else 0.0

    add("weights", whole, 3, "param")
    if zero and (share := node_share(settings)) > 1:
        held.device["second copy of the weights"] = whole / share
    add("gradients", whole, 2, "optimizer")
    if goes_apart(config):
        add("gradients of the KL", whole, 2, "optimizer")
    add("optimizer", whole * (3 if zero else 2), 1, "optimizer")  # ZeRO steps a float32 copy beside AdamW's moments
    add("average", whole, 3, "param")
    objectives = [task.objective for task in config.tasks]
    if any(isinstance(each, AveragedSection) and each.old_decay for each in objectives):
        add("sampling policy", whole, 3, "param")
    add("frozen weights", found.network, 3, "param")
    held.device["frozen weights"] += found.others + found.positions
    if any(map(needs_reference, objectives)) and getattr(config.policy, "lora", None) is None:
        # A copy of the network, frozen parts included; adapters are switched off instead.
        add("reference", float(found.reference or whole + found.network), 3, "param")
        held.device["reference"] += found.positions
    return held
