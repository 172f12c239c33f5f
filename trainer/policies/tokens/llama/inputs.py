"""What a model makes of prompts before its first layer: embeddings with images in their places, positions, lengths.

The model's own code is run for it, with the layers taken out, so that each kind of image tower and of position is its own.
Axes: P prompts, T padded columns, N tokens of all prompts behind one another, d hidden, D size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from machine.transfers import numbers, sent
from trainer.policies.tokens.draw import Reading, Seen
from trainer.policies.tokens.llama.layout import TextModel
from trainer.policies.tokens.model import TokenModel


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


def prefix_of(model: TokenModel, text: TextModel, readings: Sequence[Reading]) -> Prefix:
    """Prompts from what was seen of them already, where that is known of all; else the model makes it of their inputs."""
    seen = [each.seen for each in readings if each.seen is not None and each.seen.inputs is each.inputs]
    if len(seen) < len(readings):
        return read_prefix(text, model.gathered(readings))
    ids_N = sent(torch.cat([each.ids_T for each in readings]), model.device)
    lengths = [len(each.ids_T) for each in readings]
    starts = accumulate(lengths, initial=0)
    places = sent(torch.cat([each.places_I + start for each, start in zip(seen, starts, strict=False)]), model.device)
    x_Nd = text.text.embed_tokens(ids_N)
    features = torch.cat([each.features_Id for each in seen]).to(x_Nd.dtype)
    added = [torch.cat(layer) for layer in zip(*(each.added for each in seen), strict=True)]
    positions = torch.cat([each.positions for each in seen], -1)
    return _prefix(text, _Embedded(x_Nd.index_copy(0, places, features), positions, lengths, added))


@torch.no_grad()
def see(model: TokenModel, text: TextModel, readings: Sequence[Reading]) -> list[Reading]:
    """The readings with what the network makes of their images, so that a step's updates need not see them again.

    They are given back as they are where a part beside the language model is trained, or where the first layer takes something
    else for a token of text than its embedding.
    """
    trained_here = {id(each) for part in (text.text, text.head) for each in part.parameters()}
    if any(each.requires_grad and id(each) not in trained_here for each in model.network.parameters()):
        return list(readings)
    made = _embedded(text, model.gathered(readings))
    ids_N = torch.cat([each.ids_T for each in readings])
    is_image_N = torch.isin(ids_N, torch.tensor(model.image_ids))
    texts_N = sent((~is_image_N).nonzero()[:, 0], model.device)
    embedded = text.text.embed_tokens(sent(ids_N, model.device))
    if not torch.equal(made.x_Nd.index_select(0, texts_N), embedded.index_select(0, texts_N)):
        return list(readings)
    found, lengths = [], list(made.lengths)
    rows = zip(
        readings,
        is_image_N.split(lengths),
        made.x_Nd.split(lengths),
        made.positions.split(lengths, -1),
        zip(*(added.split(lengths) for added in made.added), strict=True) if made.added else [()] * len(lengths),
        strict=True,
    )
    for reading, is_image_T, x_Td, positions, added in rows:
        places_I = is_image_T.nonzero()[:, 0]
        features_Id = x_Td.index_select(0, sent(places_I, model.device))
        found.append(replace(reading, seen=Seen(reading.inputs, places_I, features_Id, positions, added)))
    return found


def read_prefix(model: TextModel, batch: Mapping[str, Any]) -> Prefix:
    """What `model` makes of a padded batch of prompts, left or right.

    Args:
        batch: the arguments of the model's forward, on the CPU: `input_ids` (P, T), `attention_mask` (P, T), images.
    """
    return _prefix(model, _embedded(model, batch))


@dataclass(frozen=True)
class _Embedded:
    """Prompts as the first layer takes them, with the rotary positions (N,) or (3, N); the others as of a `Prefix`."""

    x_Nd: Tensor
    positions: Tensor
    lengths: Sequence[int]
    added: Sequence[Tensor]


def _embedded(model: TextModel, batch: Mapping[str, Any]) -> _Embedded:
    device = model.weight.device
    with _layers_taken_out(model.text) as caught:
        model.inner(**{name: sent(each, device) for name, each in batch.items()}, use_cache=False)
    given = caught[0]
    x_PTd = given.get("inputs_embeds")
    if x_PTd is None:
        x_PTd = model.text.embed_tokens(given["input_ids"])
    mask_PT = batch["attention_mask"].bool()
    where_N = sent(mask_PT.flatten().nonzero()[:, 0], device)
    added = given.get("deepstack_visual_embeds") or ()
    places = given["visual_pos_masks"].flatten().nonzero()[:, 0] if added else where_N
    return _Embedded(
        x_PTd.flatten(0, 1).index_select(0, where_N),
        sent(_positions(given.get("position_ids"), mask_PT), device).flatten(-2).index_select(-1, where_N),
        mask_PT.sum(1).tolist(),
        [_spread(each, places, mask_PT.numel(), where_N) for each in added],
    )


def _prefix(model: TextModel, made: _Embedded) -> Prefix:
    cos_1ND, sin_1ND = model.text.rotary_emb(made.x_Nd[None], made.positions[..., None, :])
    last_P = [positions.max() for positions in made.positions.split(list(made.lengths), -1)]
    return Prefix(made.x_Nd, cos_1ND[0], sin_1ND[0], made.lengths, torch.stack(last_P) + 1, made.added)


def embedded_prefix(model: TextModel, prompts: Sequence[Tensor]) -> Prefix:
    """Prompts of which each is given as embeddings (T, d), at positions that count from 0."""
    x_Nd = torch.cat(list(prompts))
    lengths = [len(each) for each in prompts]
    position_N = torch.cat([torch.arange(length, device=x_Nd.device) for length in lengths])
    cos_1ND, sin_1ND = model.text.rotary_emb(x_Nd[None], position_N[None])
    return Prefix(x_Nd, cos_1ND[0], sin_1ND[0], lengths, numbers(lengths, x_Nd.device))


def _positions(given: Tensor | None, mask_PT: Tensor) -> Tensor:
    """Positions (P, T), or (3, P, T) where time, height and width have their own."""
    if given is None:  # counted from the first token: a model that counts columns means the same, as only distances act
        return (mask_PT.long().cumsum(1) - 1).clamp(min=0)
    if given.dim() == 3 and given.shape[0] == 4:  # Qwen puts the text's own positions before the three
        given = given[1:]
    return given.expand(*given.shape[:-2], *mask_PT.shape)


def _spread(added: Tensor, places: Tensor, count: int, where_N: Tensor) -> Tensor:
    """Features of the image tokens (in order), which lie at these places of `count`, among all tokens (N, d), 0 elsewhere."""
    full = added.new_zeros(count, added.shape[-1]).index_copy(0, places, added)
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
