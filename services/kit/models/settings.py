"""Settings shared by services that run a network of their own with torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from services.kit.models.network_scorer import NetworkOptions
from services.kit.settings import ServiceSettings


class ModelSettings(ServiceSettings):
    """Where a network runs, in which arithmetic, and how many images at a time."""

    device: str = Field(default="auto", description="auto (a GPU where there is one), cpu, cuda, cuda:1, ...")
    dtype: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="Arithmetic of the network; auto: bf16 on a GPU that has it, fp32 elsewhere."
    )
    max_batch: int | None = Field(
        default=None, ge=1, le=4096, description="Images per forward pass; unset: 64 on a GPU, 8 on the CPU."
    )
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="Torch's threads per process on the CPU; unset: one per core."
    )

    @property
    def network(self) -> NetworkOptions:
        """What `NetworkScorer` takes of them."""
        return {"device": self.device, "dtype": self.dtype, "max_batch": self.max_batch, "threads": self.threads}

    @model_validator(mode="after")
    def _front_names_dtype(self) -> Self:
        if self.role == "front" and self.dtype == "auto":
            raise ValueError(
                "role front has no model to choose a dtype by: give --dtype bf16 or fp32, as the workers have"
            )
        return self
