"""DeepGen as a rectified-flow generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.config import DeepGenConfig
from trainer.policies.flow.deepgen.encoder import PromptEncoder
from trainer.policies.flow.deepgen.loading import load
from trainer.policies.flow.deepgen.sources import SIDE_MULTIPLE
from trainer.policies.flow.frozen import Autoencoder, check_size, check_sources, own_noise_levels
from trainer.policies.flow.policy import Conditioning
from trainer.policies.lora import adapters_of, autocast, prepare_network
from trainer.types import Prompt


class DeepGenFlow:
    """Implements `trainer.policies.flow.policy.FlowModel`. The transformer is trained; all that reads the prompt is frozen."""

    def __init__(self, config: DeepGenConfig, device: torch.device) -> None:
        """Raises ConfigError: a folder or the checkpoint is missing or does not fit, with the remedy."""
        loaded = load(config, device)
        self.config, self.device = config, device
        self.reads_neighbours = config.conditioning == "padded"
        self.about = f"DeepGen weights of {config.checkpoint}{adapters_of(config.lora)}: {loaded.report}."
        self.networks = loaded.networks
        self.transformer = self.networks.transformer.config
        self.scheduler = loaded.scheduler
        self.vae = Autoencoder(self.networks.vae, device)
        self.encode_prompts = PromptEncoder(self.networks, self.vae, loaded.tokenizer, config, loaded.files)
        self.network: nn.Module = prepare_network(self.networks.transformer, config, config.lora, device)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Any text can be drawn, and sources but the narrowest."""
        limit = self.transformer.pos_embed_max_size * self.vae.factor * self.transformer.patch_size
        check_sources(prompts, self.config.image_size**2, SIDE_MULTIPLE, limit)

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, ...]:
        height, width = height or self.config.image_size, width or self.config.image_size
        multiple = self.vae.factor * self.transformer.patch_size
        check_size(height, width, multiple, self.transformer.pos_embed_max_size * multiple)
        return self.transformer.in_channels, height // self.vae.factor, width // self.vae.factor

    def noise_levels(self, num_steps: int, height: int | None, width: int | None) -> list[float]:
        _, rows, columns = self.latent_shape(height, width)
        num_tokens = rows * columns // self.transformer.patch_size**2
        return own_noise_levels(self.scheduler, num_steps, num_tokens, even=False)

    def encode(self, prompts_B: Sequence[Prompt]) -> Conditioning:
        return self.encode_prompts(prompts_B)

    def expect(self, batches: Sequence[Sequence[Prompt]]) -> None:
        self.encode_prompts.expect(batches)

    def velocity(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        more = {name: tensor for name, tensor in conditioning.items() if name not in ("states", "pooled")}
        with autocast(self.config, self.device):
            out: Tensor = network(
                hidden_states=x,
                encoder_hidden_states=conditioning["states"],
                pooled_projections=conditioning["pooled"],
                timestep=sigma_B * 1000.0,
                return_dict=False,
                **more,
            )[0]
        return out.float()

    def to_latents(self, pixels_BHWC: Tensor) -> Tensor:
        return self.vae.encode(pixels_BHWC)

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)
