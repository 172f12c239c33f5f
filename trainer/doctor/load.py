"""How long a step's scores take, measured on two fresh probes, against the deadlines of the services."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.config import Config, RewardConfig, ServiceConfig
from trainer.doctor.findings import Finding
from trainer.rewards.asked import texts_of, trained_by
from trainer.rewards.canary import probes
from trainer.rewards.payload import encode_samples, make_call
from trainer.rewards.transport import AttemptError, ServiceCaller
from trainer.types import Sample
from wire.schema import ScorerInfo


@dataclass(frozen=True)
class Work:
    """What one reward of a service does in a step, one thing after the other.

    Attributes:
        items: samples to score.
        requests: how many requests they come in.
        unit_s: seconds of an item, or of a comparison where the reward compares.
        units: how many of them.
    """

    reward: str
    items: int
    requests: int
    unit_s: float
    units: int
    compares: bool

    @property
    def seconds(self) -> float:
        return self.unit_s * self.units

    def __str__(self) -> str:
        each = f"{self.units} comparisons of" if self.compares else "at"
        return f"{self.reward} {self.items} items {each} {1000 * self.unit_s:.3g} ms"


async def check_load(
    config: Config, caller: ServiceCaller, scorers: Mapping[str, ScorerInfo]
) -> AsyncIterator[Finding]:
    """Whether a service can answer what a step asks of it before its deadlines.

    It is reckoned as one that works on one thing after the other; one with workers or batches is faster.
    """
    trained, texts = {name for _, name in config.train_rewards}, texts_of(config)
    asked = [name for name in scorers if name in trained]
    work: list[Work] = []
    unknown: list[str] = []
    for name in asked:
        column = config.rewards.columns[name]
        if config.rewards.canary and column.canary != "none":
            seconds = await _measure(caller, column, texts=name in texts)
            if seconds is None:
                unknown.append(name)
            else:
                work.append(_work(config, name, seconds, compares=scorers[name].grouped))
    if unknown:
        text = f"how long {caller.name} needs for {', '.join(unknown)}: the probes got no score to measure"
        yield Finding("services", "NOT CHECKED", f"{text}, so a step is not compared with its deadline")
    if work:
        yield judge_load(caller.name, caller.config, work, urls=len(caller.pool.endpoints))


def judge_load(name: str, service: ServiceConfig, work: Sequence[Work], *, urls: int) -> Finding:
    """Compare a step's work with the deadlines of the service that does it."""
    requests, total_s = sum(each.requests for each in work), sum(each.seconds for each in work) / urls
    share = min(
        1.0, service.max_in_flight / requests
    )  # of them are under way at once; the last of these is answered last
    wait_s = total_s * share
    text = (
        f"{name}: a step asks for {'; '.join(map(str, work))}: {total_s:.3g} s"
        f"{f' on each of {urls} URLs' if urls > 1 else ''}, one after the other, in {requests} requests"
    )
    if wait_s > service.timeout_s:
        return Finding(
            "services",
            "WARN",
            f"{text}. Of up to {min(requests, service.max_in_flight)} under way at once (max_in_flight) the last would be "
            f"answered after {wait_s:.3g} s, and timeout_s is {service.timeout_s:g}: scores would be lost, unless the "
            "service works on several at a time",
            f"raise rewards.services.{name}.timeout_s, lower its max_in_flight, or give it more workers or urls",
        )
    if total_s > service.longest_s:
        return Finding(
            "services",
            "WARN",
            f"{text}. The last would wait longer than queue_timeout_s = {service.queue_timeout_s:g} and timeout_s = "
            f"{service.timeout_s:g} allow: scores would be lost, unless the service works on several at a time",
            f"raise rewards.services.{name}.queue_timeout_s, or give it more workers or urls",
        )
    return Finding("services", "OK", f"{text}; timeout_s is {service.timeout_s:g}")


async def _measure(caller: ServiceCaller, column: RewardConfig, *, texts: bool) -> float | None:
    """Seconds of two probes that no cache knows, the fastest of two requests; None where there are no scores.

    Of the probes that are texts no reward judges all, and what it does not judge takes no time.
    """
    best = None
    for _ in range(2):
        encoding = caller.config.probe_encoding
        samples = [_unseen(probe) for probe in probes(texts=texts)]
        call, _refused = make_call(samples, encode_samples(samples, encoding), encoding, column.reward)
        assert call is not None
        started = time.monotonic()
        try:
            answers, _scorer = await caller.score_at(caller.pool.endpoints[0], call, caller.config.timeout_s)
        except AttemptError:
            return best  # the canary has said what there is to say
        scored = sum(answer.score is not None for answer in answers.values())
        if scored == 0 or (not texts and scored < len(samples)):
            return best
        took_s = 2 * (time.monotonic() - started) / scored
        best = took_s if best is None else min(best, took_s)
    return best


def _unseen(probe: Sample) -> Sample:
    """The probe with something about it that is in no other request, so that it is scored anew."""
    if probe.images:
        return replace(probe, images=tuple(_marked(image_HWC) for image_HWC in probe.images))
    metadata = {**probe.prompt.metadata, "nonce": os.urandom(8).hex()}
    return replace(probe, prompt=replace(probe.prompt, metadata=metadata))


def _marked(image_HWC: np.ndarray) -> np.ndarray:
    """The image with four pixels at its edge that it has in no other request, so that it is scored anew."""
    marked = image_HWC.copy()
    marked[0, :4] = np.frombuffer(os.urandom(12), np.uint8).reshape(4, 3)
    return marked


def _work(config: Config, name: str, pair_s: float, *, compares: bool) -> Work:
    """What a step asks of a reward, of all tasks together that are scored by it."""
    groups, items, requests, comparisons = config.sampling.prompts_per_step, 0, 0, 0
    for task in config.tasks:
        if name in trained_by(config, task.name):
            size = task.group_size
            items += groups * size
            requests += groups if compares else -(-groups * size // task.micro_batch_size)
            comparisons += groups * size * (size - 1) // 2
    if compares:
        return Work(name, items, requests, pair_s, comparisons, compares=True)
    return Work(name, items, requests, pair_s / 2, items, compares=False)
