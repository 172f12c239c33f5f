"""How a published reward of this kind is asked: which images, which texts, which heads, how their numbers become one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class RecipeError(ValueError):
    """A recipe cannot be read; the message names the file, the field and what it must be."""


class Recipe(BaseModel):
    """A reward made of one or more passes through the model. A file of one's own is YAML with these fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.-]{1,64}$", description="The reward's name.")
    images: Literal["edited", "source_and_edited"] = Field(
        default="edited", description="What the model sees: the image, or the source and then the image."
    )
    heads: tuple[str, ...] = Field(
        default=("rm_head",), min_length=1, description="Where each pass's head is in the weights, before `.0.weight`."
    )
    reward_token: str | None = Field(
        default="<|Reward|>", description="The token whose features go through the head; null: the last one."
    )
    output: int = Field(default=0, ge=0, description="Which of a head's numbers is the score, from 0.")
    combine: Literal["mean", "min"] = Field(default="mean", description="How several passes become one number.")
    positions: Literal["model", "sequential"] = Field(
        default="model",
        description="The model's own positions for images, or 0, 1, 2, ... for all tokens, with which some were trained.",
    )
    pixels: int = Field(default=256 * 28 * 28, ge=28 * 28, le=1 << 24, description="The area an image is scaled to.")


# HPSv3: Ma et al., 2025, github.com/MizzenAI/HPSv3. Its head gives a mean and a log standard deviation; its released
# code never passes positions for images, so the weights know only sequential ones.
# EditReward: Wu et al., 2025, github.com/TIGER-AI-Lab/EditReward. One head asks whether the instruction was followed,
# the other about quality, each with its own text.
RECIPES = {
    "hpsv3": Recipe(name="hpsv3", positions="sequential"),
    "editreward": Recipe(name="editreward", images="source_and_edited", heads=("rm_heads.head_0", "rm_heads.head_1")),
}


def read_recipe(name: str) -> Recipe:
    """A recipe by its name, or from a YAML file. Raises RecipeError."""
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"--recipe {name!r} is none of {', '.join(RECIPES)}, nor a YAML file")
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"--recipe {path}: cannot be read ({error})") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RecipeError(f"--recipe {path}: {field}: {first['msg']}") from error
