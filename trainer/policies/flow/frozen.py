"""The frozen parts around a diffusers transformer, except its text encoders: folder, autoencoder, schedule, source images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.config import ConfigError, DiffusersConfig, NetworkConfig
from trainer.policies.lora import compute_dtype
from trainer.policies.placing import hold_as, waits
from trainer.policies.weight_files import variant_of, weight_files
from trainer.types import Prompt
from wire import images

_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # as Pillow raises of damaged files
PIXELS_AT_ONCE = 4 * 1024 * 1024  # decoded together: an autoencoder's activations are far larger than its images


def load_part(kind: Any, config: DiffusersConfig, name: str, dtype: torch.dtype) -> Any:
    """One model of the folder, by its subfolder's name, with every one of its weights. Raises ConfigError."""
    place = f"policy.pretrained = {config.pretrained}: its {name}"
    try:
        part, found = kind.from_pretrained(
            config.pretrained,
            subfolder=name,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            variant=variant_of(Path(config.pretrained) / name),
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place} cannot be loaded as {kind.__name__}: {error}") from error
    if missing := sorted(found["missing_keys"]):  # would stay random
        raise ConfigError(
            f"{place} lacks {len(missing)} weights, first {missing[0]}: save or download the folder again"
        )
    return part


def load_network(kind: Any, config: DiffusersConfig, dtype: torch.dtype) -> Any:
    """The folder's transformer, to be held as `dtype`; one that waits for its engine is mapped from its files in their own type.

    Raises:
        ConfigError: it cannot be loaded, or lacks a weight.
    """
    if not waits():
        return load_part(kind, config, "transformer", dtype)
    folder = Path(config.pretrained) / "transformer"
    try:
        with init_empty_weights(include_buffers=False):  # buffers that no file holds are computed in float32, as always
            network = kind.from_config(kind.load_config(folder, local_files_only=True))
        state = {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}
        network.load_state_dict(state, assign=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"policy.pretrained = {config.pretrained}: its transformer cannot be loaded as {kind.__name__}: {error}"
        ) from error
    hold_as(network, dtype)
    for buffer in network.buffers():
        buffer.data = buffer.data.to(dtype) if buffer.is_floating_point() else buffer.data
    return network


def load_pipeline(kind: Any, config: DiffusersConfig, parts: Mapping[str, Any]) -> Any:
    """The diffusers pipeline of the folder around `parts`, for its text encoding. Raises ConfigError."""
    base = Path(config.pretrained)
    variants = {variant_of(path) for path in sorted(base.glob("text_encoder*"))} - {None}
    try:
        return kind.from_pretrained(
            config.pretrained,
            dtype=compute_dtype(config),
            local_files_only=True,
            use_safetensors=True,
            variant=next(iter(variants), None),  # asked of the parts that have it alone
            **parts,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"policy.pretrained = {config.pretrained} cannot be loaded as {kind.__name__}: {error}"
        ) from error


def check_folder(config: DiffusersConfig, family: str) -> None:
    """Raises ConfigError where the folder is no diffusers pipeline whose class begins with `family`."""
    index = Path(config.pretrained) / "model_index.json"
    try:
        name = str(json.loads(index.read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"policy.pretrained = {config.pretrained} is no diffusers folder (its model_index.json cannot be read): save "
            "one with save_pretrained, or download the model's repository there"
        ) from error
    if not name.startswith(family):
        raise ConfigError(
            f"policy.pretrained = {config.pretrained} holds a {name}, not a {family}Pipeline: choose its policy.type"
        )


def stack(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of equal shapes as a batch."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class Autoencoder:
    """A diffusers AutoencoderKL: latents are (z - shift) * scale; both directions ignore an image's neighbours."""

    def __init__(self, vae: Any, device: torch.device) -> None:
        self.vae = vae.eval().requires_grad_(False).to(device)
        self.factor: int = 2 ** (len(vae.config.block_out_channels) - 1)
        self._scale: float = vae.config.scaling_factor
        self._shift: float = vae.config.shift_factor or 0.0

    @torch.no_grad()
    def encode(self, pixels_BHWC: Tensor) -> Tensor:
        """uint8 images to float32 latents (B, C, H/factor, W/factor): the posterior's mean, scaled."""
        images = pixels_BHWC.permute(0, 3, 1, 2).to(self.vae.device, self.vae.dtype) / 127.5 - 1
        means = [self.vae.encode(part).latent_dist.mode() for part in pixel_parts(images, images[0, 0].numel())]
        return (torch.cat(means).float() - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to uint8 images (B, H, W, 3)."""
        latents = (latents / self._scale + self._shift).to(self.vae.dtype)
        pixels = latents[0, 0].numel() * self.factor**2
        return torch.cat(
            [to_pixels(self.vae.decode(part, return_dict=False)[0]) for part in pixel_parts(latents, pixels)]
        )


def vae_dtype(vae_config: Mapping[str, Any], config: NetworkConfig) -> torch.dtype:
    """Float32 where the autoencoder is known to overflow in 16 bit."""
    return torch.float32 if vae_config.get("force_upcast") else compute_dtype(config)


def pixel_parts(batch: Tensor, pixels: int) -> Sequence[Tensor]:
    """A batch in parts that an autoencoder takes at once, by the pixels of an image."""
    return list(batch.split(max(1, PIXELS_AT_ONCE // pixels)))


def to_pixels(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def own_noise_levels(scheduler: Mapping[str, Any], num_steps: int, num_tokens: int, *, even: bool) -> list[float]:
    """The noise levels that a model's pipeline visits, as diffusers' scheduler makes them: `num_steps + 1` from 1 to 0.

    Dynamic shifting: the shift (arXiv 2403.03206 eq. 23) is exp(mu), and mu grows linearly with the latent tokens, as FLUX has it.

    Args:
        scheduler: the configuration of a FlowMatchEulerDiscreteScheduler.
        even: the pipeline gives the scheduler evenly spaced levels to bend (FLUX, Qwen-Image); otherwise the scheduler
            spaces them itself, so that the last level above 0 is almost 0 (SD3).
    """
    flow = FlowMatchEulerDiscreteScheduler.from_config(scheduler)
    mu = None
    if flow.config.use_dynamic_shifting:
        few, many = flow.config.base_image_seq_len, flow.config.max_image_seq_len
        low, high = flow.config.base_shift, flow.config.max_shift
        mu = low + (high - low) * (num_tokens - few) / (many - few)
    levels = np.linspace(1.0, 1 / num_steps, num_steps) if even else None
    flow.set_timesteps(num_steps, sigmas=levels, mu=mu)
    visited: list[float] = flow.sigmas.tolist()
    return visited


def check_size(height: int, width: int, multiple: int, largest: int | None = None) -> None:
    """Raises ConfigError where an image size does not fit, with the nearest that does."""
    for name, value in (("height", height), ("width", width)):
        fit = max(multiple, round(value / multiple) * multiple)
        if largest is not None:
            fit = min(fit, largest)
        if value % multiple or (largest is not None and value > largest):
            bound = f" up to {largest}" if largest is not None else ""
            raise ConfigError(
                f"{name} = {value} pixels: this model draws multiples of {multiple}{bound}; the nearest is {fit}"
            )


def fitted(size: tuple[int, int], area: int, multiple: int) -> tuple[int, int]:
    """An image's size brought to about `area` pixels, little distorted, its sides multiples of `multiple`."""
    scale = math.sqrt(area / (size[0] * size[1]))
    width, height = (max(1, round(side * scale / multiple)) * multiple for side in size)
    return width, height


def read_image(path: str | Path, area: int, multiple: int) -> Tensor:
    """An upright RGB image (H, W, 3), uint8, `fitted`. Raises OSError or ValueError naming a file that is cut off."""
    rgb = images.read_picture(Path(path)).convert("RGB")
    width, height = fitted(rgb.size, area, multiple)
    resized = rgb.resize((width, height), Image.Resampling.LANCZOS)
    return torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(height, width, 3)


def check_sources(prompts: Sequence[Prompt], area: int, multiple: int, largest: int) -> None:
    """Raises ConfigError naming the first source image that is none, or has a side above `largest` pixels once it is
    `fitted`: the model's table of positions ends there."""
    first_uses: dict[str, Prompt] = {}
    for prompt in prompts:
        for path in prompt.source_images:
            first_uses.setdefault(path, prompt)
    for path, prompt in first_uses.items():
        size = _image_size(path, prompt)
        width, height = fitted(size, area, multiple)
        if max(width, height) > largest:
            raise ConfigError(
                f"source image {path} has {size[0]} x {size[1]} pixels and would be brought to {width} x {height}: this "
                f"model places at most {largest} on a side; crop it to a shape less narrow, or leave it out"
            )


def _image_size(path: str, prompt: Prompt) -> tuple[int, int]:
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            return image.size
    except _BROKEN as error:
        raise ConfigError(
            f"prompt {prompt.id!r} of data set {prompt.dataset!r} has the source image {path}, which cannot be read: "
            f"{error}; replace the file or leave the prompt out"
        ) from error
