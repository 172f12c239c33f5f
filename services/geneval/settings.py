"""Settings of the GenEval service."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.geneval.scorer import GenevalScorer
from services.kit.dispatch.workers import ProcessPool
from services.kit.models.settings import ModelSettings
from services.kit.models.sources import Source, inspect_folder
from services.kit.scorer import Scorer

DETECTOR_KINDS = ("mask2former", "grounding-dino", "owlvit", "owlv2")


class DetectorSettings(BaseSettings):
    """Which networks look at the images."""

    detector: Path = Field(
        description="Folder of a Mask2Former (as GenEval's own evaluation), Grounding DINO, OWL-ViT or OWLv2."
    )
    clip: Path | None = Field(
        default=None, description="Folder of a CLIP, ViT-L/14 in GenEval, for colours; unset: colours have no score."
    )


class GenevalSettings(DetectorSettings, ModelSettings):
    """Serve GenEval's scores and T2I-R1's gdino. Another command: `run`, with its own --help.

    Each flag is also an environment variable (GENEVAL_DETECTOR, GENEVAL_PORT, ...).
    """

    # No field may be called `url`: GENEVAL_URL is where the trainer finds this service.
    model_config = SettingsConfigDict(env_prefix="GENEVAL_")

    port: int = Field(default=18085, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")


class RunSettings(DetectorSettings):
    """Judge a folder of images by GenEval's rules; resumes where it stopped."""

    model_config = SettingsConfigDict(
        env_prefix="GENEVAL_",
        extra="ignore",
        frozen=True,
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_show_env_vars=True,
    )

    prompts: Path = Field(description="GenEval's evaluation_metadata.jsonl, or another file of such rows.")
    images: Path = Field(
        description="The images: 00012/samples/0003.png as GenEval's scripts write, 12_3.png, or 12.3.png as our trainer."
    )
    out: Path = Field(description="Folder for results.jsonl, table.csv and table.json.")
    device: str = Field(default="auto", description="auto (a GPU where there is one), cpu, cuda, cuda:1, ...")
    dtype: Literal["auto", "bf16", "fp32"] = Field(default="auto", description="Arithmetic of the CLIP.")
    resamples: int = Field(default=10_000, ge=100, le=1_000_000, description="Bootstrap resamples of the intervals.")
    seed: int = Field(default=0, ge=0, description="Of the bootstrap.")

    def scorer(self) -> GenevalScorer:
        """Not loaded yet. Raises SourceError, or ValueError for a device that is not there."""
        return GenevalScorer(*inspect_networks(self), device=self.device, dtype=self.dtype)


def inspect_networks(settings: DetectorSettings) -> tuple[Source, Source | None]:
    """The detector's and the CLIP's folders. Raises SourceError."""
    example = "facebook/mask2former-swin-small-coco-instance"
    detector = inspect_folder(settings.detector, "--detector", DETECTOR_KINDS, example)
    return detector, inspect_folder(settings.clip, "--clip") if settings.clip else None


def make_scorer(settings: GenevalSettings) -> Scorer:
    """The scorer the settings describe; in worker processes, each with the weights, when there are several.

    Raises SourceError, or ValueError for a device that is not there.
    """
    factory = partial(
        GenevalScorer,
        *inspect_networks(settings),
        **settings.network,
    )
    return factory() if settings.workers == 1 else ProcessPool(factory, settings.workers)
