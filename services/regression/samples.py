"""What the recipes' rewards score well: a picture of what the prompt says, and for edits the picture before."""

from __future__ import annotations

from collections.abc import Mapping

from services.kit.samples import BLUE, Sample, circle, disc
from services.regression.recipe import RECIPES, Recipe


def samples() -> Mapping[str, Sample]:
    """By reward, of the recipes that come with the service."""
    return {recipe.name: sample_of(recipe) for recipe in RECIPES.values()}


def sample_of(recipe: Recipe) -> Sample:
    """For any recipe, by what its model sees."""
    if recipe.images == "edited":
        return circle()
    return Sample("make the circle red", (disc(),), source_images=(disc(BLUE),))
