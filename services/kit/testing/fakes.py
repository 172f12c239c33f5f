"""Deterministic scorers named after their behaviour, for tests on both sides of the wire.

`python -m services.kit.testing.fakes --behaviour slow --latency-ms 200 --port 0` serves one in a real process.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.kit.run import serve
from services.kit.scorer import Failure, Item, Result, Score, Scorer
from services.kit.settings import ServiceSettings, load_settings
from wire.schema import ErrorCode, ScorerInfo


class FakeScorer(ABC):
    """Base: one reward under its own name, no weights. Counts its calls; subclasses give `score_item`."""

    name = "fake"

    def __init__(self, max_batch: int = 8) -> None:
        self._max_batch = max_batch
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.loaded = False
        self.closed = False

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        return {self.name: ScorerInfo(name=self.name, revision="1", range=(None, None))}

    @property
    def max_batch(self) -> int:
        return self._max_batch

    def load(self) -> None:
        self.loaded = True

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        self.batches.append(len(items))
        self.threads.add(threading.get_ident())
        return [self.score_item(item) for item in items]

    @abstractmethod
    def score_item(self, item: Item) -> Result:
        """The one thing the fakes differ in."""

    def warmup(self) -> Sequence[tuple[str, Item]]:
        return [(self.name, Item(id="warmup", prompt="warm-up", completion=""))]

    def close(self) -> None:
        self.closed = True


class ConstantScorer(FakeScorer):
    """Every item gets the same score."""

    name = "constant"
    image_only = ("constant",)

    def __init__(self, value: float = 0.5, max_batch: int = 8) -> None:
        super().__init__(max_batch)
        self._value = value

    def score_item(self, item: Item) -> Result:
        return Score(self._value)


class PromptLengthScorer(FakeScorer):
    """The number of characters in the prompt: each item's own, so that a mix-up shows."""

    name = "prompt_length"

    def score_item(self, item: Item) -> Result:
        return Score(float(len(item.prompt)), {"images": float(len(item.images))}, {"prompt": item.prompt})


class SlowScorer(PromptLengthScorer):
    """The prompt's length after `latency_s` per batch."""

    name = "slow"

    def __init__(self, latency_s: float, max_batch: int = 8) -> None:
        super().__init__(max_batch)
        self._latency_s = latency_s

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        if any(item.id != "warmup" for item in items):
            time.sleep(self._latency_s)
        return super().score(reward, items)


class FailEveryNthScorer(PromptLengthScorer):
    """Every n-th item, counted over all calls, is a `parse_error`; the others get their prompt's length."""

    name = "fail_every_nth"

    def __init__(self, every: int, max_batch: int = 8) -> None:
        super().__init__(max_batch)
        self._every = every
        self._seen = 0

    def score_item(self, item: Item) -> Result:
        if item.id == "warmup":
            return super().score_item(item)
        self._seen += 1
        if self._seen % self._every == 0:
            return Failure(ErrorCode.PARSE_ERROR, f"item {self._seen} was asked to fail")
        return super().score_item(item)


class NanScorer(PromptLengthScorer):
    """NaN for prompts that contain "nan", else the prompt's length."""

    name = "nan"

    def score_item(self, item: Item) -> Result:
        return Score(float("nan")) if "nan" in item.prompt else super().score_item(item)


class RaisingScorer(PromptLengthScorer):
    """Raises for prompts that contain "raise", else the prompt's length."""

    name = "raising"

    def score_item(self, item: Item) -> Result:
        if "raise" in item.prompt:
            raise RuntimeError(f"asked to raise by item {item.id}")
        return super().score_item(item)


class WrongCountScorer(PromptLengthScorer):
    """Forgets the last result of a batch that contains a prompt with "short"."""

    name = "wrong_count"

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        results = super().score(reward, items)
        return results[:-1] if any("short" in item.prompt for item in items) else results


Behaviour = Literal["constant", "prompt_length", "slow", "fail_every_nth", "nan", "raising", "wrong_count"]


class FakeSettings(ServiceSettings):
    """Settings of the fake service."""

    model_config = SettingsConfigDict(env_prefix="FAKE_")

    behaviour: Behaviour = Field(default="prompt_length", description="Which fake scorer to serve.")
    latency_ms: float = Field(default=0.0, ge=0, description="Time of a batch (slow).")
    every: int = Field(default=20, ge=1, description="Which items fail (fail_every_nth).")
    value: float = Field(default=0.5, description="The score of every item (constant).")
    max_batch: int = Field(default=8, ge=1, description="Most items in a batch.")


def make_fake(settings: FakeSettings) -> Scorer:
    """The fake scorer that the settings name."""
    batch = settings.max_batch
    makers: dict[str, Callable[[], Scorer]] = {
        "constant": lambda: ConstantScorer(settings.value, batch),
        "prompt_length": lambda: PromptLengthScorer(batch),
        "slow": lambda: SlowScorer(settings.latency_ms / 1000, batch),
        "fail_every_nth": lambda: FailEveryNthScorer(settings.every, batch),
        "nan": lambda: NanScorer(batch),
        "raising": lambda: RaisingScorer(batch),
        "wrong_count": lambda: WrongCountScorer(batch),
    }
    return makers[settings.behaviour]()


if __name__ == "__main__":
    _settings = load_settings(FakeSettings, prog="services.kit.testing.fakes")
    serve(lambda: make_fake(_settings), _settings, "fake")
