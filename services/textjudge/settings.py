"""Settings of the service that lets a judge mark texts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.kit.judge.settings import JudgeSettings, MaxTokens
from services.kit.settings import Port


class TextJudgeSettings(JudgeSettings):
    """Flags and environment variables (`TEXTJUDGE_MODEL`, `TEXTJUDGE_PORT`, ...) of `python -m services.textjudge`."""

    # No field may be called `url`: TEXTJUDGE_URL is where the trainer finds this service.
    model_config = SettingsConfigDict(env_prefix="TEXTJUDGE_")

    port: Port = 18090
    low: float = Field(
        default=0.0, description="The lowest mark the judge may give: the range of the rewards begins there."
    )
    high: float = Field(default=10.0, description="The highest mark.")
    template: Path | None = Field(
        default=None,
        description="Text of the question of text_quality, with {answer} where the answer goes; {prompt}, {low}, {high}, {key} "
        "and {pictures} may be in it. Unset: our own wording.",
    )
    match_template: Path | None = Field(
        default=None, description="The same of text_match, with {reference}, too. Unset: our own wording."
    )
    images: bool = Field(default=True, description="Show the judge the pictures of the prompt (source_images).")
    max_tokens: MaxTokens = 1024
    max_answer_characters: int = Field(
        default=20_000, ge=1, description="A longer answer is not shown to the judge and has the lowest mark."
    )
    check_model: bool = Field(
        default=True, description="At start, ask about a short answer; a model that gives no mark does not start."
    )

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"--low {self.low:g} and --high {self.high:g} are no range: the first must be the smaller one"
            )
        return self
