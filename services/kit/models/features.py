"""Features that were computed before, so that several rewards of one backbone encode each image once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from PIL import Image

_T = TypeVar("_T")


class FeatureCache:
    """Rows of features by key, the longest unused dropped first.

    entries: how many rows are kept, each of E float32 numbers (3 kB for ViT-L/14). `hits` and `misses` count look-ups;
    equal things of one call count once.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._rows: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def rows(
        self, keys: Sequence[Hashable], things: Sequence[_T], encode: Callable[[list[_T]], torch.Tensor]
    ) -> torch.Tensor:
        """[N, E], one row for each thing; `encode` is asked once, for those that are new, each once."""
        new = {key: thing for key, thing in zip(keys, things, strict=True) if key not in self._rows}
        self.misses += len(new)
        self.hits += len(set(keys)) - len(new)
        fresh = dict(zip(new, encode(list(new.values())), strict=True)) if new else {}
        # What is asked for now must be found below even where the cache is smaller than the call.
        found = torch.stack([fresh[key] if key in fresh else self._touch(key) for key in keys])
        for key, row in fresh.items():
            self._rows[key] = row
        while len(self._rows) > self._entries:
            self._rows.popitem(last=False)
        return found

    def _touch(self, key: Hashable) -> torch.Tensor:
        self._rows.move_to_end(key)
        return self._rows[key]


def image_key(image: Image.Image) -> bytes:
    """A digest of the pixels as they are shown: equal for equal RGB images."""
    digest = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()
