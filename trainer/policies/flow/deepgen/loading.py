"""From folders on disk to networks with weights. Nothing is fetched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from transformers import AutoTokenizer, Qwen2_5_VLModel

from trainer.config import ConfigError, DeepGenConfig
from trainer.policies.flow.deepgen.checkpoint import LoadReport, Stored, load_into, named, open_checkpoint
from trainer.policies.flow.deepgen.geometry import FUSION_STRIDE, ConnectorGeometry
from trainer.policies.flow.deepgen.networks import DeepGenNetworks
from trainer.policies.flow.frozen import vae_dtype
from trainer.policies.flow.sd3_tokens import Sd3Transformer
from trainer.policies.lora import compute_dtype, weight_dtype
from trainer.policies.weight_files import variant_of


@dataclass(frozen=True)
class Loaded:
    """A DeepGen model with weights, frozen.

    Attributes:
        scheduler: the settings of the base model's noise schedule.
        files: what the conditioning depends on.
    """

    networks: DeepGenNetworks
    tokenizer: Any
    scheduler: dict[str, Any]
    report: LoadReport
    files: list[Path]


def load(config: DeepGenConfig, device: torch.device) -> Loaded:
    """Base models from their folders, then the checkpoint over them; the transformer in float32 where all of it is trained.

    Raises:
        ConfigError: a folder or a file is missing, damaged or of another model; the message names the field.
    """
    sd3, qwen, checkpoint = _paths(config)
    stored = _stored(checkpoint, config.lmm_checkpoint)
    dtype = compute_dtype(config)
    vae_config = json.loads((sd3 / "vae" / "config.json").read_text(encoding="utf-8"))
    lmm = _pretrained(Qwen2_5_VLModel, qwen, dtype)
    transformer = _pretrained(Sd3Transformer, sd3 / "transformer", weight_dtype(config, config.lora))
    vae = _pretrained(AutoencoderKL, sd3 / "vae", vae_dtype(vae_config, config))
    sizes = ConnectorGeometry.from_shapes({name: tensor.shape for name, tensor in stored.items()})
    _check_fit(sizes, lmm, transformer)
    networks = DeepGenNetworks(lmm, transformer, vae, sizes)
    for part in (networks.projector_1, networks.connector, networks.projector_2, networks.projector_3):
        part.to(dtype)
    networks.meta_queries.data = networks.meta_queries.data.to(dtype)
    for name, child in networks.named_children():
        if name != "transformer":  # `prepare_network` places it
            child.to(device)
    networks.meta_queries.data = networks.meta_queries.data.to(device)
    networks.eval().requires_grad_(False)
    read = [qwen, sd3 / "vae", checkpoint, *([Path(config.lmm_checkpoint)] if config.lmm_checkpoint else [])]
    return Loaded(
        networks=networks,
        tokenizer=AutoTokenizer.from_pretrained(qwen, local_files_only=True),
        scheduler=json.loads((sd3 / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")),
        report=load_into(networks.state_dict(), stored, path=checkpoint),
        files=[file for path in read for file in _files(path)],
    )


def _stored(checkpoint: Path, lmm_checkpoint: str | None) -> dict[str, Stored]:
    """A checkpoint's tensors, those of the language model perhaps from another checkpoint."""
    stored = open_checkpoint(checkpoint)
    if lmm_checkpoint is None:
        return stored
    if own := sum(name.startswith("lmm.") for name in stored):
        raise ConfigError(
            f"policy.lmm_checkpoint = {lmm_checkpoint}, but policy.checkpoint = {checkpoint} has {own} tensors of the language "
            "model itself; leave one of them out"
        )
    lent = {name: tensor for name, tensor in open_checkpoint(Path(lmm_checkpoint)).items() if name.startswith("lmm.")}
    if not lent:
        raise ConfigError(f"policy.lmm_checkpoint = {lmm_checkpoint} has no tensor of the language model")
    return stored | lent


def _paths(config: DeepGenConfig) -> tuple[Path, Path, Path]:
    given = {
        "sd3_path": (config.sd3_path, "SD3_5_MODEL_NAME_OR_PATH", "the folder of UniPic2-SD3.5M-Kontext-2B"),
        "qwen_path": (config.qwen_path, "QWEN2_5_VL_MODEL_NAME_OR_PATH", "the folder of Qwen2.5-VL-3B-Instruct"),
        "checkpoint": (config.checkpoint, "CHECKPOINT", "the DeepGen weights, without which no prompt is understood"),
    }
    for name, (path, variable, what) in given.items():
        if path is None:
            raise ConfigError(f"policy.{name} is missing: give {what}, there or as the environment's {variable}")
    sd3, qwen, checkpoint = (Path(str(path)) for path, _, _ in given.values())
    needed = {
        "sd3_path": [
            sd3 / "transformer" / "config.json",
            sd3 / "vae" / "config.json",
            sd3 / "scheduler" / "scheduler_config.json",
        ],
        "qwen_path": [qwen / "config.json", qwen / "tokenizer_config.json"],
    }
    for name, files in needed.items():
        for file in files:
            if not file.is_file():
                raise ConfigError(f"policy.{name}: {file} does not exist; give {given[name][2]}, downloaded before")
    return sd3, qwen, checkpoint


def _files(path: Path) -> list[Path]:
    """A file, or the files of a folder; of an index, those of its folder."""
    folder = path.parent if path.suffix == ".json" else path
    return sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else [path]


def _pretrained(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A model of a library's class. Raises ConfigError where the folder is damaged or lacks some of its weights."""
    try:
        model, info = cls.from_pretrained(
            folder, dtype=dtype, variant=variant_of(folder), local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{folder} cannot be loaded as {cls.__name__}: {error}") from error
    if info["missing_keys"]:
        raise ConfigError(f"{folder} is incomplete: {named(sorted(info['missing_keys']), 'tensors missing')}")
    return model


def _check_fit(sizes: ConnectorGeometry, lmm: Any, transformer: Any) -> None:
    """Raises ConfigError when the checkpoint stands between other base models than these."""
    num_layers = len(lmm.language_model.layers)
    checks = {
        "meta_queries' width and the language model's": (sizes.lmm_width, lmm.config.text_config.hidden_size),
        "projector_2's output and the transformer's pooled_projection_dim": (
            sizes.pooled_width,
            transformer.config.pooled_projection_dim,
        ),
        "projector_3's output and the transformer's joint_attention_dim": (
            sizes.joint_width,
            transformer.config.joint_attention_dim,
        ),
    }
    for what, (given, needed) in checks.items():
        if given != needed:
            raise ConfigError(
                f"the checkpoint does not fit policy.sd3_path or policy.qwen_path: {what} are {given} and {needed}"
            )
    if sizes.num_fused > (most := len(range(num_layers - 1, 0, -FUSION_STRIDE))):
        raise ConfigError(
            f"the checkpoint's projector_1 takes {sizes.num_fused} hidden states, every {FUSION_STRIDE}th, and the language "
            f"model of policy.qwen_path has only {most} of them in its {num_layers} layers"
        )
