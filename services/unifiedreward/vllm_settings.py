"""Settings of the commands that start vLLM themselves."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.unifiedreward.settings import UnifiedRewardSettings
from services.unifiedreward.vllm_command import ParallelMode, VllmOptions, installed_version


class ServeSettings(UnifiedRewardSettings):
    """The gateway's settings, and how vLLM is started. The `vllm_...` variables have no further prefix."""

    model_config = SettingsConfigDict(env_prefix="UNIFIEDREWARD_", populate_by_name=True)

    vllm_executable: str = Field(
        default="vllm", validation_alias="vllm_executable", description="vLLM's program, of any environment."
    )
    vllm_version: str | None = Field(
        default=None, validation_alias="vllm_version", description="Its version; unset: asked of its environment."
    )
    vllm_parallel_mode: ParallelMode | None = Field(
        default=None,
        validation_alias="vllm_parallel_mode",
        description="dp: a copy of the model on each GPU; tp: one model over all; none: one GPU. Unset: by the sizes, "
        "else dp.",
    )
    vllm_data_parallel_size: int | None = Field(
        default=None, ge=1, validation_alias="vllm_data_parallel_size", description="Copies; unset: by the GPUs."
    )
    vllm_tensor_parallel_size: int | None = Field(
        default=None,
        ge=1,
        validation_alias="vllm_tensor_parallel_size",
        description="GPUs of one copy; unset: see mode.",
    )
    vllm_max_model_len: int = Field(
        default=32_768, ge=1024, validation_alias="vllm_max_model_len", description="Longest question with its answer."
    )
    vllm_gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, validation_alias="vllm_gpu_memory_utilization", description="Share of a GPU's memory."
    )
    vllm_extra_args: str = Field(
        default="", validation_alias="vllm_extra_args", description="Further flags of vLLM, as on a command line."
    )

    def vllm_options(self) -> VllmOptions:
        return VllmOptions(
            model=self.model,
            judge_url=self.judge_url,
            executable=self.vllm_executable,
            parallel_mode=self.vllm_parallel_mode,
            data_parallel_size=self.vllm_data_parallel_size,
            tensor_parallel_size=self.vllm_tensor_parallel_size,
            max_model_len=self.vllm_max_model_len,
            gpu_memory_utilization=self.vllm_gpu_memory_utilization,
            extra_args=self.vllm_extra_args,
            version=self.vllm_version or installed_version(self.vllm_executable),
        )
