"""The supervised loss beside an objective."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from trainer.config.base import FilePath, Positive, Section, Share
from trainer.config.objective import TimestepDistribution


class SftSetConfig(Section):
    """One of several files of images and texts."""

    path: FilePath = Field(description="A JSON array or JSON lines of {image_path, txt}.")
    image_folder: FilePath | None = Field(
        None, description="Where the image paths start; null is that of `sft`, or the folder of `path`."
    )
    weight: Positive = Field(1.0, description="How often an entry is drawn, relative to those of the other files.")


class SftLossConfig(Section):
    """Flow matching on images and their texts, beside the objective: (1 - coef) * objective + coef * this."""

    path: FilePath | None = Field(None, description="A JSON array or JSON lines of {image_path, txt}.")
    sets: tuple[SftSetConfig, ...] = Field((), description="Several such files with weights, in place of path.")
    image_folder: FilePath | None = Field(
        None, description="Where the image paths start; null is the folder of `path`."
    )
    coef: float = Field(1e-4, gt=0, le=1, description="Share of this loss in the sum.")
    batch_size: int = Field(8, ge=1, description="Images of an update, over all ranks.")
    micro_batch_size: int | None = Field(None, ge=1, description="Images per forward pass; null takes all of a rank.")
    every: int = Field(1, ge=1, description="Training steps from one with this loss to the next.")
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="[height, width]: images are scaled to cover it and cut; null takes them as they are."
    )
    prompt_dropout: Share = Field(0.1, description="Share of the texts that are left empty, for guidance.")
    timestep_distribution: TimestepDistribution = Field(
        "uniform", description="Distribution of the noise levels that images are trained at."
    )
    timestep_shift: Positive = Field(
        1.0, description="Shift of these noise levels; 1 is none, and more makes them noisier."
    )

    @model_validator(mode="after")
    def _has_files(self) -> SftLossConfig:
        if (self.path is None) == (not self.sets):
            raise ValueError("give `path`, a file of images and texts, or several files as `sets`: one of the two")
        return self

    @property
    def files(self) -> tuple[SftSetConfig, ...]:
        """`sets`, or `path` as the only one."""
        return self.sets if self.path is None else (SftSetConfig(path=self.path),)

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> SftLossConfig:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} is more than batch_size = {self.batch_size}, all images of "
                "an update; lower it or leave it out"
            )
        return self
