"""Settings of the regression service."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.kit.dispatch.workers import ProcessPool
from services.kit.models.settings import ModelSettings
from services.kit.models.sources import TOKENIZER_FILES, at_hand, inspect_file
from services.kit.scorer import Scorer
from services.regression.recipe import read_recipe
from services.regression.scorer import RegressionScorer


class RegressionSettings(ModelSettings):
    """Serve HPSv3, EditReward, or another vision-language model with a head that gives a number.

    Each flag is also an environment variable (REGRESSION_RECIPE, REGRESSION_PORT, ...).
    """

    # No field may be called `url`: REGRESSION_URL is where the trainer finds this service.
    model_config = SettingsConfigDict(env_prefix="REGRESSION_")

    port: int = Field(default=18086, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    recipe: str = Field(description="hpsv3, editreward, or a YAML file with a recipe's fields.")
    backbone: Path = Field(
        description="Folder with config, tokenizer and image settings of the model that was trained further, such as "
        "Qwen/Qwen2-VL-7B-Instruct."
    )
    weights: Path = Field(description="The trained model with its heads: HPSv3.safetensors, model.pth, ...")
    templates: str = Field(
        description="Files, by commas, with the published text of each pass: {prompt} where the prompt goes, and the "
        "reward token."
    )


def make_scorer(settings: RegressionSettings) -> Scorer:
    """The scorer the settings describe; in worker processes, each with the weights, when there are several.

    Raises SourceError or RecipeError, or ValueError for a device that is not there.
    """
    factory = partial(
        RegressionScorer,
        read_recipe(settings.recipe),
        at_hand(settings.backbone, "--backbone", TOKENIZER_FILES),
        inspect_file(settings.weights, "--weights"),
        [Path(each.strip()) for each in settings.templates.split(",") if each.strip()],
        **settings.network,
    )
    return factory() if settings.workers == 1 else ProcessPool(factory, settings.workers)
