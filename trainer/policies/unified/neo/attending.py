"""How the native model's layers attend: packs by the one rule for all models, and answers with a cache.

Axes: N tokens, H heads, K heads of keys and values, D size of a head, B rows, L columns of keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from machine.transfers import numbers
from trainer.config.mot import Attention
from trainer.policies.unified.attention import Layout, Way, attend
from trainer.policies.unified.neo.layers import Attend


def way_of(attention: Attention, device: torch.device) -> Way:
    """The way that `policy.attention` means on this device."""
    if attention != "auto":
        return attention
    return "flex" if device.type == "cuda" else "rows"


def attend_packs(layout: Layout, way: Way) -> Attend:
    """Every token of a pack sees those of its row that come before it, and all of its image."""

    def attended(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        # Logits are scaled by the size of a head, 1 / sqrt(D), though queries have the numbers of rows and columns beside.
        q, k, v = (each.transpose(0, 1) for each in (queries, keys, values))
        return attend(q, k, v, layout, way, values.shape[-1] ** -0.5).transpose(0, 1).flatten(1)

    return attended


class Cache:
    """Keys and values of B rows, each layer's in one place: a prompt's first, then those of what is drawn.

    Attributes:
        keys, values: of each layer (B, K, L, 2 D) and (B, K, L, D).
        seen_BL: bool, which columns are written.
        column: where the next token goes, the same for all rows.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], seen_BL: Tensor, column: int) -> None:
        self.keys, self.values, self.seen_BL, self.column = keys, values, seen_BL, column

    @staticmethod
    def of(keys: list[Tensor], values: list[Tensor], lengths: list[int], prompt_B: Tensor, more: int) -> Cache:
        """
        Args:
            keys, values: of each layer, (N, K, ...) of all prompts behind one another.
            prompt_B: which prompt each row continues.
            more: columns behind the longest prompt.
        """
        longest, device = max(lengths), prompt_B.device
        seen = torch.arange(longest + more, device=device) < numbers(lengths, device)[prompt_B, None]

        def spread(layer: Tensor) -> Tensor:
            heads, width = layer.shape[1:]
            full = layer.new_zeros(len(lengths), heads, longest, width)
            for place, each in zip(full, layer.split(lengths), strict=True):
                place[:, : len(each)] = each.transpose(0, 1)
            return functional.pad(full.index_select(0, prompt_B), (0, 0, 0, more))

        return Cache([spread(each) for each in keys], [spread(each) for each in values], seen, longest)

    def attend(self) -> Attend:
        """One new token a row: it sees its prompt and what was drawn."""
        column = self.column

        def attended(number: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            own_keys, own_values = self.keys[number], self.values[number]
            own_keys[:, :, column], own_values[:, :, column] = keys, values
            mask = self.seen_BL[:, None, None, : column + 1]
            out = functional.scaled_dot_product_attention(
                queries[:, :, None],
                own_keys[:, :, : column + 1],
                own_values[:, :, : column + 1],
                attn_mask=mask,
                scale=values.shape[-1] ** -0.5,
                enable_gqa=queries.shape[1] != keys.shape[1],
            )
            return out.flatten(1)

        self.seen_BL[:, column] = True
        self.column += 1
        return attended

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows."""
        self.keys = [each.index_select(0, rows) for each in self.keys]
        self.values = [each.index_select(0, rows) for each in self.values]
        self.seen_BL = self.seen_BL.index_select(0, rows)
