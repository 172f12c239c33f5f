"""What a model makes of prompts before its first layer: embeddings with images in their places, positions, lengths.

The model's own code is run for it, with the layers taken out, so that each kind of image tower and of position is its own.
Axes: P prompts, T padded columns, N tokens of all prompts behind one another, d hidden, D size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.policies.tokens.llama.layout import TextModel


@dataclass(frozen=True)
class Prefix:
    """The prompts as the first layer takes them, without padding.

    Attributes:
        x_Nd: embeddings, differentiable in what made them.
        cos_ND, sin_ND: of the rotary positions.
        lengths: tokens of each prompt.
        next_P: position of the token that follows each prompt.
        added: what is added to the hidden states behind each of the first layers (Qwen3-VL's deep stack), each (N, d).
    """

    x_Nd: Tensor
    cos_ND: Tensor
    sin_ND: Tensor
    lengths: Sequence[int]
    next_P: Tensor
    added: Sequence[Tensor] = ()


def read_prefix(model: TextModel, batch: Mapping[str, Any]) -> Prefix:
    """What `model` makes of a padded batch of prompts, left or right.

    Args:
        batch: the arguments of the model's forward: `input_ids` (P, T), `attention_mask` (P, T), images.
    """
    with _layers_taken_out(model.text) as caught:
        model.inner(**batch, use_cache=False)
    given = caught[0]
    x_PTd = given.get("inputs_embeds")
    if x_PTd is None:
        x_PTd = model.text.embed_tokens(given["input_ids"])
    mask_PT = batch["attention_mask"].bool()
    positions = _positions(given.get("position_ids"), mask_PT)
    cos_PTD, sin_PTD = model.text.rotary_emb(x_PTd, positions)
    where_N = mask_PT.flatten().nonzero()[:, 0]
    lengths_P = mask_PT.sum(1)
    last_P = positions.masked_fill(~mask_PT, -1).amax(-1)
    return Prefix(
        x_PTd.flatten(0, 1).index_select(0, where_N),
        cos_PTD.flatten(0, 1).index_select(0, where_N),
        sin_PTD.flatten(0, 1).index_select(0, where_N),
        lengths_P.tolist(),
        (last_P if last_P.dim() == 1 else last_P.amax(0)) + 1,
        [_spread(added, given["visual_pos_masks"], where_N) for added in given.get("deepstack_visual_embeds") or ()],
    )


def embedded_prefix(model: TextModel, prompts: Sequence[Tensor]) -> Prefix:
    """Prompts of which each is given as embeddings (T, d), at positions that count from 0."""
    x_Nd = torch.cat(list(prompts))
    lengths = [len(each) for each in prompts]
    position_N = torch.cat([torch.arange(length, device=x_Nd.device) for length in lengths])
    cos_1ND, sin_1ND = model.text.rotary_emb(x_Nd[None], position_N[None])
    return Prefix(x_Nd, cos_1ND[0], sin_1ND[0], lengths, torch.tensor(lengths, device=x_Nd.device))


def _positions(given: Tensor | None, mask_PT: Tensor) -> Tensor:
    """Positions (P, T), or (3, P, T) where time, height and width have their own."""
    if given is None:  # counted from the first token: a model that counts columns means the same, as only distances act
        return (mask_PT.long().cumsum(1) - 1).clamp(min=0)
    if given.dim() == 3 and given.shape[0] == 4:  # Qwen puts the text's own positions before the three
        given = given[1:]
    return given.expand(*given.shape[:-2], *mask_PT.shape)


def _spread(added: Tensor, mask_PT: Tensor, where_N: Tensor) -> Tensor:
    """Features of the image tokens (in order) at their places among all tokens (N, d), 0 elsewhere."""
    places = mask_PT.flatten().nonzero()[:, 0]
    full = added.new_zeros(mask_PT.numel(), added.shape[-1]).index_copy(0, places, added)
    return full.index_select(0, where_N)


@contextmanager
def _layers_taken_out(text: Any) -> Iterator[list[dict[str, Any]]]:
    """Inside the block `text` keeps the arguments it is called with, and gives back its embeddings."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    caught: list[dict[str, Any]] = []

    def forward(**given: Any) -> Any:
        caught.append(given)
        return BaseModelOutputWithPast(last_hidden_state=given.get("inputs_embeds"))

    text.forward = forward
    try:
        yield caught
    finally:
        del text.forward
