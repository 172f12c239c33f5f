"""What ImageReward scores well: a picture of what the prompt says."""

from __future__ import annotations

from collections.abc import Mapping

from services.kit.samples import Sample, circle


def samples() -> Mapping[str, Sample]:
    """By reward."""
    return {"imagereward": circle()}
