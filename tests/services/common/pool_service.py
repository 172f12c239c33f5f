"""A service whose scorer runs in two worker processes: started by the process tests."""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from services.common.fakes import PromptLengthScorer
from services.common.run import serve
from services.common.settings import ServiceSettings, load_settings
from services.common.workers import ProcessPool


class PoolSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="POOL_TEST_")


if __name__ == "__main__":
    settings = load_settings(PoolSettings)
    serve(lambda: ProcessPool(PromptLengthScorer, workers=2), settings, "pool")
