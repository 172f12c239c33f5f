"""Settings of the VQA service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.kit.judge.settings import JudgeSettings
from services.kit.settings import Port


class VqaSettings(JudgeSettings):
    """Flags and environment variables (`VQA_MODEL`, `VQA_PORT`, ...) of `python -m services.vqa`."""

    # No field may be called `url`: VQA_URL is where the trainer finds this service.
    model_config = SettingsConfigDict(env_prefix="VQA_")

    port: Port = 18089
    template: Path | None = Field(
        default=None,
        description="Text of the yes-or-no question, with {prompt} where the prompt goes; unset: our own wording.",
    )
    deqa_template: Path | None = Field(
        default=None, description="Text that asks for excellent, good, fair, poor or bad; unset: our own wording."
    )
    check_model: bool = Field(
        default=True, description="At start, ask about a drawn image; a model that does not answer does not start."
    )
