"""A version of the weights on its way to the servers, and the two ways there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trainer.policies.tokens.server.client import RefusedError, Server, ServerError
from trainer.policies.tokens.server.questions import Question, UnfitAnswerError, read_probe

_UNPROVED = "?"  # behind the label of weights whose log-probabilities have not been compared yet


@dataclass(frozen=True)
class Probe:
    """A fixed answer to a fixed prompt, and what the trainer says of it.

    Attributes:
        tokens: of the answer.
        logp: their log-probabilities under the weights of a version, float32, computed by the policy itself.
        tolerance: how far the server's may be from them.
    """

    question: Question
    tokens: Sequence[int]
    logp: Sequence[float]
    tolerance: float

    def check(self, server: Server, model: str) -> float:
        """The largest difference. Raises ServerError where it is above the tolerance, or nothing can be compared.

        Each token is asked for by the way that rollouts take: prefixes, images and embeddings come out of the caches that
        a push must have emptied.
        """
        try:
            found = [
                read_probe(server.generate(self.question.probe(model, self.tokens[:place], token)), token)
                for place, token in enumerate(self.tokens)
            ]
        except (UnfitAnswerError, RefusedError) as error:
            raise ServerError(f"{server.url} cannot be compared with the trainer: {error}") from error
        worst = max(abs(a - b) for a, b in zip(found, self.logp, strict=True))
        if not worst <= self.tolerance:  # NaN included
            raise ServerError(
                f"{server.url} does not compute what the trainer does: log-probabilities of a fixed answer differ by {worst:.3g}, "
                f"more than sampling.vllm.probe_tolerance = {self.tolerance:g}"
            )
        return worst


@dataclass(frozen=True)
class Version:
    """Weights that are written and can be pushed, at any time, to any server.

    Attributes:
        label: no other version of this or another start has it.
        updates: how many updates the weights have had.
        folder: where they are, absolute.
        probe: what servers with these weights must say.
    """

    label: str
    updates: int
    folder: Path
    probe: Probe


class Transfer(Protocol):
    """A way of weights to a server."""

    def holds(self, server: Server, version: Version) -> bool:
        """Whether the server draws with this version, proved. Raises ServerError."""
        ...

    def model(self, version: Version) -> str:
        """The name by which a request asks for this version."""
        ...

    def label(self, version: Version, labels: set[str], model: str) -> str | None:
        """Which version drew an answer, by what came with it; None where several did."""
        ...

    def push(self, server: Server, version: Version, *, after: Version | None) -> float:
        """Give the server this version and prove it. Returns the probe's largest difference.

        Args:
            after: the version that was pushed before, whose place it takes.

        Raises:
            ServerError, RefusedError: the server must not be used until another push has succeeded.
        """
        ...


@dataclass(frozen=True)
class WholeWeights:
    """All weights, by vLLM's routes for weight transfer: needs VLLM_SERVER_DEV_MODE=1 and the engine of `worker.py`.

    Attributes:
        name: the model's name at the servers.
    """

    name: str

    def holds(self, server: Server, version: Version) -> bool:
        return server.version() == version.label

    def model(self, version: Version) -> str:
        return self.name

    def label(self, version: Version, labels: set[str], model: str) -> str | None:
        return labels.pop() if len(labels) == 1 else None

    def push(self, server: Server, version: Version, *, after: Version | None) -> float:
        """Strictly on-policy: nothing is under way while weights change, and no cache outlives them.

        The label is the version's only once the probe has passed, so that other processes, which know servers by their labels,
        never draw from weights that are not proved. A push that fails leaves the server paused: what it holds then may be a
        mixture, or nothing.
        """
        server.pause()
        server.take_weights(str(version.folder), version.label + _UNPROVED)
        server.resume()
        worst = version.probe.check(server, self.name)
        server.name_version(version.label)
        return worst


@dataclass(frozen=True)
class Adapters:
    """An adapter under a new name each time, by vLLM's routes for adapters: needs no dev mode, and no cache can be stale,
    because names are part of every cache's key."""

    name: str

    def holds(self, server: Server, version: Version) -> bool:
        return version.label in server.models()

    def model(self, version: Version) -> str:
        return version.label

    def label(self, version: Version, labels: set[str], model: str) -> str | None:
        return model

    def push(self, server: Server, version: Version, *, after: Version | None) -> float:
        there = server.models()
        if version.label not in there:
            server.load_adapter(version.label, str(version.folder))
        try:
            worst = version.probe.check(server, version.label)
        except ServerError:
            server.unload_adapter(version.label)  # so that no process takes it for proved
            raise
        for old in there:
            if old not in (self.name, version.label) and old.split(".")[0] == version.label.split(".")[0]:
                server.unload_adapter(old)
        return worst


@dataclass
class Pushed:
    """What became of a push, by server.

    Attributes:
        worst: the probe's largest difference where it succeeded.
        failed: the reasons where it did not.
    """

    worst: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
