"""Which part of a vision-language model a parameter belongs to, by its name."""

from __future__ import annotations

import re

from trainer.config.vlm import Part

# Names of the projector first: in Qwen's models it lies inside the vision tower.
_PROJECTOR = re.compile(
    r"\b(?:connector|multi_modal_projector|merger|deepstack_merger_list|aligner|modality_projection|mlp1|MP)\b"
)
_VISION = re.compile(r"\b(?:vision_model|vision_tower|visual|vision_encoder|vit)\b")


def part_of(name: str) -> Part:
    """`vision`, `projector` (what makes tokens of an image's features), or `language`, which is all else."""
    if _PROJECTOR.search(name):
        return "projector"
    return "vision" if _VISION.search(name) else "language"
