"""Adapters that a run starts from: files as this trainer, diffusers or PEFT write them, in the network's own names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from machine.hub import is_hub_id
from trainer.config import ConfigError, DiffusersConfig, FluxConfig, LoraConfig
from trainer.config.network import ADAPTER_FILES, LanguageSettings, PolicySection
from trainer.config.paths import folder_of, located

_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_FACTOR = re.compile(
    r"(?P<layer>.+?)\.(?:(?P<a>lora_A|lora_down|lora\.down)|lora_B|lora_up|lora\.up)(?:\.default)?(?:\.weight)?"
)
_PREFIXES = ("base_model.model.", "module.", "transformer.", "base_model.model.")
_SHOWN = 3


@dataclass(frozen=True)
class Adapter:
    """Adds B A, scaled, to a layer's weight: A (rank, inputs), B (outputs, rank), float32."""

    a: Tensor
    b: Tensor
    scale: float


@torch.no_grad()
def start_from(
    network: nn.Module,
    lora: LoraConfig,
    config: PolicySection | LanguageSettings,
    translated: Callable[[Mapping[str, Adapter]], Mapping[str, Adapter]] | None = None,
) -> None:
    """Put the adapters of `lora.path` into the network's own, so that it draws as with the file.

    A file of a lower rank fills the first rows of A and columns of B; what is left of B stays 0 and is trained. Another
    scale than alpha / rank is taken into B.

    Args:
        translated: gives the adapters of a file in other names by those of the network.

    Raises:
        ConfigError: the file cannot be read, has a higher rank, or layers that get no adapter here.
    """
    assert lora.path is not None
    where = f"policy.lora.path = {lora.path}"
    adapters = read_adapters(Path(lora.path), config)
    adapters = adapters if translated is None else dict(translated(adapters))
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in network.named_modules()
        if hasattr(module, "lora_A")
    }
    if strange := sorted(adapters.keys() - layers.keys()):
        raise ConfigError(
            f"{where} has adapters of {len(adapters)} layers, and {len(strange)} of them get none here, first {strange[0]}: set "
            "policy.lora.target_modules to the ends of all their names, or give a file of this model"
        )
    highest = max(len(adapter.a) for adapter in adapters.values())
    if highest > lora.rank:
        raise ConfigError(
            f"{where} has the rank {highest}, more than policy.lora.rank = {lora.rank}: set it to {highest}"
        )
    for name, adapter in adapters.items():
        layer: Any = layers[name]
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        rank = len(adapter.a)
        if adapter.a.shape[1] != a.shape[1] or adapter.b.shape[0] != b.shape[0]:
            raise ConfigError(
                f"{where}: the adapter of {name} is for a layer of {adapter.a.shape[1]} inputs and {adapter.b.shape[0]} outputs, "
                f"the model's has {a.shape[1]} and {b.shape[0]}: give a file of this model"
            )
        a[:rank] = adapter.a
        b[:, :rank] = adapter.b * (adapter.scale / float(layer.scaling["default"]))


def read_adapters(path: Path, config: PolicySection | LanguageSettings) -> dict[str, Adapter]:
    """The adapters of a file, or of the one in a folder, by the names of the transformer's layers.

    Raises:
        ConfigError: nothing there, a damaged file, or one that holds something else than plain low-rank adapters.
    """
    file = _find(path)
    tensors, metadata = _read(file)
    if not all(_known(name) for name in tensors) and isinstance(config, DiffusersConfig):
        tensors = _converted(config, file, tensors)
    if strange := [name for name in tensors if not _known(name)]:
        raise ConfigError(
            f"policy.lora.path = {path}: {len(strange)} of {len(tensors)} tensors are no low-rank adapters of a transformer, "
            f"first {strange[0]}: give a file as this trainer, diffusers or PEFT writes it, without text encoders and DoRA"
        )
    factors: dict[str, dict[str, Tensor]] = {}
    alphas = {_layer(name.removesuffix(".alpha")): float(t) for name, t in tensors.items() if name.endswith(".alpha")}
    for name, tensor in tensors.items():
        if (match := _FACTOR.fullmatch(name)) is not None:
            factors.setdefault(_layer(match["layer"]), {})["a" if match["a"] else "b"] = tensor.float()
    found = {}
    for layer, pair in factors.items():
        if pair.keys() != {"a", "b"} or pair["a"].ndim != 2 or pair["a"].shape[0] != pair["b"].shape[-1]:
            raise ConfigError(
                f"policy.lora.path = {path}: the adapter of {layer} is not whole: A and B of one rank belong to it"
            )
        found[layer] = Adapter(pair["a"], pair["b"], _scale(layer, len(pair["a"]), alphas, metadata))
    if not found:
        raise ConfigError(f"policy.lora.path = {path} holds no adapter")
    return found


def _find(path: Path) -> Path:
    if is_hub_id(path):
        path = folder_of(str(path), "policy.lora.path", ADAPTER_FILES)
    if path.is_file() and path.suffix == ".safetensors":
        return path
    candidates = [folder / name for folder in (path, path / "lora") for name in _FILES]
    files = [file for file in candidates if file.is_file()] or sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        there = ", ".join(file.name for file in files[:_SHOWN]) or "none"
        raise ConfigError(
            f"policy.lora.path = {path}: give a .safetensors file, or a folder with one of {', '.join(_FILES)} (there: {there})"
        )
    return files[0]


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and the settings that lie beside them or in the file's header."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
            header = (opened.metadata() or {}).get("lora_adapter_metadata")
        settings = file.with_name("adapter_config.json")
        if settings.is_file():
            return tensors, dict(json.loads(settings.read_text(encoding="utf-8")))
        flat = json.loads(header) if header else {}
        return tensors, {key.removeprefix("transformer."): value for key, value in flat.items()}
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"policy.lora.path: {file} cannot be read: {error}; save or download it again") from error


def _converted(config: DiffusersConfig, file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Another program's names as diffusers' own loader of the model translates them."""
    options = {"return_alphas": True} if isinstance(config, FluxConfig) else {}
    try:
        loaded = pipeline_class(config).lora_state_dict(dict(tensors), **options)
    except (ValueError, KeyError, NotImplementedError, AttributeError) as error:
        raise ConfigError(f"policy.lora.path: {file} has names that diffusers does not know: {error}") from error
    state, alphas = loaded if options else (loaded, None)
    return {**state, **{name: torch.as_tensor(value) for name, value in (alphas or {}).items()}}


def _known(name: str) -> bool:
    return (_FACTOR.fullmatch(name) is not None or name.endswith(".alpha")) and not name.startswith(
        ("text_encoder", "lora_", "diffusion_model.", "unet.")
    )


def _layer(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _scale(layer: str, rank: int, alphas: Mapping[str, float], settings: Mapping[str, Any]) -> float:
    """What B A is multiplied by: alpha / rank, alpha by the layer's own tensor, by the settings, or the rank itself."""
    alpha = alphas.get(layer, settings.get("lora_alpha", rank))
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if layer not in alphas and re.fullmatch(rf"(.*\.)?{pattern}", layer):
            alpha = value
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def pipeline_class(config: DiffusersConfig) -> Any:
    """The diffusers pipeline class that the base folder names."""
    import diffusers

    index = json.loads((Path(located(config).pretrained) / "model_index.json").read_text(encoding="utf-8"))
    return getattr(diffusers, str(index["_class_name"]))
