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
    """A score with its named parts (finite numbers) and what was seen on the way (JSON).

    `cacheable` is False when trying again could give more, such as a win rate of which some comparisons failed.
    """

    value: float
    components: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, JsonValue] = field(default_factory=dict)
    cacheable: bool = True


@dataclass(frozen=True)
class Failure:
    """Why one item has no score. Its neighbours keep theirs."""

    code: ErrorCode
    message: str


Result = Score | Failure


class Scorer(Protocol):
    """One loaded model (or function set) that serves one or more named rewards.

    `load` and `score` run off the event loop, one call at a time, and may block. Heavy imports belong in `load`. What
    else is to be known of it, as JSON, may be in an attribute `about`, which /v1/info shows; it is asked for off the
    event loop, too, before `load` or after. Rewards that look at the images alone, whatever the prompt, may be named in
    an attribute `image_only`. One that serves other trainers' requests with rows of metadata has an attribute
    `legacy_rows`, a `ServesRows`.

    For its page and its API's examples it has an attribute `samples`: by reward, an input that it scores well
    (services/kit/samples.py). Components that are no part of the score's range, such as counts, are named in an attribute
    `off_scale`, and nothing draws them as a share. Metadata that is easier to fill in than to write is described by an
    attribute `form`: its `title`, and `columns`, each with the `field` of the metadata that gets the column as a list, its
    `label`, and perhaps `choices`.
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
        For a reward whose info says `grouped`, the items are one whole group.
        """
        ...

    def warmup(self) -> Sequence[tuple[str, Item]]:
        """(reward, item) pairs that must come back as scores before the service says it is ready."""
        ...

    def close(self) -> None:
        """Free what `load` took. Called once, after the last `score`."""
        ...


class AsyncScorer(Protocol):
    """A scorer that computes nothing itself but asks a server, such as a judge. Everything runs on the event loop.

    The kit starts every job at once; the scorer bounds how many calls the server sees. If it has an attribute
    `failure` (a sentence while the server cannot be asked, else None), it also has `async recover()`. Prometheus
    collectors in an attribute `collectors` are shown in `/metrics`.
    """

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        """The rewards served, by name; the first is the default. Known before `load`."""
        ...

    async def load(self) -> None:
        """Wait until the server answers. Called once, before any `score`. Raises with the remedy in the message."""
        ...

    async def score(self, reward: str, items: Sequence[Item], deadline: float) -> Sequence[Result]:
        """Score one item or, for a reward whose info says `grouped`, one whole group: one result per item, in order.

        `deadline` is in `time.monotonic()` seconds; what is not known by then is a `timeout`. The call is cancelled
        when nobody waits for it any more.
        """
        ...

    def warmup(self) -> Sequence[tuple[str, Sequence[Item]]]:
        """(reward, items of one job) that must come back as scores before the service says it is ready."""
        ...

    async def close(self) -> None:
        """Free what `load` took. Called once, after the last `score`."""
        ...
