"""Settings of the GenEval service."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.model_settings import ModelSettings
from services.common.scorer import Scorer
from services.common.sources import inspect_folder
from services.common.workers import ProcessPool
from services.geneval.scorer import GenevalScorer

DETECTOR_KINDS = ("mask2former", "grounding-dino", "owlvit", "owlv2")


class GenevalSettings(ModelSettings):
    """Serve GenEval's scores and T2I-R1's gdino.

    Each flag is also an environment variable (GENEVAL_DETECTOR, GENEVAL_PORT, ...).
    """

    # No field may be called `url`: GENEVAL_URL is where the trainer finds this service.
    model_config = SettingsConfigDict(env_prefix="GENEVAL_")

    port: int = Field(default=18085, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    detector: Path = Field(
        description="Folder of a Mask2Former (as GenEval's own evaluation), Grounding DINO, OWL-ViT or OWLv2."
    )
    clip: Path | None = Field(
        default=None, description="Folder of a CLIP, ViT-L/14 in GenEval, for colours; unset: colours have no score."
    )


def make_scorer(settings: GenevalSettings) -> Scorer:
    """The scorer the settings describe; in worker processes, each with the weights, when there are several.

    Raises SourceError, or ValueError for a device that is not there.
    """
    factory = partial(
        GenevalScorer,
        inspect_folder(
            settings.detector, "--detector", DETECTOR_KINDS, "facebook/mask2former-swin-small-coco-instance"
        ),
        inspect_folder(settings.clip, "--clip") if settings.clip else None,
        device=settings.device,
        dtype=settings.dtype,
        max_batch=settings.max_batch,
        threads=settings.threads,
    )
    return factory() if settings.workers == 1 else ProcessPool(factory, settings.workers)
