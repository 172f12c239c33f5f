"""The native model by NEO's names: patches and words become tokens of one transformer.

Axes: N tokens of all rows behind one another, I image tokens among them, M patches, W tokens that are asked about, d hidden,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from machine.transfers import sent
from trainer.policies.unified.neo.geometry import NeoGeometry
from trainer.policies.unified.neo.layers import Attend, NeoLayer, RMSNorm, Turn
from trainer.policies.unified.neo.patches import PatchEmbedding


@dataclass(frozen=True, eq=False)
class NeoInput:
    """Tokens as the network takes them.

    Attributes:
        ids_N: int64; those that stand for images are overwritten by the images' tokens.
        places_3N: int64: time, row and column of each.
        image_I: int64, places among the N of the image tokens, in order.
        patches_MC, patch_places_M2: of all images, in the order of `image_I`; None where no token can be an image's.
    """

    ids_N: Tensor
    places_3N: Tensor
    image_I: Tensor | None = None
    patches_MC: Tensor | None = None
    patch_places_M2: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        moved = {name: sent(value, device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)


class NeoNetwork(nn.Module):
    """All weights, with the few names that are asked of a model of transformers.

    Attributes:
        config: has `image_token_id`, the id that stands for an image's token.
        generation_config: has `eos_token_id`, the id that ends a turn.
        recomputes: layers are computed again in the backward pass, to save memory.
    """

    def __init__(self, geometry: NeoGeometry, *, image_id: int, end_id: int) -> None:
        super().__init__()
        self.geometry, self.recomputes = geometry, False
        self.config = SimpleNamespace(image_token_id=image_id)
        self.generation_config = SimpleNamespace(eos_token_id=end_id)
        self.vision_model = nn.Module()
        self.vision_model.embeddings = PatchEmbedding(geometry)
        self.language_model = nn.Module()
        self.language_model.model = nn.Module()
        self.language_model.lm_head = nn.Linear(geometry.hidden_size, geometry.vocab_size, bias=False)
        inner: Any = self.language_model.model
        inner.embed_tokens = nn.Embedding(geometry.vocab_size, geometry.hidden_size)
        inner.layers = nn.ModuleList(NeoLayer(geometry, number) for number in range(geometry.num_layers))
        inner.norm = RMSNorm(geometry.hidden_size, geometry.rms_norm_eps)

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self._language.lm_head
        return head

    def forward(self, given: NeoInput, attend: Attend, wanted_W: Tensor) -> Tensor:
        """Logits (W, V) of the tokens that follow those at the places `wanted_W`.

        Args:
            attend: each layer's attention.
        """
        logits: Tensor = self._language.lm_head(self.hidden(given, attend).index_select(0, wanted_W))
        return logits

    def hidden(self, given: NeoInput, attend: Attend) -> Tensor:
        """Hidden states (N, d) behind the last norm: what any head reads."""
        inner = self._language.model
        x_Nd = self._embedded(given)
        turn = Turn.of(given.places_3N, self.geometry)
        for layer in inner.layers:
            if self.recomputes and torch.is_grad_enabled():
                x_Nd = checkpoint(layer, x_Nd, turn, attend, use_reentrant=False)
            else:
                x_Nd = layer(x_Nd, turn, attend)
        normed: Tensor = inner.norm(x_Nd)
        return normed

    def _embedded(self, given: NeoInput) -> Tensor:
        x_Nd: Tensor = self._language.model.embed_tokens(given.ids_N)
        if given.patches_MC is None or given.image_I is None or given.patch_places_M2 is None:
            return x_Nd
        vision: Any = self.vision_model
        embed, patches, places = vision.embeddings, given.patches_MC, given.patch_places_M2
        if len(patches):
            return x_Nd.index_copy(0, given.image_I, embed(patches, places).to(x_Nd.dtype))
        # Without an image, one of zeros is embedded and counts nothing: ranks that gather weights in every call make equally many.
        count, numbers = self.geometry.merge**2, 3 * self.geometry.patch_size**2
        nothing = embed(patches.new_zeros(count, numbers), places.new_zeros(count, 2))
        return x_Nd + 0.0 * nothing.sum().to(x_Nd.dtype)

    @property
    def _language(self) -> Any:
        return self.language_model
