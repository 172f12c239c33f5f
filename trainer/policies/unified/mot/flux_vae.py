"""FLUX's autoencoder from `ae.safetensors`, in the names that it is published in, as diffusers' class.

The file says nothing of the network's sizes; the shapes of its tensors do. Queries, keys and values of its two attentions are
convolutions of one pixel there and matrices in diffusers: the same numbers.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.config import ConfigError
from trainer.policies.flow.frozen import Autoencoder

FLUX_FILE = "ae.safetensors"
_SCALE, _SHIFT = 0.3611, 0.1159  # of its latents (z - shift) * scale, as published
_GROUPS = 32  # of its norms
_LONGEST = 1024  # pixels a side that UniReason's recipes scale images to
_NAMES = (
    ("mid.block_1.", "mid_block.resnets.0."),
    ("mid.block_2.", "mid_block.resnets.1."),
    ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."),
    ("mid.attn_1.q.", "mid_block.attentions.0.to_q."),
    ("mid.attn_1.k.", "mid_block.attentions.0.to_k."),
    ("mid.attn_1.v.", "mid_block.attentions.0.to_v."),
    ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."),
    ("norm_out.", "conv_norm_out."),
    ("nin_shortcut.", "conv_shortcut."),
    ("downsample.conv.", "downsamplers.0.conv."),
    ("upsample.conv.", "upsamplers.0.conv."),
)
_BLOCK = re.compile(r"(encoder|decoder)\.(down|up)\.(\d+)\.(?:block\.(\d+)\.)?")


class FluxCodec:
    """Implements `trainer.policies.unified.mot.codec.Codec`: 16 numbers for 8 x 8 pixels, of which 2 x 2 make a token."""

    latent_patch = 2
    image_size = _LONGEST

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._path = path
        self._vae = Autoencoder(read_vae(path).to(dtype), device)
        self.factor = self._vae.factor
        self.channels: int = self._vae.vae.config.latent_channels

    def encode(self, pixels_BHWC: Tensor) -> Tensor:
        return self._vae.encode(pixels_BHWC)

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(latents)

    def save(self, folder: Path) -> None:
        shutil.copyfile(self._path, folder / FLUX_FILE)


def read_vae(path: Path) -> Any:
    """The autoencoder, with every one of its weights. Raises ConfigError where the file cannot be read or is of another."""
    from diffusers import AutoencoderKL

    try:
        tensors = load_file(path)
        with torch.device("meta"):
            vae: Any = AutoencoderKL(**vae_settings(tensors))
        vae.load_state_dict(to_diffusers(tensors, len(vae.config.block_out_channels)), assign=True)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"{path} cannot be read as FLUX's autoencoder: {first}; download it again") from error
    return vae


def vae_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What diffusers' class asks for, from the shapes. Raises KeyError where a tensor is missing that says it."""
    found = [
        match for name in tensors if (match := re.match(r"encoder\.down\.(\d+)\.block\.(\d+)\.", name)) is not None
    ]
    levels = max((int(match[1]) for match in found), default=-1) + 1
    widths = [tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    return {
        "block_out_channels": widths,
        "layers_per_block": max((int(match[2]) for match in found), default=0) + 1,
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": _GROUPS,
        "scaling_factor": _SCALE,
        "shift_factor": _SHIFT,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "force_upcast": False,
    }


def to_diffusers(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The same numbers by diffusers' names.

    Args:
        levels: resolutions; the decoder's are counted from the other end.
    """
    return {diffusers_name(name, levels): _matrix(name, tensor) for name, tensor in tensors.items()}


def diffusers_name(name: str, levels: int) -> str:
    """diffusers' name of a published tensor."""
    if (match := _BLOCK.match(name)) is not None:
        side, way, level, resnet = match.groups()
        number = int(level) if way == "down" else levels - 1 - int(level)
        inside = "" if resnet is None else f"resnets.{resnet}."
        name = f"{side}.{way}_blocks.{number}.{inside}{name[match.end() :]}"
    for theirs, ours in _NAMES:
        name = name.replace(f".{theirs}", f".{ours}")
    return name


def _matrix(name: str, tensor: Tensor) -> Tensor:
    return tensor[:, :, 0, 0] if ".attn_1." in name and tensor.dim() == 4 else tensor
