"""What the UniGenBench judge passes: a plain picture, and test points that it plainly has."""

from __future__ import annotations

from collections.abc import Mapping

from services.eval.judge import REWARD
from services.kit.samples import Sample, circle


def samples() -> Mapping[str, Sample]:
    """By reward."""
    points = {
        "testpoints": ["Attribute - Color", "Attribute - Shape"],
        "descriptions": ["the circle is red", "the thing in the middle is a circle"],
    }
    return {REWARD: circle(good=1.0, metadata=points)}
