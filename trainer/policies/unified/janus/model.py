"""A Janus model of transformers: questions in, answers out; prompts in, images out.

Axes: B images, N tokens of an image, T tokens of a prompt, C codes, d hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.config import ConfigError, JanusConfig
from trainer.config.janus import JanusPart
from trainer.policies.tokens.model import TokenModel
from trainer.policies.unified.draw import Drawing
from trainer.types import Prompt, Turn

_MODULES: dict[str, JanusPart] = {
    "vision_model": "vision",
    "aligner": "aligner",
    "generation_embeddings": "generation",
    "generation_aligner": "generation",
    "generation_head": "generation",
}


def part_of(name: str) -> JanusPart | None:
    """The part of the model that a parameter belongs to; None for the decoder of image tokens, which is never trained."""
    pieces = name.split(".")
    if "vqmodel" in pieces:
        return None
    return next((part for module, part in _MODULES.items() if module in pieces), "language")


class JanusModel(TokenModel):
    """Implements `ImageModel` beside what it reads and writes as any model of texts."""

    def __init__(
        self, network: nn.Module, processor: Any, config: JanusConfig, device: torch.device, *, about: str
    ) -> None:
        super().__init__(network, processor, config, device, about=about)
        settings = _plain(network).config
        self.num_image_tokens = (settings.vision_config.image_size // settings.vision_config.patch_size) ** 2
        self.num_codes = settings.vq_config.num_embeddings
        self._begin_id = self.tokenizer.convert_tokens_to_ids(processor.image_start_token)

    @property
    def recomputes_layers(self) -> bool:
        return self.config.gradient_checkpointing

    def part_of(self, name: str) -> str:
        """The part of the model that a parameter belongs to."""
        return part_of(name) or "vq"

    def read_drawing(self, prompt: Prompt) -> Drawing:
        """The prompt in its turn, then the tag that begins an image.

        In the unconditional branch all tokens but the first and the last are the tokenizer's padding, which is attended to, as
        DeepSeek's own sampler does.
        """
        where = f"prompt {prompt.id!r} of data set {prompt.dataset!r}" + (f" ({prompt.place})" if prompt.place else "")
        text = self.rendered(where, [Turn("user", prompt.text)], 0, is_asked=True)
        ids_T = torch.tensor([*self.tokenizer(text)["input_ids"], self._begin_id])
        if len(ids_T) > self.config.max_prompt_tokens:
            raise ConfigError(
                f"{where} has {len(ids_T)} tokens, and policy.max_prompt_tokens = {self.config.max_prompt_tokens}; raise it, or "
                "leave the row out"
            )
        uncond_T = torch.full_like(ids_T, self.pad_id)
        uncond_T[0], uncond_T[-1] = ids_T[0], ids_T[-1]
        return Drawing(ids_T, uncond_T)

    def language_model(self, network: nn.Module) -> nn.Module:
        found: nn.Module = _plain(network).model.language_model
        return found

    def embed_text(self, network: nn.Module, ids: Tensor) -> Tensor:
        embedded: Tensor = _plain(network).get_input_embeddings()(ids)
        return embedded

    def embed_image(self, network: nn.Module, ids: Tensor) -> Tensor:
        embedded: Tensor = _plain(network).prepare_embeddings_for_image_generation(ids)
        return embedded

    def image_logits(self, network: nn.Module, hidden: Tensor) -> Tensor:
        logits: Tensor = _plain(network).model.generation_head(hidden)
        return logits

    @torch.no_grad()
    def decode_images(self, tokens_BN: Tensor) -> Sequence[np.ndarray]:
        pixels_BHWC: Tensor = _plain(self.network).decode_image_tokens(tokens_BN.to(self.device)).float()
        # The decoder gives -1 to 1; what lies beyond is cut, and what lies between two values goes down, as published.
        return list(((pixels_BHWC + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).cpu().numpy())


def _plain(network: Any) -> Any:
    """The model of transformers inside PEFT's, whose layers are PEFT's."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network
