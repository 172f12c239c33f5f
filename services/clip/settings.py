"""Settings of the CLIP service."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Self

from pydantic import AliasChoices, Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.clip.scorer import ClipScorer
from services.kit.dispatch.workers import ProcessPool
from services.kit.models.settings import ModelSettings
from services.kit.models.sources import inspect_file, inspect_folder
from services.kit.scorer import Scorer


class ClipSettings(ModelSettings):
    """Serve clip_sim, aesthetic, pickscore and relatives. Another command: `convert`, with its own --help.

    Each flag is also an environment variable (CLIP_PICKSCORE, CLIP_PORT, ...).
    """

    # No field may be called `url`: CLIP_URL is where the trainer finds this service.
    model_config = SettingsConfigDict(env_prefix="CLIP_", populate_by_name=True)

    port: int = Field(default=18080, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    model: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("model", "CLIP_MODEL", "CLIP_MODEL_NAME_OR_PATH"),
        description="Folder of a CLIP or SigLIP of transformers, for clip_sim and relatives. DeepGen-RL's variable for "
        "it works, too.",
    )
    pickscore: Path | None = Field(default=None, description="Folder of PickScore_v1, for pickscore and its units.")
    aesthetic: Path | None = Field(
        default=None,
        description="sac+logos+ava1-l14-linearMSE.pth as published, or as written by `convert`; needs ViT-L/14 as --model.",
    )
    feature_entries: int = Field(
        default=16_384, ge=1, description="Images and prompts whose features each backbone remembers (4 kB each)."
    )

    @model_validator(mode="after")
    def _some_weights(self) -> Self:
        if self.model is None and self.pickscore is None:
            raise ValueError("nothing to serve: give --model, --pickscore or both")
        if self.aesthetic is not None and self.model is None:
            raise ValueError("--aesthetic is a head on --model: give --model, too (openai/clip-vit-large-patch14)")
        return self


def make_scorer(settings: ClipSettings) -> Scorer:
    """The scorer the settings describe; in worker processes, each with the weights, when there are several.

    Raises SourceError, or ValueError for a device that is not there.
    """
    factory = partial(
        ClipScorer,
        inspect_folder(settings.model, "--model") if settings.model else None,
        inspect_folder(settings.pickscore, "--pickscore") if settings.pickscore else None,
        inspect_file(settings.aesthetic, "--aesthetic") if settings.aesthetic else None,
        **settings.network,
        entries=settings.feature_entries,
    )
    return factory() if settings.workers == 1 else ProcessPool(factory, settings.workers)
