"""What images are drawn with, token by token, and what a network must be able to for it.

Axes: B images, N tokens of an image, T tokens of a prompt, C codes of the codebook, d hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trainer.policies.tokens.draw import Reading, TokenPlan
from trainer.types import Prompt

Score = Literal["guided", "conditional"]


@dataclass(frozen=True)
class Thinking:
    """A plan in text that is written before an image is drawn.

    Attributes:
        writing: how it is written; `micro_batch_size` is that of the images.
        instruction: text behind the prompt that asks for it; None where the model plans by itself.
        plan_weight, image_weight: what advantages are multiplied by at the tokens of the plan, and at those of the image.
    """

    writing: TokenPlan
    instruction: str | None = None
    plan_weight: float = 1.0
    image_weight: float = 1.0


@dataclass(frozen=True)
class ImagePlan:
    """How one call of `sample` draws images by tokens.

    Attributes:
        micro_batch_size: images drawn together.
        guidance_scale: w of u + w (c - u); 1 is the conditional branch alone.
        temperature: 0 always takes the likeliest token.
        score: whose log-probabilities are kept and trained on (`trainer.config.tasks.GenerateConfig`).
        think: write a plan first; None draws at once.
    """

    micro_batch_size: int
    guidance_scale: float = 1.0
    temperature: float = 1.0
    score: Score = "guided"
    think: Thinking | None = None


@dataclass(frozen=True, eq=False)
class Drawing:
    """A prompt to draw, as the network takes it, up to and with the tag that begins an image.

    Attributes:
        cond_T: int64 ids of the conditional branch.
        uncond_T: those of the unconditional branch, equally many.
        shared: how many of the first ids of `cond_T` all images of a group have: those before a plan, or all.
    """

    cond_T: Tensor
    uncond_T: Tensor
    shared: int


class ImageModel(Protocol):
    """A network that draws images by tokens.

    Attributes:
        num_image_tokens: N, of every image.
        num_codes: C, of which each token is one.
    """

    num_image_tokens: int
    num_codes: int

    @property
    def network(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def recomputes_layers(self) -> bool:
        """Whether the backward pass computes layers again, for which they must be called by the network's own forward."""
        ...

    def computing(self) -> AbstractContextManager[None]:
        """The context that the network is called in."""
        ...

    def read_drawing(self, prompt: Prompt) -> Drawing:
        """The prompt as the network takes it. Raises ConfigError, naming it, where it is too long."""
        ...

    def language_model(self, network: nn.Module) -> nn.Module:
        """What turns embeddings into hidden states: called with `inputs_embeds`, `attention_mask`, `position_ids`."""
        ...

    def embed_text(self, network: nn.Module, ids: Tensor) -> Tensor:
        """Embeddings (..., d) of text tokens."""
        ...

    def embed_image(self, network: nn.Module, ids: Tensor) -> Tensor:
        """Embeddings (..., d) of image tokens."""
        ...

    def image_logits(self, network: nn.Module, hidden: Tensor) -> Tensor:
        """Logits (..., C) of the next image token."""
        ...

    def decode_images(self, tokens_BN: Tensor) -> Sequence[np.ndarray]:
        """An image, uint8 (H, W, 3), of each row of tokens."""
        ...


class PlanModel(Protocol):
    """A network that can be asked to write what it is going to draw, and then draws it.

    Attributes:
        num_words: V, how wide logits of text tokens are.
    """

    num_words: int

    def read_thinking(self, prompt: Prompt, instruction: str | None) -> Reading:
        """The prompt as the network takes it, ready for a plan in text. Raises ConfigError, naming it, where it is too long."""
        ...

    def drawing_after(self, reading: Reading, plan_S: Tensor) -> Drawing:
        """What is drawn from: the reading, its plan without the token that ended it, and the tag that begins an image."""
        ...

    def text_logits(self, network: nn.Module, hidden: Tensor) -> Tensor:
        """Logits (..., V) of the next text token, minus infinity where it can never be drawn."""
        ...
