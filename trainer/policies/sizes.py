"""How large a policy is, from the headers of its safetensors files: nothing of their data is read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from trainer.config import ConfigError, LoraConfig, NetworkConfig
from trainer.policies.lora import ATTENTION_PROJECTIONS
from trainer.policies.registry import Sizes
from trainer.policies.weight_files import weight_files

_FP32 = 4
_POSITIONS = "pos_embed.pos_embed"  # SD3's table: stored beside the weights, and never trained nor shared out

Shapes = dict[str, tuple[int, ...]]


def folder_sizes(config: Any) -> Sizes:
    """The sizes of a policy that starts from a diffusers folder. Raises what `part_sizes` raises."""
    folder = Path(config.pretrained)
    encoders = sum(count(shapes_of(each)) for each in folder.glob("text_encoder*"))
    return part_sizes(config, config.lora, folder, encoders)


def part_sizes(config: NetworkConfig, lora: LoraConfig | None, folder: Path, encoders: int) -> Sizes:
    """The sizes of a transformer that is trained and an autoencoder, which lie in a diffusers folder, with encoders.

    Args:
        folder: holds `transformer` and `vae`.
        encoders: elements of all that reads the prompt.

    Raises:
        OSError, ValueError, SafetensorError: a file is not there or cannot be read.
        ConfigError: the folder has no transformer.
    """
    network, vae = shapes_of(folder / "transformer"), count(shapes_of(folder / "vae"))
    upcast = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8")).get("force_upcast")
    if not network:
        raise ConfigError(f"{folder / 'transformer'} has no weights: save or download the folder again")
    bytes_each = 2 if config.dtype == "bfloat16" else _FP32
    # An autoencoder that overflows in 16 bit is held in float32 (`vae_dtype`); encoders may be kept off the device.
    others = (_FP32 if upcast else bytes_each) * vae + (0 if config.offload_encoders else bytes_each * encoders)
    positions = math.prod(network.pop(_POSITIONS, (0,)))
    if lora is None:  # all of the network is trained, in float32
        return Sizes(count(network), 0, others, _FP32 * positions, reference=_copied(network, bytes_each))
    trained = lora.rank * _adapted(network, lora.target_modules or ATTENTION_PROJECTIONS)
    return Sizes(trained, bytes_each * count(network), others, bytes_each * positions)


def shapes_of(folder: Path) -> Shapes:
    """Shapes by name of the tensors in a folder's safetensors files."""
    return {name: shape for path in weight_files(folder) for name, shape in shapes_in(path).items()}


def shapes_in(path: Path) -> Shapes:
    """Shapes by name of the tensors in one safetensors file."""
    with safe_open(path, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (not a dict)


def count(shapes: Shapes) -> int:
    """The number of elements of all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def _copied(network: Shapes, bytes_each: int) -> int:
    """Bytes of a frozen copy: layers with matrices are held in the type of computations, all else in float32 (`placing.twin`)."""
    layers = {
        name.removesuffix(".weight") for name, shape in network.items() if name.endswith(".weight") and len(shape) > 1
    }
    return sum(
        math.prod(shape) * (bytes_each if name.rpartition(".")[0] in layers else _FP32)
        for name, shape in network.items()
    )


def _adapted(network: Shapes, targets: tuple[str, ...]) -> int:
    """Inputs and outputs of the layers that get an adapter: an adapter of rank 1, A (1, inputs) and B (outputs, 1), has so
    many elements."""
    layers = {name.removesuffix(".weight"): shape for name, shape in network.items() if len(shape) == 2}
    return sum(
        sum(shape)
        for layer, shape in layers.items()
        if any(layer == target or layer.endswith(f".{target}") for target in targets)
    )
