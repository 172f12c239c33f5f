"""A drawer whose answers come from servers that hold copies of the weights."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from trainer.policies.tokens.draw import Answer, Reading, TokenPlan
from trainer.policies.tokens.model import TokenModel
from trainer.policies.tokens.server.client import Server, ServerError
from trainer.policies.tokens.server.pool import Pool
from trainer.policies.tokens.server.publisher import Publisher
from trainer.policies.tokens.server.questions import Question, UnfitAnswerError, question_of, read_answer
from trainer.policies.tokens.server.versions import Adapters, Probe, Transfer, Version
from trainer.policies.tokens.server.weights import forget_older, write_adapter, write_weights

_PROBE_TOKENS = 3


@dataclass(frozen=True)
class Surroundings:
    """What a drawer needs of the run.

    Attributes:
        collect: (): the weights that go to servers, whole, by the network's names; of all ranks together, and only the main
            rank is given any.
        logp: (reading, tokens): log-probabilities (S,) of a given answer under the present weights, nothing banned, at
            temperature 1; of all ranks together.
        meet: (): returns when all ranks have come here.
        start: a name of this start of the run, the same on all ranks, and no other start's.
        folder: where versions are written.
        dtype: in which whole weights are written.
        tolerance: of the probe.
    """

    collect: Callable[[], Mapping[str, Tensor]]
    logp: Callable[[Reading, Sequence[int]], Tensor]
    meet: Callable[[], None]
    start: str
    folder: Path
    dtype: torch.dtype
    tolerance: float


class ServerDrawer:
    """Implements `Drawer`. Before it draws with weights that have changed, the servers are given them.

    Attributes:
        updates: how many updates the weights have had.
        metrics: of the last push, on the main rank.

    Args:
        probe: a prompt, with images where there are any, by which pushes are proved.
        publisher: on the main rank; None on the others, which wait for it.
    """

    def __init__(
        self,
        model: TokenModel,
        pool: Pool,
        transfer: Transfer,
        publisher: Publisher | None,
        around: Surroundings,
        probe: Reading,
    ) -> None:
        self.model, self.pool, self.transfer, self.publisher, self.around = model, pool, transfer, publisher, around
        self._probe = probe
        allowed = sorted(set(range(len(model.tokenizer))) - set(model.banned_N.tolist()) - set(model.ends))
        self._probe_tokens = [allowed[i * len(allowed) // _PROBE_TOKENS] for i in range(_PROBE_TOKENS)]
        self.updates, self._count = 0, 0
        self._version: Version | None = None
        self.metrics: dict[str, float] = {}

    def weights_changed(self, updates: int) -> None:
        """The weights are others now, after `updates` updates in all: no answer is drawn before the servers have them."""
        self.updates, self._version = updates, None

    def draw(
        self, readings_P: Sequence[Reading], group_size: int, seeds_B: Sequence[int], plan: TokenPlan
    ) -> list[Answer]:
        version = self._version or self._publish()
        questions = [question_of(self.model, reading) for reading in readings_P]
        ends = [*self.model.ends, *plan.stop_ids]
        jobs = [
            self._job(questions[number // group_size], plan, ends, seed, version) for number, seed in enumerate(seeds_B)
        ]
        return self.pool.draw(
            jobs,
            lambda server: self.transfer.holds(server, version),
            lambda number: f"answer {number} of {len(jobs)}, prompt {readings_P[number // group_size].text[:80]!r}",
        )

    def close(self) -> None:
        """Forget what was written for servers."""
        if self.publisher is not None:
            shutil.rmtree(self.around.folder, ignore_errors=True)

    def _job(
        self, question: Question, plan: TokenPlan, ends: Sequence[int], seed: int, version: Version
    ) -> Callable[[Server], Answer]:
        body = question.body(self.transfer.model(version), plan, ends, seed)

        def ask(server: Server) -> Answer:
            given = server.generate(body)
            answer, labels = read_answer(given, question, ends)
            label = self.transfer.label(version, labels, str(given.get("model")))
            if label is None:
                raise UnfitAnswerError(f"weights changed while it was drawn: {', '.join(sorted(labels)) or 'no label'}")
            if label != version.label:
                raise ServerError(f"it draws with the weights {label}, and {version.label} are the current ones")
            return replace(answer, version=version.updates)

        return ask

    def _publish(self) -> Version:
        """Write the weights, push them, prove them. All ranks come here together."""
        around, started = self.around, time.perf_counter()
        tensors = around.collect()
        logp = around.logp(self._probe, self._probe_tokens).tolist()
        self._count += 1
        label = f"{around.start}.{self._count}"
        probe = Probe(question_of(self.model, self._probe), self._probe_tokens, logp, around.tolerance)
        version = Version(label, self.updates, around.folder / label, probe)
        if self.publisher is not None:
            self._write(version, tensors)
            pushed = self.publisher.publish(version)
            forget_older(version.folder)
            self.metrics = {
                "rollout/servers": float(len(pushed.worst)),
                "rollout/probe_error": max(pushed.worst.values(), default=float("nan")),
                "time/push": time.perf_counter() - started,
            }
        around.meet()
        self._version = version
        return version

    def _write(self, version: Version, tensors: Mapping[str, Tensor]) -> None:
        if broken := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
            raise ValueError(
                f"{len(broken)} weights are not finite, first {broken[0]}: they are not given to any server"
            )
        if isinstance(self.transfer, Adapters):
            write_adapter(self.model, tensors, version.folder)
        else:
            write_weights(self.model, tensors, version.folder, self.around.dtype)
