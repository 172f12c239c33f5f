"""A DeepSpeed JSON file: what of it is DeepSpeed's, and what would contradict the configuration.

Batch sizes, clipping, the optimizer and the schedule have one owner, the YAML configuration. A JSON file may repeat them,
or say "auto" as files written for the Hugging Face trainer do; another value is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.config.base import ConfigError
from trainer.config.optim import OptimConfig

AUTO = "auto"

# Passed on as they are, less their "auto" entries, for which DeepSpeed's defaults hold.
PASSED = (
    "zero_optimization",
    "communication_data_type",
    "zero_force_ds_cpu_optimizer",
    "zero_allow_untested_optimizer",
    "aio",
    "wall_clock_breakdown",
    "memory_breakdown",
    "comms_logger",
    "steps_per_print",
)
OWNED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
_TABLES = ("optimizer", "scheduler", "bf16", "fp16")
CHECKED = (*OWNED, *_TABLES)


def read_deepspeed(path: str) -> dict[str, Any]:
    """The settings of a DeepSpeed JSON file.

    Raises:
        ConfigError: no file, not JSON, no ZeRO stage from 0 to 3, or a setting that would have no effect here.
    """
    where = f"distributed.deepspeed = {path}"
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}; there are configs/deepspeed/*.json") from error
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    zero = raw.get("zero_optimization") if isinstance(raw, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3) or isinstance(zero["stage"], bool):
        raise ConfigError(f"{where} must hold zero_optimization.stage, a number from 0 to 3")
    unknown = sorted(raw.keys() - {*PASSED, *CHECKED})
    if unknown:
        raise ConfigError(
            f"{where}: {', '.join(unknown)} would have no effect; take it out (known: {', '.join([*PASSED, *CHECKED])})"
        )
    for key in (*_TABLES, "zero_optimization"):
        if not isinstance(raw.get(key, AUTO), dict) and raw.get(key, AUTO) != AUTO:
            raise ConfigError(f'{where}: {key} is {raw[key]!r}; it is a table of settings, or "{AUTO}", or left out')
    params = raw["optimizer"].get("params", AUTO) if isinstance(raw.get("optimizer"), dict) else AUTO
    share = zero.get("zero_hpz_partition_size", AUTO)
    if not isinstance(params, dict) and params != AUTO:
        raise ConfigError(
            f'{where}: optimizer.params is {params!r}; it is a table of settings, or "{AUTO}", or left out'
        )
    if share != AUTO and (not isinstance(share, int) or isinstance(share, bool)):
        raise ConfigError(
            f'{where}: zero_hpz_partition_size is {share!r}; it is the number of GPUs of a node, or "{AUTO}", or left out'
        )
    settings: dict[str, Any] = raw
    return settings


def stage(settings: Mapping[str, Any]) -> Literal[0, 1, 2, 3]:
    """The ZeRO stage: 0 shards nothing, 1 optimizer states, 2 also gradients, 3 also weights."""
    found: Literal[0, 1, 2, 3] = settings["zero_optimization"]["stage"]
    return found


def offloads_optimizer(settings: Mapping[str, Any]) -> bool:
    """Whether the optimizer's state is kept off the device, and stepped by the CPU."""
    offload = settings["zero_optimization"].get("offload_optimizer", AUTO)
    return isinstance(offload, dict) and offload.get("device", "none") not in ("none", AUTO)


def passed_on(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What DeepSpeed is given: its own settings, without entries that are "auto"."""
    return {key: _without_auto(settings[key]) for key in PASSED if key in settings and settings[key] != AUTO}


@dataclass(frozen=True)
class Owner:
    """What the YAML configuration decides of the settings that a DeepSpeed file may repeat.

    Attributes:
        batch: samples of a step over all ranks.
        micro_batch: samples of one forward pass of the update, on one rank.
        dtype: in which the policy computes.
        batch_field, micro_batch_field: what these are in the configuration, for messages.
    """

    batch: int
    micro_batch: int
    optim: OptimConfig
    dtype: str
    batch_field: str = "sampling.prompts_per_step * group_size"
    micro_batch_field: str = "the update's micro-batch (optim.micro_batch_size)"


def check_deepspeed(path: str, owner: Owner) -> None:
    """Raises ValueError when a value that the configuration owns is another in the JSON file; both are named. Or when it asks for
    Muon, which takes whole matrices, and the file cuts them."""
    settings = read_deepspeed(path)
    by_muon = [name for name, group in owner.optim.groups.items() if group.optimizer == "muon"]
    if by_muon and stage(settings):
        raise ValueError(
            f"optim.groups.{by_muon[0]}.optimizer = muon needs whole matrices, but distributed.deepspeed = {path} cuts them into "
            "parts: use adamw, or leave distributed.deepspeed out"
        )
    for key, theirs, field, ours in _claims(settings, owner):
        if theirs not in (AUTO, ours):
            raise ValueError(
                f"{key} is {theirs!r} in {path}, but {field} is {ours!r}; make them equal, or write "
                f'"{AUTO}" (or nothing) there'
            )


def check_accumulation(path: str | None, owner: Owner, size: int) -> None:
    """Raises ConfigError when the file fixes gradient_accumulation_steps and `size` ranks need another number of them."""
    if path is None:
        return
    fixed = read_deepspeed(path).get("gradient_accumulation_steps", AUTO)
    needed = -(-owner.batch // (owner.micro_batch * size))  # rounded up: the last micro-batch may be smaller
    if fixed not in (AUTO, needed):
        raise ConfigError(
            f"gradient_accumulation_steps is {fixed!r} in {path}, but {owner.batch} samples a step in "
            f'micro-batches of {owner.micro_batch} on {size} ranks are {needed} for each; write {needed} or "{AUTO}" there'
        )


def node_share(settings: Mapping[str, Any]) -> int:
    """Ranks among which ZeRO-3 keeps a second copy of the weights (`zero_hpz_partition_size`, arXiv 2306.10209); 1 is none."""
    found = settings["zero_optimization"].get("zero_hpz_partition_size", AUTO)
    return int(found) if stage(settings) == 3 and found != AUTO else 1


def check_node_share(path: str | None, size: int) -> None:
    """Raises ConfigError when the ranks that share a second copy of the weights do not divide `size` ranks."""
    if path is None:
        return
    share = node_share(read_deepspeed(path))
    if share < 1 or size % share:
        raise ConfigError(
            f"zero_hpz_partition_size is {share} in {path}, which {size} ranks cannot be divided into; write the number of GPUs of a "
            "node there, or use configs/deepspeed/zero3.json"
        )


def _claims(settings: Mapping[str, Any], owner: Owner) -> Iterator[tuple[str, Any, str, Any]]:
    """Settings of the file that the configuration owns: key, their value, our field, our value."""
    optim = owner.optim
    owned = {
        "train_batch_size": (owner.batch_field, owner.batch),
        "train_micro_batch_size_per_gpu": (owner.micro_batch_field, owner.micro_batch),
        "gradient_clipping": ("optim.max_grad_norm", optim.max_grad_norm),
    }
    for key, (field, ours) in owned.items():
        yield key, settings.get(key, AUTO), field, ours
    optimizer = settings.get("optimizer", AUTO)
    if optimizer != AUTO:
        yield "optimizer.type", optimizer.get("type", AUTO), "the optimizer", "AdamW"
        ours_by_name = {
            "lr": ("optim.lr", optim.lr),
            "betas": ("optim.betas", list(optim.betas)),
            "eps": ("AdamW's eps", 1e-8),
            "weight_decay": ("optim.weight_decay", optim.weight_decay),
            "torch_adam": ("the choice of AdamW", AUTO),
            "adam_w_mode": ("the choice of AdamW", True),
        }
        params = optimizer.get("params", AUTO)
        for name, theirs in ({} if params == AUTO else params).items():
            field, value = ours_by_name.get(name, ("AdamW's own default", AUTO))
            yield f"optimizer.params.{name}", theirs, field, value
    if settings.get("scheduler", AUTO) != AUTO:
        yield "scheduler", settings["scheduler"].get("type"), "optim.schedule", optim.schedule
    # Weights and optimizer states are float32 under every stage; the policy computes in its dtype by autocast.
    for key, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
        table = settings.get(key, AUTO)
        if table != AUTO and table.get("enabled", AUTO) is True:
            yield f"{key}.enabled", dtype, "policy.dtype", owner.dtype


def _without_auto(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_auto(inner) for key, inner in value.items() if inner != AUTO}
