"""Requests under way for one batch of samples: one per micro-batch and reward, all on the client's event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from trainer.config import RewardsConfig
from trainer.rewards.answers import Answer, ClientCode, OnEvent, RewardEvent, all_failed
from trainer.rewards.encodings import Encodings
from trainer.rewards.identity import Scorers, differences
from trainer.rewards.payload import Call, encode_samples, make_call
from trainer.rewards.transport import AttemptError, Scored, ServiceCaller
from trainer.types import Sample
from wire.schema import ScorerInfo

_Asked = tuple[str, tuple[str, ...]]  # encoding and ids of a request
_Packed = tuple[Call | None, dict[str, Answer]]  # as `make_call` gives it


class Moment(NamedTuple):
    """When in a run a batch is scored: the `train` samples of step `step`, or an `evaluation` after `step` steps."""

    kind: str
    step: int

    @property
    def next_step(self) -> int:
        """The training step under way, or the first after the evaluation."""
        return self.step + (self.kind == "evaluation")


@dataclass
class MicroBatch:
    """What travels together, a `submit` or a whole group, and what came of it.

    Attributes:
        asked: reward name to the samples it was asked for.
        moment: when in the run.
        answers: reward name to sample id to answer.
        scorers: reward name to what scored it; missing where nothing did.
        latency_s: reward name to seconds from submit to the answer.
    """

    samples: Sequence[Sample]
    asked: Mapping[str, Sequence[Sample]]
    submitted_at: float
    moment: Moment
    answers: dict[str, dict[str, Answer]] = field(default_factory=dict)
    scorers: dict[str, ScorerInfo] = field(default_factory=dict)
    latency_s: dict[str, float] = field(default_factory=dict)


class Dispatcher:
    """Encodes micro-batches and scores them. Lives on one event loop."""

    def __init__(
        self,
        config: RewardsConfig,
        callers: Mapping[str, ServiceCaller],
        scorers: Scorers,
        encodings: Encodings,
        on_event: OnEvent,
    ) -> None:
        self._config = config
        self._callers = callers
        self._scorers = scorers
        self._encodings = encodings
        self._on_event = on_event

    async def score(self, micro: MicroBatch, names: Sequence[str], started_at: float) -> None:
        """Fill `micro.answers` for `names`; latencies count from `started_at`.

        Asked a second time, a whole micro-batch travels again (a group scorer compares within it), and an answer that
        was good stays when its repetition fails.
        """
        encodings = {
            name: await self._encodings.of(self._caller(name), micro.samples, self._on_event) for name in names
        }
        images: dict[str, asyncio.Task[list[list[bytes]]]] = {}
        for encoding in set(encodings.values()):
            images[encoding] = asyncio.ensure_future(asyncio.to_thread(encode_samples, micro.samples, encoding))
        packed: dict[_Asked, _Packed] = {}
        await asyncio.gather(
            *(self._score_one(micro, name, encodings[name], images, packed, started_at) for name in names)
        )

    async def _score_one(
        self,
        micro: MicroBatch,
        name: str,
        encoding: str,
        images: Mapping[str, asyncio.Task[list[list[bytes]]]],
        packed: dict[_Asked, _Packed],
        started_at: float,
    ) -> None:
        """Score with one reward. `packed` keeps what was built: rewards that are asked for the same samples send the same."""
        caller = self._caller(name)
        encoded = dict(zip((s.id for s in micro.samples), await images[encoding], strict=True))
        asked = micro.asked[name]
        before = micro.answers.get(name, {})
        try:
            async with caller.slot():  # requests are built in turn, too: thousands at once would stop the event loop
                ids = (encoding, tuple(sample.id for sample in asked))
                if ids not in packed:
                    packed[ids] = make_call(asked, [encoded[s.id] for s in asked], encoding, None)
                call, refused = packed[ids]
                answers = dict(refused)
                if call is not None:
                    scored = await caller.score(replace(call, reward=self._config.columns[name].reward))
                    answers |= self._admitted(micro, name, scored)
                    if scored.scorer is not None:
                        if differences(micro.scorers.get(name, scored.scorer), scored.scorer)[0]:
                            before = {}  # of another scorer
                        micro.scorers[name] = scored.scorer
        except AttemptError as error:
            answers = all_failed([sample.id for sample in asked], error.code, error.message)
        micro.answers[name] = {
            sample.id: before[sample.id]
            if _was_better(before.get(sample.id), answers[sample.id])
            else answers[sample.id]
            for sample in asked
        }
        micro.latency_s[name] = time.monotonic() - started_at
        failed = [answer for answer in answers.values() if answer.failed]
        if failed and failed[0].code != ClientCode.CHANGED_SCORER:  # which was said, once
            text = f"{len(failed)} of {len(asked)} scores failed; the first: {failed[0].code}: {failed[0].message}"
            self._on_event(RewardEvent("failure", name, text))

    def _admitted(self, micro: MicroBatch, name: str, scored: Scored) -> dict[str, Answer]:
        """The answers, if they come from the scorer that this reward has in this run."""
        if scored.scorer is None:
            return scored.answers
        problem = self._scorers.admit(name, scored.scorer, scored.url, micro.moment.next_step)
        return (
            scored.answers if problem is None else all_failed(list(scored.answers), ClientCode.CHANGED_SCORER, problem)
        )

    def _caller(self, name: str) -> ServiceCaller:
        return self._callers[self._config.columns[name].service]


def keep_one_scorer(micros: Sequence[MicroBatch], names: Sequence[str], now: Mapping[str, ScorerInfo]) -> None:
    """Of a batch in which a reward came from two scorers, keep the scores of one: those of two cannot be compared.

    A change that is accepted falls into some batch; what the earlier scorer said in it is masked.

    Args:
        now: the scorer that each reward comes from by now.
    """
    for name in names:
        scored = [micro for micro in micros if name in micro.scorers]
        if not scored:
            continue
        newest = any(not differences(micro.scorers[name], now[name])[0] for micro in scored)
        kept = now[name] if newest else scored[-1].scorers[name]
        for micro in scored:
            if differences(micro.scorers[name], kept)[0]:
                text = "its scorer was replaced by another one in the same batch, and their scores cannot be compared"
                micro.answers[name] = {
                    id: Answer(None, ClientCode.CHANGED_SCORER, text) if answer.score is not None else answer
                    for id, answer in micro.answers[name].items()
                }


def _was_better(before: Answer | None, now: Answer) -> bool:
    return before is not None and not before.failed and now.failed
