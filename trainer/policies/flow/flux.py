"""FLUX.1, from a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from trainer.config import ConfigError, FluxConfig
from trainer.policies.flow.diffusers_export import EXPORTERS
from trainer.policies.flow.encoders import TextEncoders
from trainer.policies.flow.family import FLOW
from trainer.policies.flow.frozen import (
    Autoencoder,
    check_folder,
    check_size,
    load_network,
    load_part,
    load_pipeline,
    own_noise_levels,
    stack,
    vae_dtype,
)
from trainer.policies.flow.memory import working_bytes
from trainer.policies.flow.packing import PATCH, pack, unpack
from trainer.policies.flow.policy import Conditioning
from trainer.policies.flow.sources import refuse_sources
from trainer.policies.flow.text_limits import clip_and_t5
from trainer.policies.flow.upload import upload_once
from trainer.policies.lora import adapters_of, autocast, compute_dtype, prepare_network, weight_dtype
from trainer.policies.registry import Entry
from trainer.policies.sizes import folder_sizes
from trainer.types import Prompt

_DEV_GUIDANCE = 3.5


class FluxFlow:
    """Implements `trainer.policies.flow.policy.FlowModel`. Latents (C, H/8, W/8); the transformer sees them packed."""

    def __init__(self, config: FluxConfig, device: torch.device) -> None:
        """Raises ConfigError: the folder is none of FLUX.1, or a distilled guidance is asked of a model without one."""
        check_folder(config, "Flux")
        self.config, self.device = config, device
        transformer = load_network(FluxTransformer2DModel, config, weight_dtype(config, config.lora))
        vae_config = AutoencoderKL.load_config(config.pretrained, subfolder="vae", local_files_only=True)
        vae = load_part(AutoencoderKL, config, "vae", vae_dtype(vae_config, config))
        pipeline = load_pipeline(FluxPipeline, config, {"transformer": transformer, "vae": vae})
        self.about = f"FLUX.1 weights of {config.pretrained}{adapters_of(config.lora)}."
        self.transformer = transformer.config
        self.scheduler = pipeline.scheduler.config
        self.own_size: int = pipeline.default_sample_size * pipeline.vae_scale_factor
        self.guidance = self._distilled_guidance()
        self.vae = Autoencoder(vae, device)
        self.texts = self._text_encoders(pipeline)
        self.network: nn.Module = prepare_network(transformer, config, config.lora, device)

    def _distilled_guidance(self) -> float | None:
        """The guidance that the network takes as an input; it costs no second pass."""
        asked = self.config.distilled_guidance
        if self.transformer.guidance_embeds:
            return _DEV_GUIDANCE if asked is None else asked
        if asked is not None:
            raise ConfigError(
                f"policy.distilled_guidance = {asked:g}, but the model in {self.config.pretrained} was distilled without "
                "one (its guidance_embeds is false): leave it out"
            )
        return None

    def _text_encoders(self, pipeline: Any) -> TextEncoders:
        length = self.config.max_sequence_length

        def embed(text: str) -> Mapping[str, Tensor]:
            states, pooled, _ = pipeline.encode_prompt(text, device=self.device, max_sequence_length=length)
            return {"states": states[0], "pooled": pooled[0]}

        modules = {name: getattr(pipeline, name) for name in ("text_encoder", "text_encoder_2")}
        return TextEncoders(modules, embed, self.config, self.device, {"max_sequence_length": length})

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        refuse_sources(prompts, "flux")

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, ...]:
        height, width = height or self.own_size, width or self.own_size
        check_size(height, width, PATCH * self.vae.factor)
        return self.transformer.in_channels // PATCH**2, height // self.vae.factor, width // self.vae.factor

    def noise_levels(self, num_steps: int, height: int | None, width: int | None) -> list[float]:
        height, width = height or self.own_size, width or self.own_size
        num_tokens = height * width // (PATCH * self.vae.factor) ** 2
        return own_noise_levels(self.scheduler, num_steps, num_tokens, even=True)

    def encode(self, prompts_B: Sequence[Prompt]) -> Conditioning:
        return upload_once([prompt.text for prompt in prompts_B], lambda texts: stack(self.texts(texts)), self.device)

    def expect(self, batches: Sequence[Sequence[Prompt]]) -> None:
        self.texts.expect(batches)

    def velocity(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = x.shape[-2:]
        states = conditioning["states"]
        with autocast(self.config, self.device):
            out: Tensor = network(
                hidden_states=pack(x).to(compute_dtype(self.config)),
                encoder_hidden_states=states,
                pooled_projections=conditioning["pooled"],
                timestep=sigma_B,
                guidance=None if self.guidance is None else torch.full_like(sigma_B, self.guidance),
                img_ids=_image_ids(height // PATCH, width // PATCH, x.device),
                txt_ids=torch.zeros(states.shape[1], 3, device=x.device),
                return_dict=False,
            )[0]
        return unpack(out.float(), height, width)

    def to_latents(self, pixels_BHWC: Tensor) -> Tensor:
        return self.vae.encode(pixels_BHWC)

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)


def _image_ids(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows * columns, 3): the row and the column of each token, for the rotary position embedding."""
    row = torch.arange(rows, dtype=torch.float32, device=device)
    column = torch.arange(columns, dtype=torch.float32, device=device)
    places = torch.meshgrid(row, column, indexing="ij")
    return torch.stack([torch.zeros_like(places[0]), *places], dim=-1).flatten(0, 1)


ENTRY = Entry(
    family=FLOW,
    build=FluxFlow,
    exporters=EXPORTERS,
    sizes=folder_sizes,
    working=working_bytes,
    text_limits=partial(clip_and_t5, t5="tokenizer_2"),
)
