"""Prompts are read once while there is room for what was read."""

from __future__ import annotations

import torch

from trainer.policies.tokens.draw import Reading
from trainer.policies.tokens.readings import KeptReadings


def reading(pixels: int) -> Reading:
    return Reading(torch.zeros(4, dtype=torch.int64), {"pixel_values": torch.zeros(pixels)})  # 32 + 4 * pixels bytes


def test_the_least_recently_used_goes_first() -> None:
    kept = KeptReadings(300)
    first, second, third = (reading(25) for _ in range(3))  # 132 bytes each, so two have room
    assert kept.keep(("a", ()), first) is first
    kept.keep(("b", ("one.png",)), second)
    assert kept.get(("a", ())) is first
    kept.keep(("c", ()), third)
    assert kept.get(("b", ("one.png",))) is None
    assert kept.get(("a", ())) is first and kept.get(("c", ())) is third


def test_what_has_no_room_is_not_kept() -> None:
    kept = KeptReadings(300)
    small, large = reading(25), reading(100)
    kept.keep(("a", ()), small)
    assert kept.keep(("b", ()), large) is large
    assert kept.get(("b", ())) is None and kept.get(("a", ())) is small


def test_images_are_part_of_what_is_asked() -> None:
    kept = KeptReadings(300)
    kept.keep(("which ?", ("one.png",)), reading(1))
    assert kept.get(("which ?", ("two.png",))) is None
