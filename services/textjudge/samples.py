"""What a judge of texts marks well: a right answer in a sentence."""

from __future__ import annotations

from collections.abc import Mapping

from services.kit.samples import Sample


def samples() -> Mapping[str, Sample]:
    """By reward. The mark is the judge's."""
    answered = Sample(
        "Which color has fresh snow?",
        completion="Fresh snow is white: it scatters all colors of the light alike.",
        targets=("white",),
    )
    return dict.fromkeys(("text_quality", "text_match"), answered)
