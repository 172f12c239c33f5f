"""Has the samples of a set scored, a bounded number of them at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.config import RewardsConfig
from trainer.evaluation.artefacts import whole
from trainer.evaluation.artefacts.texts import given_format
from trainer.evaluation.outcomes import Outcome, Point
from trainer.evaluation.sampling import Placed
from trainer.evaluation.seen import seen
from trainer.evaluation.sets import EvaluationSet
from trainer.rewards import Batch, RewardClient
from trainer.types import Prompt, Sample, Scores

BATCHES = 4  # open at once, so that the next are under way while the oldest is waited for


@dataclass
class _Sent:
    """A batch under way; `scores` once a thread collects them."""

    batch: Batch
    samples: list[Placed] = field(default_factory=list)
    scores: Future[Scores] | None = None


class Scorer:
    """Submits samples as they come and keeps what came of them; the samples themselves are let go.

    `submit` and `collect` wait. Who must not, because there is something else to look out for, asks `has_room` and
    `is_done` first, and lets time pass in `wait`.

    Args:
        columns: rewards that are asked for.
        step: after how many training steps.
        limit: samples submitted and not yet scored, in at most `batches` batches; `submit` waits for the oldest.
        kept: how many of the first samples are kept, for the report.
        executor: collects for `has_room` and `is_done`; not the one whose thread calls them.
        rewards: which columns say that a text has the right form, and that it is right.
    """

    def __init__(
        self,
        client: RewardClient,
        chosen: EvaluationSet,
        columns: Sequence[str],
        *,
        step: int,
        limit: int,
        batches: int = BATCHES,
        kept: int = 0,
        executor: Executor | None = None,
        rewards: RewardsConfig | None = None,
    ) -> None:
        self._client, self._set, self._columns, self._step = client, chosen, list(columns), step
        self._batches = min(batches, limit)
        self._size = limit // self._batches  # samples per batch
        self._kept, self._executor, self._rewards = kept, executor, rewards or RewardsConfig()
        self._open: deque[_Sent] = deque()
        self._within: dict[int, whole.Within] = {}
        self._outcomes: list[Outcome] = []
        self.stop_reason: str | None = None
        self.shown: list[dict[str, Any]] = []  # as Recorder.save_samples takes them

    def submit(self, samples: Sequence[Placed]) -> None:
        """Send a micro-batch, of any size."""
        if not samples:
            return
        if self._newest_is_full():
            if len(self._open) == self._batches:
                self._collect_oldest()
            self._open.append(_Sent(self._client.batch(self._columns, step=self._step)))
        self._open[-1].batch.submit([placed.sample for placed in samples])
        self._open[-1].samples += samples

    def has_room(self) -> bool:
        """Whether `submit` would not wait."""
        return not self._newest_is_full() or len(self._open) < self._batches or self._oldest_is_scored()

    def is_done(self) -> bool:
        """Whether `collect` would not wait, once all is submitted."""
        while self._open and self._oldest_is_scored():
            self._collect_oldest()
        return not self._open

    def wait(self, timeout_s: float) -> None:
        """Let time pass until what `has_room` or `is_done` found missing is there, at most `timeout_s`."""
        if self._open and self._open[0].scores is not None:
            wait([self._open[0].scores], timeout_s)

    def collect(self) -> list[Outcome]:
        """Wait for everything; the outcomes in the order of submission. Look at `stop_reason`, too."""
        while self._open:
            self._collect_oldest()
        spread = {index: within.statistics() for index, within in self._within.items()}
        return [
            replace(outcome, statistics={**outcome.statistics, **spread.get(outcome.index, {})})
            for outcome in self._outcomes
        ]

    def _newest_is_full(self) -> bool:
        return not self._open or len(self._open[-1].samples) >= self._size

    def _oldest_is_scored(self) -> bool:
        assert self._executor is not None, "given to those who ask before they wait"
        oldest = self._open[0]
        if oldest.scores is None:
            oldest.scores = self._executor.submit(oldest.batch.collect)
        return oldest.scores.done()

    def _collect_oldest(self) -> None:
        sent = self._open.popleft()
        scores = sent.batch.collect() if sent.scores is None else sent.scores.result()
        self.stop_reason = self.stop_reason or scores.stop_reason
        for row, placed in enumerate(sent.samples):
            self._outcomes.append(self._outcome(row, placed, scores))
            if len(self.shown) < self._kept:
                self.shown.append(_shown(placed, self._outcomes[-1], _details(scores, row)))

    def _outcome(self, row: int, placed: Placed, scores: Scores) -> Outcome:
        details = _details(scores, row)
        values: dict[str, float | None] = {}
        errors: dict[str, str] = {}
        for r, name in enumerate(scores.names):
            if scores.asked_BR[row, r]:
                values[name] = float(scores.scores_BR[row, r]) if scores.valid_BR[row, r] else None
                if values[name] is None:
                    errors[name] = str(details.get(name, {}).get("error", {}).get("code", "dropped"))
        if self._set.duplicates > 1:
            self._within.setdefault(placed.index, whole.Within()).add(placed.sample)
        judge = self._set.judge
        return Outcome(
            set=self._set.name,
            index=placed.index,
            duplicate=placed.duplicate,
            prompt_id=placed.sample.prompt.id,
            scores=values,
            errors=errors,
            statistics=whole.statistics(placed.sample) | self._given_format(placed.sample, values),
            points=() if judge is None else verdicts(placed.sample.prompt, details.get(judge, {})),
        )

    def _given_format(self, sample: Sample, scores: Mapping[str, float | None]) -> dict[str, float]:
        return {} if sample.text is None else given_format(scores, self._rewards)


def verdicts(prompt: Prompt, details: Mapping[str, Any]) -> tuple[Point, ...]:
    """A prompt's test points with the judge's verdicts: `components` has them by position, `points` the dimensions,
    `official` the verdicts as the benchmark's own tool reads the answer.
    """
    names = [str(name) for name in prompt.metadata["testpoints"]]
    components, told = details.get("components") or {}, details.get("points") or []
    found = [components.get(f"point_{number}") for number in range(len(names))]
    dimensions = [str(point["dimension"]) for point in told] if len(told) == len(names) else [None] * len(names)
    listed = details.get("official")
    official = listed if isinstance(listed, list) and len(listed) == len(names) else [None] * len(names)
    return tuple(
        # Any other number than 0 and 1 is no verdict.
        Point(name, dimension, *(bool(each) if each in (0, 1) else None for each in (verdict, theirs)))
        for name, dimension, verdict, theirs in zip(names, dimensions, found, official, strict=True)
    )


def _details(scores: Scores, row: int) -> Mapping[str, Mapping[str, Any]]:
    return scores.details[row] if scores.details else {}


def _shown(placed: Placed, outcome: Outcome, details: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A sample as the recorder keeps it."""
    sample = placed.sample
    return {
        "id": sample.id,
        "prompt_id": sample.prompt.id,
        "prompt": sample.prompt.text,
        **whole.shown(sample),
        **_of_task(sample.prompt),
        "scores": dict(outcome.scores),
        "targets": list(sample.prompt.targets) if sample.prompt.targets else None,
        "read": _read(details),
        "seen": seen(details),
    }


def _of_task(prompt: Prompt) -> dict[str, str]:
    """Of a policy with tasks: which `task` the sample is of, and the `pair` that the prompt is a side of, known by the same name in
    every set that was read from its file; empty where it is of no pair."""
    if not prompt.task:
        return {}
    pair, _, side = prompt.id.removeprefix(f"{prompt.dataset}-").rpartition("/")
    return {"task": prompt.task, "pair": pair if side == prompt.task else ""}


def _read(details: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What the first OCR reward of this sample read: the text of the `lines` of its `images`; None without one."""
    for reward in details.values():
        images = reward.get("images")
        if isinstance(images, list):
            lines = [line for image in images if isinstance(image, dict) for line in image.get("lines", [])]
            return " ".join(str(line["text"]) for line in lines if isinstance(line, dict) and "text" in line)
    return None
