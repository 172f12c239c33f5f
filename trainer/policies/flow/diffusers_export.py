"""Policies that start from a diffusers folder, as a whole folder again or as a LoRA file that diffusers loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import ConfigError
from trainer.policies.lora import compute_dtype
from trainer.policies.lora_files import pipeline_class
from trainer.policies.registry import Exporter, build_model
from trainer.policies.weight_files import plain_name

LORA_FILE = "pytorch_lora_weights.safetensors"
_WEIGHTS = "diffusion_pytorch_model"
_COPIED_AT_ONCE = 1 << 28


def write_folder(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """The base folder with another transformer. Every other file is a copy of its own: what is done to the export later
    never reaches the base model."""
    from huggingface_hub import save_torch_state_dict

    base = Path(model.config.pretrained)
    for file in _pipeline_files(base):
        part = file.relative_to(base)
        name = plain_name(file)  # so that the export is read as it is, whatever variant the base is of
        if name is None or (part.parts[0] == "transformer" and name != "config.json"):
            continue
        target = (folder / part).with_name(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(file, target)
    state = {name: tensor.to(dtype).contiguous() for name, tensor in model.network.state_dict().items()}
    save_torch_state_dict(
        state, folder / "transformer", filename_pattern=f"{_WEIGHTS}{{suffix}}.safetensors", max_shard_size="10GB"
    )


def reload_folder(config: Any, folder: Path, device: torch.device) -> Any:
    """The policy that starts from the folder."""
    return build_model(config.model_copy(update={"pretrained": str(folder), "lora": None}), device)


def write_lora(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Adapters by diffusers' names, scaled so that alpha is the rank: loaders that ignore alpha draw the same images."""
    pipeline = pipeline_class(model.config)
    layers = {name: tensor.to(dtype).contiguous() for name, tensor in adapter_tensors(model.network).items()}
    pipeline.save_lora_weights(folder, transformer_lora_layers=layers, weight_name=LORA_FILE)


def reload_lora(config: Any, folder: Path, device: torch.device) -> Any:
    """The base model with the adapters as diffusers' own loader puts them in."""
    model = build_model(config.model_copy(update={"lora": None}), device)
    with (
        torch.no_grad()
    ):  # the numbers that the run held, in float32: diffusers gives adapters the type of the network,
        for tensor in model.network.state_dict().values():  # and one narrower than the file's would change them
            tensor.copy_(tensor.to(compute_dtype(config)))
    pipeline = pipeline_class(config)
    options = {"return_alphas": True} if config.type == "flux" else {}
    loaded = pipeline.lora_state_dict(folder, weight_name=LORA_FILE, local_files_only=True, **options)
    state, alphas = loaded if options else (loaded, None)
    pipeline.load_lora_into_transformer(
        state, transformer=model.network, **({"network_alphas": alphas} if options else {})
    )
    return model


def adapter_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The adapters of a PEFT network by the transformer's own names; B carries the scale alpha / rank."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(network)
    config: Any = network.peft_config["default"]  # type: ignore[index]
    scale = config.lora_alpha / config.r
    return {
        name.removeprefix("base_model.model."): tensor * scale if ".lora_B." in name else tensor
        for name, tensor in tensors.items()
    }


def _pipeline_files(base: Path) -> Iterator[Path]:
    """The files that a pipeline reads: its index and the folders that this names, without single-file copies beside."""
    index = base / "model_index.json"
    if not index.is_file():
        raise ConfigError(f"the base folder {base} has no model_index.json: put it where the run found it")
    yield index
    for name in json.loads(index.read_text(encoding="utf-8")):
        if (base / name).is_dir():
            yield from sorted(path for path in (base / name).rglob("*") if path.is_file())


def _copy(source: Path, target: Path) -> None:
    """Copy a file. Disks that can (Btrfs, XFS) share its blocks until one of the two is written, which costs no space."""
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            while os.copy_file_range(reading.fileno(), writing.fileno(), _COPIED_AT_ONCE):
                pass
        except OSError:  # two kinds of disk, or one without the call; what was copied before is written again
            reading.seek(0)
            writing.seek(0)
            shutil.copyfileobj(reading, writing, _COPIED_AT_ONCE)


EXPORTERS = {
    "diffusers": Exporter(write_folder, reload_folder),
    "lora": Exporter(write_lora, reload_lora, adapters=True),
}
