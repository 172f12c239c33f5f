"""Stable Diffusion 3 and 3.5, from a diffusers folder; with source images, its Kontext editing variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from torch import Tensor, nn

from trainer.config import Sd3Config
from trainer.policies.flow.diffusers_export import EXPORTERS
from trainer.policies.flow.embedding_cache import EmbeddingCache
from trainer.policies.flow.encoders import TextEncoders
from trainer.policies.flow.family import FLOW
from trainer.policies.flow.frozen import (
    Autoencoder,
    check_folder,
    check_size,
    check_sources,
    load_network,
    load_part,
    load_pipeline,
    own_noise_levels,
    read_image,
    stack,
    vae_dtype,
)
from trainer.policies.flow.memory import working_bytes
from trainer.policies.flow.policy import Conditioning
from trainer.policies.flow.sd3_tokens import Sd3Transformer, join_sources
from trainer.policies.flow.text_limits import clip_and_t5
from trainer.policies.flow.upload import upload_once
from trainer.policies.lora import adapters_of, autocast, compute_dtype, prepare_network, weight_dtype
from trainer.policies.registry import Entry
from trainer.policies.sizes import folder_sizes
from trainer.types import Prompt

_SOURCE_INPUTS = ("sources", "source_grids", "source_mask")


class Sd3Flow:
    """Implements `trainer.policies.flow.policy.FlowModel`. Latents (C, H/8, W/8)."""

    def __init__(self, config: Sd3Config, device: torch.device) -> None:
        """Raises ConfigError: the folder is none of SD3."""
        check_folder(config, "StableDiffusion3")
        self.config, self.device = config, device
        transformer = load_network(Sd3Transformer, config, weight_dtype(config, config.lora))
        vae_config = AutoencoderKL.load_config(config.pretrained, subfolder="vae", local_files_only=True)
        vae = load_part(AutoencoderKL, config, "vae", vae_dtype(vae_config, config))
        absent = dict.fromkeys(
            n for n in ("text_encoder_3", "tokenizer_3") if not (Path(config.pretrained) / n).is_dir()
        )
        parts = {"transformer": transformer, "vae": vae, **absent}
        pipeline = load_pipeline(StableDiffusion3Pipeline, config, parts)
        self.about = f"Stable Diffusion 3 weights of {config.pretrained}{adapters_of(config.lora)}."
        self.transformer = transformer.config
        self.scheduler = pipeline.scheduler.config
        self.vae = Autoencoder(vae, device)
        self.sources = EmbeddingCache("", max_bytes=config.embedding_memory_mb * 2**20)
        self.texts = self._text_encoders(pipeline)
        self.network: nn.Module = prepare_network(transformer, config, config.lora, device)

    def _text_encoders(self, pipeline: Any) -> TextEncoders:
        names = [name for name in ("text_encoder", "text_encoder_2", "text_encoder_3") if getattr(pipeline, name)]
        length = self.config.max_sequence_length

        def embed(text: str) -> Mapping[str, Tensor]:
            states, _, pooled, _ = pipeline.encode_prompt(
                text, None, None, device=self.device, do_classifier_free_guidance=False, max_sequence_length=length
            )
            return {"states": states[0], "pooled": pooled[0]}

        modules = {name: getattr(pipeline, name) for name in names}
        return TextEncoders(modules, embed, self.config, self.device, {"max_sequence_length": length})

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Any text can be drawn, and sources but the narrowest."""
        own, multiple = self._source_size
        check_sources(prompts, own**2, multiple, self.transformer.pos_embed_max_size * multiple)

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, ...]:
        height, width = self._size(height, width)
        multiple = self.vae.factor * self.transformer.patch_size
        check_size(height, width, multiple, self.transformer.pos_embed_max_size * multiple)
        return self.transformer.in_channels, height // self.vae.factor, width // self.vae.factor

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        own = self.transformer.sample_size * self.vae.factor
        return height or own, width or own

    def noise_levels(self, num_steps: int, height: int | None, width: int | None) -> list[float]:
        height, width = self._size(height, width)
        num_tokens = height * width // (self.vae.factor * self.transformer.patch_size) ** 2
        return own_noise_levels(self.scheduler, num_steps, num_tokens, even=False)

    def encode(self, prompts_B: Sequence[Prompt]) -> Conditioning:
        return upload_once([(prompt.text, prompt.source_images) for prompt in prompts_B], self._joined, self.device)

    def _joined(self, asked: Sequence[tuple[str, Sequence[str]]]) -> Conditioning:
        texts = stack(self.texts([text for text, _ in asked]))
        latents = [[self._source(path) for path in paths] for _, paths in asked]
        return {**texts, **join_sources(latents, self.transformer.patch_size)}

    def expect(self, batches: Sequence[Sequence[Prompt]]) -> None:
        self.texts.expect(batches)

    @property
    def _source_size(self) -> tuple[int, int]:
        """Side of the model's own images, and what sides must be multiples of, in pixels."""
        return self.transformer.sample_size * self.vae.factor, self.vae.factor * self.transformer.patch_size

    def _source(self, path: str) -> Tensor:
        """Latents (C, h, w) of a source image, brought to the area of the model's own images."""
        own, multiple = self._source_size

        def encode(_: str) -> Mapping[str, Tensor]:
            return {"latents": self.vae.encode(read_image(path, own**2, multiple)[None])[0]}

        stat = Path(path).stat()
        return self.sources.get(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}", encode)["latents"]

    def velocity(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        with autocast(self.config, self.device):
            out: Tensor = network(
                hidden_states=x.to(compute_dtype(self.config)),
                encoder_hidden_states=conditioning["states"],
                pooled_projections=conditioning["pooled"],
                timestep=sigma_B * 1000.0,
                return_dict=False,
                **{name: conditioning[name] for name in _SOURCE_INPUTS if name in conditioning},
            )[0]
        return out.float()

    def to_latents(self, pixels_BHWC: Tensor) -> Tensor:
        return self.vae.encode(pixels_BHWC)

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)


ENTRY = Entry(
    family=FLOW,
    build=Sd3Flow,
    exporters=EXPORTERS,
    sizes=folder_sizes,
    working=working_bytes,
    text_limits=partial(clip_and_t5, t5="tokenizer_3"),
)
