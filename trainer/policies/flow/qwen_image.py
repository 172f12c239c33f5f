"""Qwen-Image, from a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trainer.config import QwenImageConfig
from trainer.policies.flow.diffusers_export import EXPORTERS
from trainer.policies.flow.encoders import TextEncoders
from trainer.policies.flow.family import FLOW
from trainer.policies.flow.frozen import (
    check_folder,
    check_size,
    load_network,
    load_part,
    load_pipeline,
    own_noise_levels,
    pixel_parts,
    to_pixels,
)
from trainer.policies.flow.memory import working_bytes
from trainer.policies.flow.packing import PATCH, pack, unpack
from trainer.policies.flow.policy import Conditioning
from trainer.policies.flow.sources import refuse_sources
from trainer.policies.flow.text_limits import qwen
from trainer.policies.flow.upload import upload_once
from trainer.policies.lora import adapters_of, autocast, compute_dtype, prepare_network, weight_dtype
from trainer.policies.registry import Entry
from trainer.policies.sizes import folder_sizes
from trainer.types import Prompt


class QwenImageFlow:
    """Implements `trainer.policies.flow.policy.FlowModel`. Latents (C, H/8, W/8); the transformer sees them packed."""

    def __init__(self, config: QwenImageConfig, device: torch.device) -> None:
        """Raises ConfigError: the folder is none of Qwen-Image."""
        check_folder(config, "QwenImage")
        self.config, self.device = config, device
        transformer = load_network(QwenImageTransformer2DModel, config, weight_dtype(config, config.lora))
        vae = load_part(AutoencoderKLQwenImage, config, "vae", compute_dtype(config))
        pipeline = load_pipeline(QwenImagePipeline, config, {"transformer": transformer, "vae": vae})
        self.about = f"Qwen-Image weights of {config.pretrained}{adapters_of(config.lora)}."
        self.transformer = transformer.config
        self.scheduler = pipeline.scheduler.config
        self.own_size: int = pipeline.default_sample_size * pipeline.vae_scale_factor
        self.vae = ImageOfVideoAutoencoder(vae, device)
        self.texts = self._text_encoder(pipeline)
        self.network: nn.Module = prepare_network(transformer, config, config.lora, device)

    def _text_encoder(self, pipeline: Any) -> TextEncoders:
        length = self.config.max_sequence_length

        def embed(text: str) -> Mapping[str, Tensor]:
            states, _ = pipeline.encode_prompt(text, device=self.device, max_sequence_length=length)
            return {"states": states[0]}

        modules = {"text_encoder": pipeline.text_encoder}
        return TextEncoders(modules, embed, self.config, self.device, {"max_sequence_length": length})

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        refuse_sources(prompts, "qwen_image")

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, ...]:
        height, width = height or self.own_size, width or self.own_size
        check_size(height, width, PATCH * self.vae.factor)
        return self.transformer.in_channels // PATCH**2, height // self.vae.factor, width // self.vae.factor

    def noise_levels(self, num_steps: int, height: int | None, width: int | None) -> list[float]:
        height, width = height or self.own_size, width or self.own_size
        num_tokens = height * width // (PATCH * self.vae.factor) ** 2
        return own_noise_levels(self.scheduler, num_steps, num_tokens, even=True)

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Guidance that keeps the norm of every token's conditional velocity, as Qwen-Image is sampled."""
        guided = pack(unconditional + scale * (conditional - unconditional))
        norm = pack(conditional).norm(dim=-1, keepdim=True)
        return unpack(guided * (norm / guided.norm(dim=-1, keepdim=True)), *conditional.shape[-2:])

    def encode(self, prompts_B: Sequence[Prompt]) -> Conditioning:
        """`states` (B, L, D), padded to the longest prompt, and `mask` (B, L) where there is padding to hide."""
        return upload_once([prompt.text for prompt in prompts_B], self._joined, self.device)

    def _joined(self, texts: Sequence[str]) -> Conditioning:
        states = [row["states"] for row in self.texts(texts)]
        lengths = torch.tensor([len(each) for each in states])
        conditioning = {"states": pad_sequence(states, batch_first=True)}
        if lengths.min() < lengths.max():
            conditioning["mask"] = torch.arange(int(lengths.max())) < lengths[:, None]
        return conditioning

    def expect(self, batches: Sequence[Sequence[Prompt]]) -> None:
        self.texts.expect(batches)

    def velocity(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = x.shape[-2:]
        with autocast(self.config, self.device):
            out: Tensor = network(
                hidden_states=pack(x).to(compute_dtype(self.config)),
                encoder_hidden_states=conditioning["states"],
                encoder_hidden_states_mask=conditioning.get("mask"),
                timestep=sigma_B,
                img_shapes=[[(1, height // PATCH, width // PATCH)]] * len(x),
                return_dict=False,
            )[0]
        return unpack(out.float(), height, width)

    def to_latents(self, pixels_BHWC: Tensor) -> Tensor:
        return self.vae.encode(pixels_BHWC)

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)


class ImageOfVideoAutoencoder:
    """Qwen-Image's autoencoder, of videos, for images: one frame; latents are (z - mean_c) / std_c per channel."""

    def __init__(self, vae: Any, device: torch.device) -> None:
        self.vae = vae.eval().requires_grad_(False).to(device)
        self.factor: int = 2 ** len(vae.temperal_downsample)
        self._mean = torch.tensor(vae.config.latents_mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(vae.config.latents_std, device=device).view(-1, 1, 1)

    @torch.no_grad()
    def encode(self, pixels_BHWC: Tensor) -> Tensor:
        """uint8 images to float32 latents (B, C, H/factor, W/factor): the posterior's mean, normalised."""
        images = pixels_BHWC.permute(0, 3, 1, 2).to(self.vae.device, self.vae.dtype) / 127.5 - 1
        parts = pixel_parts(images, images[0, 0].numel())
        means = [self.vae.encode(part.unsqueeze(2)).latent_dist.mode().squeeze(2) for part in parts]
        return (torch.cat(means).float() - self._mean) / self._std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to uint8 images (B, H, W, 3)."""
        frames = (latents * self._std + self._mean).to(self.vae.dtype).unsqueeze(2)
        parts = pixel_parts(frames, latents[0, 0].numel() * self.factor**2)
        return torch.cat([to_pixels(self.vae.decode(part, return_dict=False)[0].squeeze(2)) for part in parts])


ENTRY = Entry(
    family=FLOW,
    build=QwenImageFlow,
    exporters=EXPORTERS,
    sizes=folder_sizes,
    working=working_bytes,
    text_limits=qwen,
)
