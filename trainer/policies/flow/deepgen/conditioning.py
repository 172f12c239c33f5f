"""From a prompt to what the transformer is conditioned on.

Axes: B prompts, L tokens of a prompt with its queries (left-padded where several are encoded together), D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer.policies.flow.deepgen.networks import DeepGenNetworks
from trainer.policies.flow.deepgen.sources import look

_TURN = "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"
_DRAW = "Generate an image: {text}"
_IMAGE, _IMAGE_START, _IMAGE_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"


def render(text: str, source_lengths: Sequence[int] = ()) -> str:
    """The language model's input for a prompt, with `source_lengths` image tokens for each of its source images."""
    if not source_lengths:
        return _TURN.format(input=_DRAW.format(text=text))
    images = "".join(f"{_IMAGE_START}{_IMAGE * length}{_IMAGE_END}" for length in source_lengths)
    return _TURN.format(input=f"{images}\n{text}")


@torch.no_grad()
def encode(
    networks: DeepGenNetworks, tokenizer: Any, texts_B: Sequence[str], sources_B: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, Tensor]:
    """Encode prompts together, left-padded to the longest.

    The language model does not attend to padding, but the connector and the mean do, as in DeepGen's own trainer: encode
    prompts one by one where a prompt's conditioning must not depend on the others.

    Args:
        sources_B: source images of each prompt, (H, W, 3), uint8.

    Returns the transformer's token states (B, L, joint) and its pooled vectors (B, pooled).
    """
    lmm, device = networks.lmm, networks.meta_queries.device
    flat = [source for sources in sources_B for source in sources]
    seen, grid = look(lmm, flat) if flat else ([], None)
    lengths = iter([len(each) for each in seen])
    rendered = [
        render(text, [next(lengths) for _ in sources]) for text, sources in zip(texts_B, sources_B, strict=True)
    ]
    ids_BL, mask_BL = _tokenize(tokenizer, rendered, len(networks.meta_queries), device)
    tokens_BLD = lmm.language_model.embed_tokens(ids_BL[:, : -len(networks.meta_queries)])
    is_image_BL = ids_BL == tokenizer.convert_tokens_to_ids(_IMAGE) if seen else torch.zeros_like(mask_BL)
    if seen:
        in_prompt = is_image_BL[:, : tokens_BLD.shape[1], None]
        tokens_BLD = tokens_BLD.masked_scatter(in_prompt, torch.cat(seen).to(tokens_BLD.dtype))
    queries = networks.meta_queries.expand(len(texts_B), -1, -1)
    is_padded = len(texts_B) > 1
    hidden_states = lmm.language_model(
        inputs_embeds=torch.cat([tokens_BLD, queries], dim=1),
        attention_mask=mask_BL.long() if is_padded else None,
        position_ids=_positions(lmm, ids_BL, mask_BL, is_image_BL, grid),
        use_cache=False,
        output_hidden_states=True,
    ).hidden_states
    return networks.condition(hidden_states)


def _tokenize(tokenizer: Any, texts: Sequence[str], num_queries: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) and a bool mask that is False at padding; the queries' places are filled with 0."""
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    longest = max(len(row) for row in rows)
    ids = torch.stack([functional.pad(row, (longest - len(row), 0), value=tokenizer.pad_token_id) for row in rows])
    mask = torch.stack([functional.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
    return (
        functional.pad(ids, (0, num_queries)).to(device),
        functional.pad(mask, (0, num_queries), value=1).bool().to(device),
    )


def _positions(lmm: Any, ids_BL: Tensor, mask_BL: Tensor, is_image_BL: Tensor, grid: Tensor | None) -> Tensor:
    """(3, B, L): frame, row and column of every token; text counts on from the padding's end or from an image's edge."""
    if grid is None:
        counted = (mask_BL.long().cumsum(1) - 1).clamp(min=0)
        return counted.expand(3, -1, -1)
    positions: Tensor = lmm.get_rope_index(
        ids_BL, mm_token_type_ids=is_image_BL.int(), image_grid_thw=grid, attention_mask=mask_BL.long()
    )[0]
    return positions
