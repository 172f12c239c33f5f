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

    @field_validator("functions", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        # A repeated flag arrives joined by commas, which also separate a file's names: split before FILE.py only.
        return re.split(r",(?=[^,]*\.py(?:[:,]|$))", value) if isinstance(value, str) else value


def make_scorer(settings: RulesSettings) -> Scorer:
    """The rules scorer the settings describe; in worker processes when there are several."""
    factory = partial(RulesScorer, settings.functions)
    return factory() if settings.workers == 1 else ProcessPool(factory, settings.workers)


if __name__ == "__main__":
    _settings = load_settings(RulesSettings, prog="services.rules")
    serve(lambda: make_scorer(_settings), _settings, "rules")
