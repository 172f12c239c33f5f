"""`python -m services.rules [--functions FILE.py[:name1,name2]] ...`: serve the rules rewards."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from services.kit.dispatch.workers import ProcessPool
from services.kit.run import serve
from services.kit.scorer import Scorer
from services.kit.settings import ServiceSettings, load_settings
from services.rules.lengths import Lengths, Unit
from services.rules.scorer import RulesScorer


class RulesSettings(ServiceSettings):
    """Settings of the rules service."""

    model_config = SettingsConfigDict(env_prefix="RULES_")

    port: int = Field(default=18084, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    functions: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="A file of rewards: FILE.py for its @reward functions, or FILE.py:name1,name2 for exactly those. "
        "Repeatable; several in the variable are separated by commas.",
    )
    conversational: bool = Field(
        default=False,
        description="Functions of `completions` get prompts and completions as lists of messages instead of texts.",
    )
    length_unit: Unit = Field(default="tokens", description="What the rewards length and overlong count.")
    target_length: int | None = Field(
        default=None,
        ge=1,
        description="The length that the reward length asks for, where metadata.target_length does not.",
    )
    max_length: int | None = Field(
        default=None, ge=1, description="From where on overlong is -1, where metadata.max_length does not say it."
    )
    overlong_buffer: int | None = Field(
        default=None,
        ge=1,
        description="How long before max_length overlong begins, where metadata.overlong_buffer does not.",
    )

    @field_validator("functions", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        # A repeated flag arrives joined by commas, which also separate a file's names: split before FILE.py only.
        return re.split(r",(?=[^,]*\.py(?:[:,]|$))", value) if isinstance(value, str) else value


def make_scorer(settings: RulesSettings) -> Scorer:
    """The rules scorer the settings describe; in worker processes when there are several."""
    lengths = Lengths(settings.length_unit, settings.target_length, settings.max_length, settings.overlong_buffer)
    factory = partial(RulesScorer, settings.functions, lengths, conversational=settings.conversational)
    return factory() if settings.workers == 1 else ProcessPool(factory, settings.workers)


if __name__ == "__main__":
    _settings = load_settings(RulesSettings, prog="services.rules")
    serve(lambda: make_scorer(_settings), _settings, "rules")
