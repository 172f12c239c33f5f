"""Rewards of the quickstart of packed training, beside those of the rules service, which serves this file.

`side_by_side` gives quarters. These say whether nothing is missing: in the whole image (`exact`), in the thing that was to be
changed (`changed`), in the other one, which was to stay (`kept`), and in what was thought before (`thought`).
"""

from __future__ import annotations

from services.kit.scorer import Failure, Item, Result, Score
from services.rules import reward
from services.rules.side_by_side import side_by_side
from wire.schema import ErrorCode


@reward(range=(0, 1))
def exact(item: Item) -> Result:
    """Both colours and both shapes are there, each on its side."""
    seen = side_by_side(item)
    return seen if isinstance(seen, Failure) else Score(float(seen.value == 1), details=seen.details)


@reward(range=(0, 1))
def changed(item: Item) -> Result:
    """Colour and shape of the thing on the side `metadata.edited`."""
    return _side(item, "edited")


@reward(range=(0, 1))
def kept(item: Item) -> Result:
    """Colour and shape of the thing on the side `metadata.kept`."""
    return _side(item, "kept")


@reward(range=(0, 1))
def thought(item: Item) -> Result:
    """The thought is the target, word by word."""
    if item.completion is None or not item.targets:
        return Failure(
            ErrorCode.NOT_APPLICABLE, "the item has no completion or no target, so nothing was to be thought"
        )
    said = item.completion.replace("<think>", " ").replace("</think>", " ").split()
    return Score(float(said == item.targets[0].split()))


def _side(item: Item, name: str) -> Result:
    side = item.metadata.get(name)
    if side not in ("left", "right"):
        return Failure(ErrorCode.NOT_APPLICABLE, f"the item has no metadata.{name}, so it is no edit")
    seen = side_by_side(item)
    if isinstance(seen, Failure):
        return seen
    return Score(min(seen.components[f"{side}_color"], seen.components[f"{side}_shape"]), details=seen.details)
