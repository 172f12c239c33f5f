"""The networks of a Mixture-of-Transformers with what is around them: words, codec, ways of taking images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainer.config import ConfigError
from trainer.config.mot import MotConfig
from trainer.data.sequences import Resize, SequencePlan
from trainer.policies.base import Laying, PackOutput
from trainer.policies.lora import autocast
from trainer.policies.placing import place
from trainer.policies.unified.attention import Way
from trainer.policies.unified.mot.codec import Codec
from trainer.policies.unified.mot.lay import LaidRow, Ways, lay_row
from trainer.policies.unified.mot.network import MotNetwork
from trainer.policies.unified.mot.pack import pack_rows, read_pack
from trainer.policies.unified.mot.parts import held_as, part_of
from trainer.policies.unified.mot.words import Words

# As UniReason's recipes scale images, where a plan says nothing else; a small model goes by what positions it has.
_SEEN_LONGEST, _SEEN_SHORTEST = 532, 224
_LATENT_SHORTEST = 512


class MotModel:
    """What a policy drives: the network, and the frozen codec around it.

    Attributes:
        base: the folder that it started from; None for a fresh one.
    """

    def __init__(
        self,
        network: MotNetwork,
        codec: Codec,
        words: Words,
        config: MotConfig,
        device: torch.device,
        *,
        about: str,
        base: Path | None = None,
    ) -> None:
        """Raises ConfigError where attention cannot be computed in the wanted way on the device."""
        if config.attention == "flex" and device.type != "cuda":
            raise ConfigError(
                f"policy.attention = flex has no gradients on {device.type}; set it to auto, or to rows (each row by itself)"
            )
        self.network = network.eval()
        place(self.network, device)
        self.network.recompute, self.network.constant_words = config.gradient_checkpointing, config.constant_words
        self.codec, self.words, self.config, self.device = codec, words, config, device
        self.about, self.base = about, base
        self.ways = _ways(network, codec)
        _freeze(self.network, config)

    @property
    def way(self) -> Way:
        """How attention is computed."""
        if self.config.attention != "auto":
            return self.config.attention
        return "flex" if self.device.type == "cuda" else "rows"

    def lay(self, plan: SequencePlan, laying: Laying) -> LaidRow:
        """As `trainer.policies.base.ReadsPacks`. Raises ConfigError naming the row."""
        return lay_row(plan, laying, self.words, self.ways)

    def read(self, rows: Sequence[LaidRow]) -> PackOutput:
        """As `trainer.policies.base.ReadsPacks`."""
        given = pack_rows(rows, self.codec, self.network.geometry, self.device, self.way)
        with autocast(self.config, self.device):
            return read_pack(self.network, given)

    @torch.no_grad()
    def to_latents(self, pixels_BHWC: Tensor) -> Tensor:
        """Images (B, H, W, 3), uint8, to clean latents (B, channels, h, w), float32."""
        return self.codec.encode(pixels_BHWC)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Clean latents to images (B, H, W, 3), uint8."""
        return self.codec.decode(latents)


def _freeze(network: MotNetwork, config: MotConfig) -> None:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(part_of(name) not in (None, *config.freeze))
        parameter.data = parameter.data.to(held_as(name, config))


def _ways(network: MotNetwork, codec: Codec) -> Ways:
    geometry, token_side = network.geometry, codec.factor * codec.latent_patch
    vision = geometry.vision
    longest = min(codec.image_size, token_side * geometry.max_latent_size)
    seen = vision.patch_size * vision.side
    return Ways(
        seen=Resize(vision.patch_size, min(seen, _SEEN_LONGEST), min(seen, _SEEN_SHORTEST)),
        latent=Resize(token_side, longest, min(longest, _LATENT_SHORTEST)),
        seen_patch=vision.patch_size,
        token_side=token_side,
        seen_side=vision.side,
        latent_side=geometry.max_latent_size,
        token_channels=geometry.token_channels,
    )
