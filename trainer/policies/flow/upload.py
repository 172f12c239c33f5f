"""Tensors of the host on their way to the device, without a wait and no more of them than there are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from machine.transfers import sent

Key = TypeVar("Key", bound=Hashable)


def upload_once(
    keys_B: Sequence[Key], join: Callable[[Sequence[Key]], Mapping[str, Tensor]], device: torch.device
) -> dict[str, Tensor]:
    """A batch of B rows of which equal keys have the same: each distinct one is sent once, and repeated on the device.

    Args:
        join: makes of distinct keys, in order, tensors with a row for each; padding is that of the longest.
    """
    places = {key: place for place, key in enumerate(dict.fromkeys(keys_B))}
    moved = {name: sent(tensor, device) for name, tensor in join(list(places)).items()}
    if len(places) == len(keys_B):
        return moved
    # Rows are taken one by one: a list of numbers as an index would be copied to the device, which waits.
    return {name: torch.stack([tensor[places[key]] for key in keys_B]) for name, tensor in moved.items()}
