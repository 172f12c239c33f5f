"""Processes and devices."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.config.base import FilePath, Section


class DeviceConfig(Section):
    """Where tensors live."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA when there is one.")
    num_threads: int | None = Field(
        None, ge=1, description="torch threads per process on a CPU; null is torch's choice."
    )


class DistributedConfig(DeviceConfig):
    """Processes and devices."""

    timeout_s: float = Field(3600.0, gt=0, description="Longest wait in a collective operation.")
    deepspeed: FilePath | None = Field(
        None, description="A DeepSpeed JSON file, as in configs/deepspeed; null: every rank holds everything."
    )
