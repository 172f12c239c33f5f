"""What images are drawn through: FLUX's autoencoder, or a linear codec of patches for small models. Never trained."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from machine.transfers import sent
from trainer.config import ConfigError
from trainer.policies.pca_codec import PcaCodec
from trainer.policies.unified.mot.geometry import CODEC_CHANNELS, PATCH
from trainer.quickstart.scenes import draw_scene, render

LINEAR_FILE = "codec.safetensors"
_FITTED_TO = 512  # scenes


class Codec(Protocol):
    """Images (B, H, W, 3), uint8, to latents (B, channels, H / factor, W / factor), float32, and back.

    Attributes:
        factor: pixels a side of a latent.
        latent_patch: latents a side of a token.
        image_size: the longer side of the images that it usually draws, in pixels.
    """

    factor: int
    channels: int
    latent_patch: int
    image_size: int

    def encode(self, pixels_BHWC: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def save(self, folder: Path) -> None: ...


class LinearCodec:
    """Principal components of patches of 8 x 8 pixels, fitted to drawings of scenes."""

    factor = PATCH
    channels = CODEC_CHANNELS
    latent_patch = 1

    def __init__(self, image_size: int, device: torch.device) -> None:
        self.image_size = image_size
        self.pca = PcaCodec(PATCH, CODEC_CHANNELS).to(device).eval()
        self._device = device

    @classmethod
    def fitted(cls, image_size: int, device: torch.device) -> LinearCodec:
        """To drawings of scenes, always the same."""
        made, rng = cls(image_size, device), random.Random(0)
        scenes = np.stack([render(draw_scene(rng, heldout=False), rng) for _ in range(_FITTED_TO)])
        made.pca.fit(_scaled(torch.from_numpy(scenes), device))
        return made

    @classmethod
    def load(cls, path: Path, device: torch.device) -> LinearCodec:
        """From a file that `save` wrote. Raises ConfigError where it is none."""
        try:
            with safe_open(str(path), framework="pt") as file:
                made = cls(int((file.metadata() or {})["image_size"]), device)
                made.pca.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"{path} cannot be read as a codec of patches: {error}; write the folder again"
            ) from error
        return made

    @torch.no_grad()
    def encode(self, pixels_BHWC: Tensor) -> Tensor:
        return self.pca.encode(_scaled(pixels_BHWC, self._device))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        images = self.pca.decode(latents.float())
        return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def save(self, folder: Path) -> None:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.pca.state_dict().items()}
        save_file(tensors, folder / LINEAR_FILE, metadata={"image_size": str(self.image_size)})


def _scaled(pixels_BHWC: Tensor, device: torch.device) -> Tensor:
    """(B, H, W, 3), uint8, to (B, 3, H, W) in [-1, 1]."""
    return sent(pixels_BHWC, device).permute(0, 3, 1, 2).float() / 127.5 - 1
