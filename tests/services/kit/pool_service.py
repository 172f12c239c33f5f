"""A service whose scorer runs in two worker processes: started by the process tests."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from pydantic_settings import SettingsConfigDict

from services.kit.dispatch.workers import ProcessPool
from services.kit.run import serve
from services.kit.settings import ServiceSettings, load_settings
from services.kit.testing.fakes import PromptLengthScorer


class LoadsSlowly(PromptLengthScorer):
    def __init__(self, seconds: float, weights: Path | None) -> None:
        super().__init__()
        self._seconds = seconds
        self._weights = weights

    def load(self) -> None:
        time.sleep(self._seconds)
        if self._weights is not None and not self._weights.exists():
            raise RuntimeError("the weights are gone")


class PoolSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="POOL_TEST_")

    load_s: float = 0.0
    weights: Path | None = None


if __name__ == "__main__":
    settings = load_settings(PoolSettings)
    serve(lambda: ProcessPool(partial(LoadsSlowly, settings.load_s, settings.weights), workers=2), settings, "pool")
