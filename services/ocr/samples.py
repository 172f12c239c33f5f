"""What the OCR rewards score well: a sign that says what the prompt quotes."""

from __future__ import annotations

from collections.abc import Mapping

from services.kit.samples import Sample, sign


def samples() -> Mapping[str, Sample]:
    """By reward."""
    shown = Sample('a shop sign that says "FRESH BREAD" in red', (sign("FRESH BREAD"),), good=0.9)
    return dict.fromkeys(("multi", "flow_grpo", "strict", "deepgen_new"), shown)
