"""Settings of the ImageReward service."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.imagereward.scorer import ImageRewardScorer
from services.kit.dispatch.workers import ProcessPool
from services.kit.models.settings import ModelSettings
from services.kit.models.sources import at_hand, inspect_file
from services.kit.scorer import Scorer


class ImageRewardSettings(ModelSettings):
    """Serve ImageReward. Another command: `convert`, with its own --help.

    Each flag is also an environment variable (IMAGE_REWARD_WEIGHTS, IMAGE_REWARD_PORT, ...).
    """

    # No field may be called `url`: IMAGE_REWARD_URL is where the trainer finds this service.
    model_config = SettingsConfigDict(env_prefix="IMAGE_REWARD_")

    port: int = Field(default=18081, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    weights: Path = Field(description="ImageReward.pt as published, or as written by `convert`.")
    tokenizer: Path = Field(description="Folder with vocab.txt of bert-base-uncased.")


def make_scorer(settings: ImageRewardSettings) -> Scorer:
    """The scorer the settings describe; in worker processes, each with the weights, when there are several.

    Raises SourceError, or ValueError for a device that is not there.
    """
    factory = partial(
        ImageRewardScorer,
        inspect_file(settings.weights, "--weights"),
        at_hand(settings.tokenizer, "--tokenizer", ("vocab.txt",)),
        **settings.network,
    )
    return factory() if settings.workers == 1 else ProcessPool(factory, settings.workers)
