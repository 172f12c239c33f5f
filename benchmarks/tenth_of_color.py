"""A reward of small spread for the comparison of estimators: a tenth of `color_match`, served by the rules service."""

from __future__ import annotations

from dataclasses import replace

from services.kit.scorer import Item, Result, Score
from services.rules import reward
from services.rules.color import color_match


@reward(name="color_tenth", range=(0.0, 0.1))
def color_tenth(item: Item) -> Result:
    """0 to 0.1."""
    result = color_match(item)
    return replace(result, value=result.value / 10) if isinstance(result, Score) else result
