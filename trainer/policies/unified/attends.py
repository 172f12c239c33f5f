"""What a layer of two experts asks for its attention: training answers with a pack's, generation with one that keeps a context."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

Pair = tuple[Tensor, Tensor]  # of the two kinds of tokens: (U, ...), (G, ...)


class Attends(Protocol):
    """Who sees whom: what a layer asks for its attention."""

    def __call__(self, layer: int, q: Pair, k: Pair, v: Pair) -> Pair:
        """The attention of both kinds of tokens, (U, H, D) and (G, H, D), for q of that shape, k and v with as many heads or fewer.

        Args:
            layer: its number, for what is kept from one call to the next.
        """
        ...
