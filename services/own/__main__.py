"""`python -m services.own --file FILE.py[:NAME]`, or `rewards serve FILE.py[:NAME]`: serve the rewards of a user's file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.kit.dispatch.workers import ProcessPool
from services.kit.models.settings import ModelSettings
from services.kit.run import serve
from services.kit.scorer import Scorer
from services.kit.settings import Port, load_settings
from services.own.scorer import scorer_of


class OwnSettings(ModelSettings):
    """Settings of a service of your own. Those about networks act on a reward model alone."""

    model_config = SettingsConfigDict(env_prefix="OWN_")

    port: Port = 18091
    file: str = Field(
        description="FILE.py: its reward model, or its @reward functions. FILE.py:NAME, FILE.py:name1,name2 or module:NAME: exactly these."
    )
    checkpoint: Path | None = Field(
        default=None,
        description="Of a reward model: its weights, a folder or an id of the Hugging Face hub (owner/name).",
    )
    conversational: bool = Field(
        default=False,
        description="Functions of `completions` get prompts and completions as lists of messages instead of texts.",
    )


def make_scorer(settings: OwnSettings) -> Scorer:
    """The scorer of the file; in worker processes when there are several."""
    factory = partial(
        scorer_of,
        settings.file,
        conversational=settings.conversational,
        checkpoint=settings.checkpoint,
        options=settings.network,
    )
    return factory() if settings.workers == 1 else ProcessPool(factory, settings.workers)


if __name__ == "__main__":
    _settings = load_settings(OwnSettings, prog="services.own")
    serve(lambda: make_scorer(_settings), _settings, "own")
