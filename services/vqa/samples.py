"""What the questions about one image score well: a picture of what the prompt says."""

from __future__ import annotations

from collections.abc import Mapping

from services.kit.samples import Sample, circle


def samples() -> Mapping[str, Sample]:
    """By reward. How sure a judge is of it is the judge's."""
    return dict.fromkeys(("vqa_yes", "vqa_yes_ratio", "deqa", "deqa_over_5"), circle())
