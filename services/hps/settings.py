"""Settings of the HPS service."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.hps.checkpoint import Version, inspect
from services.hps.scorer import HpsScorer
from services.kit.dispatch.workers import ProcessPool
from services.kit.models.settings import ModelSettings
from services.kit.models.sources import at_hand
from services.kit.scorer import Scorer


class HpsSettings(ModelSettings):
    """Serve HPSv2 or HPSv2.1. Other commands: `convert` and `vocabulary`, each with its own --help.

    Each flag is also an environment variable (HPS_CHECKPOINT, HPS_PORT, ...).
    """

    # No field may be called `url`: HPS_URL is where the trainer finds this service.
    model_config = SettingsConfigDict(env_prefix="HPS_")

    port: int = Field(default=18083, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    checkpoint: Path = Field(
        description="HPS_v2_compressed.pt or HPS_v2.1_compressed.pt as published, or a folder written by `convert`."
    )
    version: Version | None = Field(
        default=None, description="Which HPS a published file is, where its name does not say it."
    )
    vocabulary: Path | None = Field(
        default=None,
        description="bpe_simple_vocab_16e6.txt.gz, or a folder with it or merges.txt; unset: beside or in the checkpoint.",
    )


def make_scorer(settings: HpsSettings) -> Scorer:
    """The scorer the settings describe; in worker processes, each with the weights, when there are several.

    Raises CheckpointError, SourceError, or ValueError for a device that is not there.
    """
    factory = partial(
        HpsScorer,
        inspect(at_hand(settings.checkpoint, "--checkpoint"), settings.version),
        settings.vocabulary,
        **settings.network,
    )
    return factory() if settings.workers == 1 else ProcessPool(factory, settings.workers)
