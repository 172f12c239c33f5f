"""A fake service that scores nothing but its warm-up until a file is there: the test says when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from pydantic_settings import SettingsConfigDict

from services.kit.run import serve
from services.kit.scorer import Item, Result
from services.kit.settings import ServiceSettings, load_settings
from services.kit.testing.fakes import PromptLengthScorer


class Gated(PromptLengthScorer):
    def __init__(self, gate: Path) -> None:
        super().__init__(max_batch=1)
        self._gate = gate

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        while items[0].id != "warmup" and not self._gate.exists():
            time.sleep(0.01)
        return super().score(reward, items)


class GatedSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="GATED_TEST_")

    gate: Path


if __name__ == "__main__":
    settings = load_settings(GatedSettings)
    serve(lambda: Gated(settings.gate), settings, "gated")
