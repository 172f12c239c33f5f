"""What each process of a run holds of a large policy before any activation, from the headers of its files."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from trainer.config import Config, ConfigError, DeepGenConfig, DiffusersConfig
from trainer.config.deepspeed import read_deepspeed, stage
from trainer.objectives import needs_reference
from trainer.policies.lora import ATTENTION_PROJECTIONS
from trainer.policies.weight_files import weight_files

_FP32 = 4
_LARGE = 100e6  # parameters, frozen ones included, above which a CPU takes minutes or more for a step
_POSITIONS = "pos_embed.pos_embed"  # SD3's table: stored beside the weights, and never trained nor shared out

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """Of a policy: elements that are trained, in float32, and bytes that are not.

    Attributes:
        network: frozen weights of the network that adapters are trained on.
        others: encoders, as far as they stay on the device, and the autoencoder.
        positions: SD3's table of positions, which a copy of the network has, too.
    """

    trained: int
    network: int
    others: int
    positions: int = 0


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
    """None for the tiny policy, and where files are not there or cannot be read: loading them says what is wrong."""
    policy = config.policy
    try:
        if isinstance(policy, DeepGenConfig):
            folder, encoders = _deepgen_parts(policy)
        elif isinstance(policy, DiffusersConfig):
            folder = Path(policy.pretrained)
            encoders = sum(_count(_shapes(each)) for each in folder.glob("text_encoder*"))
        else:
            return None
        network, vae = _shapes(folder / "transformer"), _count(_shapes(folder / "vae"))
        upcast = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8")).get("force_upcast")
    except (OSError, ValueError, SafetensorError, ConfigError):
        return None
    if not network:
        return None
    bytes_each = 2 if policy.dtype == "bfloat16" else 4
    others = (4 if upcast else bytes_each) * vae + (0 if policy.offload_encoders else bytes_each * encoders)
    positions = math.prod(network.pop(_POSITIONS, (0,)))
    if policy.lora is None:
        return Sizes(_count(network), 0, others, _FP32 * positions)
    targets = policy.lora.target_modules or ATTENTION_PROJECTIONS
    trained = policy.lora.rank * _adapted(network, targets)
    return Sizes(trained, bytes_each * _count(network), others, bytes_each * positions)


def is_large(config: Config) -> bool:
    """Whether the policy has more than _LARGE parameters; a policy other than `tiny` of unknown size counts as large."""
    found = sizes(config)
    if found is None:
        return config.policy.type != "tiny"
    bytes_each = 2 if getattr(config.policy, "dtype", "") == "bfloat16" else 4
    return found.trained + (found.network + found.others) / bytes_each > _LARGE


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
    add("gradients", whole, 2, "optimizer")
    add("optimizer", whole * (3 if zero else 2), 1, "optimizer")  # ZeRO steps a float32 copy beside AdamW's moments
    add("average", whole, 3, "param")
    if config.algorithm.old_decay:
        add("sampling policy", whole, 3, "param")
    add("frozen weights", found.network, 3, "param")
    held.device["frozen weights"] += found.others + found.positions
    if needs_reference(config.algorithm) and not found.network:
        held.device["reference"] = whole + found.positions  # a copy of its own; adapters are switched off instead
    return held


def _shapes(folder: Path) -> Shapes:
    """Shapes by name of a folder's safetensors files; nothing of their data is read."""
    return {name: shape for path in weight_files(folder) for name, shape in _header(path)}


def _header(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with safe_open(path, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (not a dict)
            yield name, tuple(opened.get_slice(name).get_shape())


def _count(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _adapted(network: Shapes, targets: tuple[str, ...]) -> int:
    """Inputs and outputs of the layers that get an adapter: an adapter of rank 1 has so many elements."""
    layers = {name.removesuffix(".weight"): shape for name, shape in network.items() if len(shape) == 2}
    return sum(
        sum(shape)
        for layer, shape in layers.items()
        if any(layer == target or layer.endswith(f".{target}") for target in targets)
    )


def _deepgen_parts(policy: DeepGenConfig) -> tuple[Path, int]:
    """The folder of the transformer and the autoencoder; elements of all that reads the prompt.

    Raises ConfigError: something is not there.
    """
    from trainer.policies.flow.deepgen.checkpoint import open_checkpoint

    if policy.sd3_path is None or policy.qwen_path is None or policy.checkpoint is None:
        raise ConfigError("policy: a folder is missing")
    stored = open_checkpoint(Path(policy.checkpoint))
    own = {n: t.shape for n, t in stored.items() if not n.startswith(("lmm.", "transformer.", "vae.", "ema."))}
    return Path(policy.sd3_path), _count(_shapes(Path(policy.qwen_path))) + _count(own)
