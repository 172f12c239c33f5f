"""What a service brings: a `Scorer`. Usable in a test with no HTTP around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image
from pydantic import JsonValue

from wire.schema import ErrorCode, ScorerInfo


@dataclass(frozen=True)
class Item:
    """A request's item after its images were decoded."""

    id: str
    prompt: str
    images: tuple[Image.Image, ...] = ()
    group_id: str | None = None
    completion: str | None = None
    source_images: tuple[Image.Image, ...] = ()
    targets: tuple[str, ...] | None = None
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """A score with its named parts (finite numbers) and what was seen on the way (JSON)."""

    value: float
    components: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why one item has no score. Its neighbours keep theirs."""

    code: ErrorCode
    message: str


Result = Score | Failure


class Scorer(Protocol):
    """One loaded model (or function set) that serves one or more named rewards.

    `load` and `score` run off the event loop, one call at a time, and may block. Heavy imports belong in `load`.
    """

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        """The rewards served, by name; the first is the default. Known before `load`."""
        ...

    @property
    def max_batch(self) -> int:
        """How many items one `score` call takes at most."""
        ...

    def load(self) -> None:
        """Load weights. Called once, before any `score`. Raises with the remedy in the message."""
        ...

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        """Score `items` for one reward: one result per item, in order.

        A bad item is a `Failure` in its place. An exception fails the batch; the kit then scores its items one by one.
        """
        ...

    def warmup(self) -> Sequence[tuple[str, Item]]:
        """(reward, item) pairs that must come back as scores before the service says it is ready."""
        ...

    def close(self) -> None:
        """Free what `load` took. Called once, after the last `score`."""
        ...
