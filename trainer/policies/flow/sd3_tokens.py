"""The SD3 transformer with source tokens, for editing, and with masks, for batches of unequal lengths.

Source images enter as UniPic2's SD3.5-Kontext takes them (arXiv 2509.04548): patched by the layer that patches the target,
with the position embedding of a target of their size, appended to its tokens, and dropped from the output.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional


class Sd3Transformer(SD3Transformer2DModel):
    """Diffusers' transformer, of the same parameters and names. Without sources and masks it is bit for bit the same."""

    # What diffusers' lazily imported base class sets.
    config: Any
    out_channels: int
    pos_embed: Any
    time_text_embed: nn.Module
    context_embedder: nn.Module
    transformer_blocks: nn.ModuleList
    norm_out: nn.Module
    proj_out: nn.Module
    gradient_checkpointing: bool
    set_attn_processor: Any
    _gradient_checkpointing_func: Any

    @functools.wraps(SD3Transformer2DModel.__init__)  # type: ignore[misc]  # diffusers reads the signature
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_attn_processor(MaskedJointAttention())

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        *,
        text_mask: Tensor | None = None,
        sources: Tensor | None = None,
        source_grids: Tensor | None = None,
        source_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `forward`, and:

        Args:
            text_mask: bool (B, L), False at text tokens that nothing attends to; None when there are none.
            sources: latents (B, N, C, h, w) of N source images, each in the upper left of its place.
            source_grids: int64 (B, N, 2), height and width of each in tokens.
            source_mask: `token_mask(source_grids, ...)`; None when all sources fill their places.
        """
        if sources is None and text_mask is None:
            return super().forward(
                hidden_states, encoder_hidden_states, pooled_projections, timestep, return_dict=return_dict
            )
        num_target = hidden_states[0, 0].numel() // self.config.patch_size**2
        size = hidden_states.shape[-2:]
        tokens = self.pos_embed(hidden_states).contiguous()
        if sources is not None:
            if source_grids is None:
                raise ValueError("sources need source_grids, their sizes in tokens")
            tokens = torch.cat([tokens, self._source_tokens(sources, source_grids)], dim=1)
        masks = attention_masks(tokens.shape[1], encoder_hidden_states.shape[1], text_mask, source_mask)
        temb = self.time_text_embed(timestep, pooled_projections)
        states = self.context_embedder(encoder_hidden_states)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                states, tokens = self._gradient_checkpointing_func(block, tokens, states, temb, masks)
            else:
                states, tokens = block(tokens, states, temb, masks)
        tokens = self.proj_out(self.norm_out(tokens[:, :num_target], temb))
        return (self._unpatchify(tokens, *size),)

    def _source_tokens(self, sources: Tensor, grids: Tensor) -> Tensor:
        """(B, N * h/p * w/p, width); each source has the positions of a target of its own size: the centre of the table."""
        patches = self.pos_embed.proj(sources.flatten(0, 1))
        rows, columns = patches.shape[-2:]
        largest = self.pos_embed.pos_embed_max_size
        top, left = ((largest - grids.flatten(0, 1)) // 2).unbind(-1)
        row = top[:, None] + torch.arange(rows, device=grids.device)
        column = left[:, None] + torch.arange(columns, device=grids.device)
        places = (row[:, :, None] * largest + column[:, None, :]).clamp(max=largest**2 - 1)  # padding may lie outside
        positions = self.pos_embed.pos_embed[0][places.flatten(1)]
        tokens = (patches.flatten(2).transpose(1, 2) + positions).to(patches.dtype)
        return tokens.reshape(len(sources), -1, tokens.shape[-1])

    def _unpatchify(self, tokens: Tensor, height: int, width: int) -> Tensor:
        p = self.config.patch_size
        patches = tokens.unflatten(2, (p, p, self.out_channels)).unflatten(1, (height // p, width // p))
        return torch.einsum("nhwpqc->nchpwq", patches).reshape(len(tokens), self.out_channels, height, width)


def token_mask(grids: Tensor, rows: int, columns: int) -> Tensor:
    """Bool (B, N * rows * columns): True at the tokens of sources of sizes `grids` (B, N, 2), False at their padding."""
    inside_row = torch.arange(rows, device=grids.device) < grids[..., :1]
    inside_column = torch.arange(columns, device=grids.device) < grids[..., 1:]
    return (inside_row[..., :, None] & inside_column[..., None, :]).flatten(1)


def join_sources(latents_B: Sequence[Sequence[Tensor]], patch_size: int) -> dict[str, Tensor]:
    """Source latents (C, h, w) of each sample as `Sd3Transformer` takes them, padded to the largest and to the most.

    `sources` and `source_grids`, and `source_mask` where something was padded; nothing where no sample has a source.
    """
    flat = [(b, n, each) for b, latents in enumerate(latents_B) for n, each in enumerate(latents)]
    if not flat:
        return {}
    most = max(len(latents) for latents in latents_B)
    channels, height, width = (max(each.shape[axis] for _, _, each in flat) for axis in range(3))
    sources = flat[0][2].new_zeros(len(latents_B), most, channels, height, width)
    grids = torch.zeros(len(latents_B), most, 2, dtype=torch.int64)
    for b, n, each in flat:
        sources[b, n, :, : each.shape[1], : each.shape[2]] = each
        grids[b, n] = torch.tensor(each.shape[1:]) // patch_size
    mask = token_mask(grids, height // patch_size, width // patch_size)
    joined = {"sources": sources, "source_grids": grids}
    return joined if mask.all() else {**joined, "source_mask": mask}


def attention_masks(
    num_image: int, num_text: int, text_mask: Tensor | None, source_mask: Tensor | None
) -> dict[str, Tensor]:
    """What `MaskedJointAttention` takes: keys that may be attended to, (B, 1, 1, keys); nothing where all may.

    Args:
        num_image: tokens of the target and its sources.
    """
    if text_mask is None and source_mask is None:
        return {}
    given = text_mask if text_mask is not None else source_mask
    assert given is not None
    image = given.new_ones(len(given), num_image)
    if source_mask is not None:
        image[:, num_image - source_mask.shape[1] :] = source_mask
    text = given.new_ones(len(given), num_text) if text_mask is None else text_mask
    masks = {"joint_mask": torch.cat([image, text], 1)[:, None, None]}
    return masks if source_mask is None else {**masks, "image_mask": image[:, None, None]}


class MaskedJointAttention:
    """Joint attention of image and text tokens (arXiv 2403.03206, section 4); without masks, a flash kernel's case."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        joint_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        query, key, value = (
            _heads(project(hidden_states), attn.heads) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = (_norm(norm, each) for norm, each in ((attn.norm_q, query), (attn.norm_k, key)))
        normed_type = query.dtype
        query, key = query.to(value.dtype), key.to(value.dtype)  # see `_norm`
        mask = image_mask
        if encoder_hidden_states is not None:
            mask = joint_mask
            text_query, text_key, text_value = (
                _heads(project(encoder_hidden_states), attn.heads)
                for project in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            )
            query = torch.cat([query, _norm(attn.norm_added_q, text_query).to(value.dtype)], 2)
            key = torch.cat([key, _norm(attn.norm_added_k, text_key).to(value.dtype)], 2)
            value = torch.cat([value, text_value], 2)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        # In the type of the norms, as in diffusers: the layers below then read the memory in the same order, so bits are the same.
        mixed = mixed.transpose(1, 2).flatten(2).to(normed_type)
        image = attn.to_out[1](attn.to_out[0](mixed[:, : hidden_states.shape[1]]))
        if encoder_hidden_states is None:
            return image
        text = mixed[:, hidden_states.shape[1] :]
        return image, text if attn.context_pre_only else attn.to_add_out(text)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads * d) to (B, heads, L, d)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _norm(norm: Any, x: Tensor) -> Tensor:
    """Normed. A float32 weight makes it float32, also under autocast, where attention casts it back; cast before image and text are
    joined, half the bytes are moved, and the bits are the same."""
    return x if norm is None else norm(x)
