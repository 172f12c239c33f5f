"""Settings of the GenEval service."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.common.scorer import Scorer
from services.common.settings import ServiceSettings
from services.common.sources import inspect_folder
from services.common.workers import ProcessPool
from services.geneval.scorer import GenevalScorer

DETECTOR_KINDS = ("mask2former", "grounding-dino", "owlvit", "owlv2")


class GenevalSettings(ServiceSettings):
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
    device: str = Field(default="auto", description="auto (a GPU where there is one), cpu, cuda, cuda:1, ...")
    dtype: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="Arithmetic of the CLIP; auto: bf16 on a GPU that has it. The detector is fp32."
    )
    max_batch: int | None = Field(default=None, ge=1, le=1024, description="Items per call; unset: 8.")
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="Torch's threads per process on the CPU; unset: one per core."
    )

    @model_validator(mode="after")
    def _front_names_dtype(self) -> Self:
        if self.role == "front" and self.dtype == "auto":
            raise ValueError(
                "role front has no model to choose a dtype by: give --dtype bf16 or fp32, as the workers have"
            )
        return self


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
