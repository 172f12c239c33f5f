"""What UnifiedReward scores well: of two pictures the one that the prompt asks for, or that picture alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from services.kit.samples import BLUE, CIRCLE_PROMPT, INK, Sample, circle, disc
from services.unifiedreward.kinds import PAIR_QUESTIONS, KindName


def samples() -> Mapping[str, Sample]:
    """By reward. An edit starts from a blue circle."""
    return {kind: _of(kind) for kind in get_args(KindName)}


def _of(kind: str) -> Sample:
    edits = kind.startswith("edit")
    prompt, sources = ("make the circle red", (disc(BLUE),)) if edits else (CIRCLE_PROMPT, ())
    if kind not in PAIR_QUESTIONS:
        return Sample(prompt, (disc(),), source_images=sources) if edits else circle()
    return Sample(prompt, (disc(), disc(INK, "gray")), good=0.5, source_images=sources)
