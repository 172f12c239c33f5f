"""A Janus model of transformers: questions in, answers out; prompts in, images out.

Axes: B images, N tokens of an image, T tokens of a prompt, C codes, d hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from machine.transfers import sent
from trainer.config import ConfigError, JanusConfig
from trainer.config.janus import JanusPart
from trainer.policies.tokens.draw import Reading
from trainer.policies.tokens.llama.layout import is_cut
from trainer.policies.tokens.model import TokenModel
from trainer.policies.unified.draw import Drawing
from trainer.policies.unified.janus.processing import PAD_TAG
from trainer.samplers.tokens import allowed_logits
from trainer.types import Prompt, Turn

# Images decoded together: the widest features of one of 384 x 384 pixels are 128 channels, 75 MB in float32, and a block holds several.
MOST_DECODED = 16
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

    config: JanusConfig

    def __init__(
        self, network: nn.Module, processor: Any, config: JanusConfig, device: torch.device, *, about: str
    ) -> None:
        super().__init__(network, processor, config, device, about=about)
        settings = _plain(network).config
        self.num_image_tokens = (settings.vision_config.image_size // settings.vision_config.patch_size) ** 2
        self.num_codes, self.num_words = settings.vq_config.num_embeddings, settings.text_config.vocab_size
        self._tag = torch.tensor([self.tokenizer.convert_tokens_to_ids(processor.image_start_token)])
        # What the unconditional branch is filled with has an id of its own in each size of Janus; other tokenizers of the
        # same family pad with the token that ends a text, which the network has never seen there.
        self.pad_id = self.tokenizer.get_vocab().get(PAD_TAG, self.pad_id)
        if config.system_prompt is not None:
            processor.use_default_system_prompt = False

    @property
    def recomputes_layers(self) -> bool:
        return self.config.gradient_checkpointing

    @property
    def generate(self) -> Callable[..., Tensor]:
        """That of all models of transformers: Janus's own forgets the logits processors of a text."""
        from transformers import GenerationMixin

        found: Callable[..., Any] = partial(GenerationMixin.generate, _plain(self.network))
        return found

    def part_of(self, name: str) -> str:
        """The part of the model that a parameter belongs to."""
        return part_of(name) or "vq"

    def read_drawing(self, prompt: Prompt) -> Drawing:
        """The prompt in its turn, then the tag that begins an image.

        In the unconditional branch all tokens but the first and the last are the tokenizer's padding, which is attended to, as
        DeepSeek's own sampler does.
        """
        return self._drawing(self._turn(prompt, prompt.text), len(self._tag))

    def read_thinking(self, prompt: Prompt, instruction: str | None) -> Reading:
        ids_T = self._turn(prompt, prompt.text)
        if instruction is None:
            return Reading(ids_T)
        return Reading(torch.tensor(self._ids(prompt, f"{prompt.text}\n{instruction}")))

    def drawing_after(self, reading: Reading, plan_S: Tensor) -> Drawing:
        """The unconditional branch knows nothing of the plan either: padding stands for it, too."""
        return self._drawing(torch.cat([reading.ids_T, plan_S]), -len(plan_S))

    def _turn(self, prompt: Prompt, text: str) -> Tensor:
        """Ids of a text in its turn, ready for what the model makes of it. Raises ConfigError, naming the prompt."""
        ids = self._ids(prompt, text)
        if len(ids) + len(self._tag) > self.config.max_prompt_tokens:
            raise ConfigError(
                f"{_named(prompt)} has {len(ids) + len(self._tag)} tokens, and policy.max_prompt_tokens = {self.config.max_prompt_tokens}; "
                "raise it, or leave the row out"
            )
        return torch.tensor(ids)

    def _ids(self, prompt: Prompt, text: str) -> list[int]:
        rendered = self.rendered(_named(prompt), [Turn("user", text)], 0, is_asked=True)
        ids: list[int] = self.tokenizer(rendered)["input_ids"]
        return ids

    def _drawing(self, ids_T: Tensor, more: int) -> Drawing:
        """The tag behind these ids, of which the images of a group share all and `more`."""
        cond_T = torch.cat([ids_T, self._tag])
        uncond_T = torch.full_like(cond_T, self.pad_id)
        uncond_T[0], uncond_T[-1] = cond_T[0], cond_T[-1]
        return Drawing(cond_T, uncond_T, len(ids_T) + more)

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

    def text_logits(self, network: nn.Module, hidden: Tensor) -> Tensor:
        return allowed_logits(_plain(network).get_output_embeddings()(hidden), self.banned_N)

    @torch.no_grad()
    def decode_images(self, tokens_BN: Tensor) -> Sequence[np.ndarray]:
        # Where every call gathers weights from all ranks (ZeRO-3), these must make equally many, whatever they have to decode.
        size = len(tokens_BN) if is_cut(self.network) else MOST_DECODED
        return [image for part in tokens_BN.split(size) for image in self._decode(part)]

    def _decode(self, tokens_BN: Tensor) -> Sequence[np.ndarray]:
        vq = _plain(self.network).model.vqmodel
        # Module by module, as transformers' own `decode` does it; that one reads a size off the codebook, which is not there where
        # ZeRO-3 has cut the weights.
        codes_BND = functional.normalize(vq.quantize.embedding(sent(tokens_BN, self.device)), dim=-1)
        codes_BDHW = codes_BND.unflatten(1, vq.quantize.quant_state_dims).permute(0, 3, 1, 2).contiguous()
        pixels_BHWC: Tensor = vq.decoder(vq.post_quant_conv(codes_BDHW)).permute(0, 2, 3, 1).float()
        # The decoder gives -1 to 1; what lies beyond is cut, and what lies between two values goes down, as published.
        return list(((pixels_BHWC + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).cpu().numpy())


def _named(prompt: Prompt) -> str:
    return f"prompt {prompt.id!r} of data set {prompt.dataset!r}" + (f" ({prompt.place})" if prompt.place else "")


def _plain(network: Any) -> Any:
    """The model of transformers inside PEFT's, whose layers are PEFT's."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network
