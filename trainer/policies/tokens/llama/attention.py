"""Attention of texts of unequal length that lie behind one another without padding. Axes as in `layers`; R texts, L columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from machine.transfers import numbers, sent


@dataclass(frozen=True, eq=False)
class Ragged:
    """N tokens of R texts, behind one another; padded they are (R, L), with the padding on the right.

    Attributes:
        lengths: of the texts.
        where_N: place of each token among the R * L padded ones; None where nothing is padded.
    """

    lengths: Sequence[int]
    where_N: Tensor | None

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> Ragged:
        longest = max(lengths, default=0)
        if all(length == longest for length in lengths):
            return Ragged(lengths, None)
        inside_RL = torch.arange(longest) < torch.tensor(lengths)[:, None]
        return Ragged(lengths, sent(inside_RL.flatten().nonzero()[:, 0], device))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.lengths), max(self.lengths, default=0)

    def pad(self, tokens_N: Tensor) -> Tensor:
        """(N, ...) to (R, L, ...), zeros where there is no token."""
        if self.where_N is not None:
            full = tokens_N.new_zeros(self.shape[0] * self.shape[1], *tokens_N.shape[1:])
            tokens_N = full.index_copy(0, self.where_N, tokens_N)
        return tokens_N.unflatten(0, self.shape)

    def flat(self, tokens_RL: Tensor) -> Tensor:
        """(R, L, ...) to (N, ...)."""
        flat = tokens_RL.flatten(0, 1)
        return flat if self.where_N is None else flat.index_select(0, self.where_N)

    def inside(self, device: torch.device) -> Tensor:
        """Bool (R, L): where there is a token."""
        return torch.arange(self.shape[1], device=device) < numbers(self.lengths, device)[:, None]


def rotated(heads_NHD: Tensor, cos_ND: Tensor, turned_sin_ND: Tensor) -> Tensor:
    """Each pair of dimensions (i, i + D / 2) of every head turned by its token's angle.

    Args:
        turned_sin_ND: sines, their first half negative: x' = x cos - y sin, y' = y cos + x sin.
    """
    swapped = heads_NHD.roll(heads_NHD.shape[-1] // 2, -1)
    return torch.addcmul(heads_NHD * cos_ND[:, None], swapped, turned_sin_ND[:, None])


def turned(sin_ND: Tensor) -> Tensor:
    """Sines as `rotated` takes them."""
    first, second = sin_ND.chunk(2, -1)
    return torch.cat([-first, second], -1)


def attend(queries_RLHD: Tensor, keys_RTKD: Tensor, values_RTKD: Tensor, allowed_RLT: Tensor | None) -> Tensor:
    """What each query takes from the values (R, L, H * D). Each head of keys serves H / K heads of queries.

    Args:
        allowed_RLT: bool, which keys a query sees, at least one; None is each its own and those before it.
    """
    queries, keys, values = (heads.transpose(1, 2) for heads in (queries_RLHD, keys_RTKD, values_RTKD))
    mask = None if allowed_RLT is None else allowed_RLT[:, None]
    attended = functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=queries.shape[1] != keys.shape[1]
    )
    return attended.transpose(1, 2).flatten(2)
