"""One evaluation from prompts to results: the sets are drawn, scored, and put together over all ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.evaluation.alarms import find_alarms
from trainer.evaluation.files import read_samples, save_samples, write_outcomes
from trainer.evaluation.outcomes import Outcome
from trainer.evaluation.own_alarms import own_alarms
from trainer.evaluation.results import Results, write_results
from trainer.evaluation.sampling import draw
from trainer.evaluation.scoring import BATCHES, Scorer
from trainer.evaluation.sets import EvaluationSet
from trainer.policies.base import Samples
from trainer.processes.distributed import World
from trainer.rewards import RewardClient
from trainer.types import StopTrainingError

_LOOK_S = 0.1  # between two looks at whether all ranks can go on, or are asked to stop
AT_ONCE = 1024  # samples of a rank under way while everything waits for them; bounds memory


@dataclass
class Scored:
    """What a rank knows of its samples, before all ranks put theirs together.

    `shown` are the first samples of some sets (`shown_sets`), as `Recorder.save_samples` takes them; on the main rank only.
    """

    outcomes: list[Outcome]
    shown: list[dict[str, Any]]
    stop_reason: str | None


class Rounds:
    """How an evaluation is made. The policy draws with the weights it holds at the moment.

    Args:
        trained: rewards with a weight in training.
        executor: a thread that waits for scores; it must end after the client, which ends its work.
    """

    def __init__(
        self,
        sets: Sequence[EvaluationSet],
        config: Config,
        policy: Samples,
        client: RewardClient,
        world: World,
        trained: Collection[str],
        executor: Executor,
    ) -> None:
        self.sets = tuple(sets)
        self._config, self._policy, self._client = config, policy, client
        self._world, self._trained = world, trained
        self._executor = executor
        self._own = own_alarms(config.evaluation.alarms.own)

    def draw_and_score(
        self, folder: Path, step: int, *, final: bool, stop_requested: Callable[[], bool]
    ) -> Scored | None:
        """Samples are sent as they are decoded; those of sets with a name, benchmarks, are kept in `folder`.

        All ranks ask together, between micro-batches and while they wait for scores, whether they are to stop. Then the
        evaluation is given up, and None is returned.
        """
        parts: list[Scorer] = []
        for chosen in self.sets:
            scorer = self._scorer(chosen, step, final, AT_ONCE, BATCHES, self._executor)
            for samples in draw(self._policy, chosen, self._config, self._world):
                if not self._reached(scorer.has_room, scorer, stop_requested):
                    return None
                scorer.submit(samples)
                if chosen.name:
                    save_samples(folder, chosen, samples)
            parts.append(scorer)
        if not all(self._reached(scorer.is_done, scorer, stop_requested) for scorer in parts):
            return None
        return _joined(parts)

    def draw_to(self, folder: Path, stop_requested: Callable[[], bool]) -> bool:
        """Write all samples to `folder`; every rank's are there at the end. False: asked to stop, and given up."""
        for chosen in self.sets:
            for samples in draw(self._policy, chosen, self._config, self._world):
                if stop_requested():
                    return False
                save_samples(folder, chosen, samples)
        self._world.barrier()
        return True

    def score_saved(self, folder: Path, step: int, *, final: bool) -> Scored:
        """Have the samples in `folder` scored beside training, `max_in_flight` at a time.

        Raises:
            OSError: a sample is missing or damaged.
        """
        limit, parts = self._config.evaluation.max_in_flight, []
        for chosen in self.sets:
            batches = min(limit, self._spare_requests(chosen, final))
            scorer = self._scorer(chosen, step, final, limit, batches)
            for samples in read_samples(folder, chosen, self._world, limit // batches):
                scorer.submit(samples)
            scorer.collect()  # before the next set, so that the limit holds over all of them
            parts.append(scorer)
        return _joined(parts)

    def put_together(self, scored: Scored, folder: Path, step: int, start: Sequence[Outcome]) -> Results:
        """The results of all ranks' samples, compared with `start`; files are written to `folder`.

        Raises:
            StopTrainingError: a reward says so on any rank.
        """
        reasons = [reason for reason in self._world.gather(scored.stop_reason) if reason]
        if reasons:
            raise StopTrainingError(reasons[0])
        gathered = self._world.gather([outcome.as_dict() for outcome in scored.outcomes])
        order = {chosen.name: n for n, chosen in enumerate(self.sets)}
        outcomes = [Outcome.from_dict(tree) for part in gathered for tree in part]
        outcomes.sort(key=lambda outcome: (order[outcome.set], outcome.index, outcome.duplicate))
        results = Results.of(step, self.sets, outcomes, start)
        if start:
            limits, rewards = self._config.evaluation.alarms, self._config.rewards
            before, now = (watched(self.sets, each) for each in (start, outcomes))
            tasks = {each.name: each.task for each in self.sets}
            found = find_alarms(results.row, before, now, self._trained, limits, rewards, tasks)
            at_start = Results.of(0, self.sets, start, ()).row
            own = (each.look(results.row, at_start, step) for each in self._own)
            results.add_alarms([*found, *(alarm for alarm in own if alarm is not None)])
        if self._world.is_main:
            write_outcomes(folder, outcomes)
            write_results(folder, results)
        return results

    def _reached(self, reached: Callable[[], bool], scorer: Scorer, stop_requested: Callable[[], bool]) -> bool:
        """Wait until `reached` on all ranks. False: asked to stop."""
        while not (stopped := stop_requested()) and self._world.any(not reached()):
            scorer.wait(_LOOK_S)
        return not stopped

    def _scorer(
        self,
        chosen: EvaluationSet,
        step: int,
        final: bool,
        limit: int,
        batches: int,
        executor: Executor | None = None,
    ) -> Scorer:
        shown = shown_sets(self.sets, self._config.evaluation.num_pictures) if self._world.is_main else {}
        return Scorer(
            self._client,
            chosen,
            chosen.columns(final=final),
            step=step,
            limit=limit,
            batches=batches,
            kept=shown.get(chosen.name, 0),
            executor=executor,
            rewards=self._config.rewards,
        )

    def _spare_requests(self, chosen: EvaluationSet, final: bool) -> int:
        """How many batches may be under way beside training: they take at most half of any service's requests."""
        rewards = self._config.rewards
        asked = Counter(rewards.columns[name].service for name in chosen.columns(final=final))
        return max(1, min(BATCHES, *(rewards.services[name].max_in_flight // (2 * n) for name, n in asked.items())))


def shown_sets(sets: Sequence[EvaluationSet], pictures: int) -> dict[str, int]:
    """How many samples of which sets are kept for the report, by the sets' names: `pictures` of each task, shared evenly by the first
    sets of its kinds. Words alone, images beside them, and a thought first are kinds; a control is shown only where nothing else is."""
    first: dict[tuple[str, bool, bool], str] = {}
    for each in sets:
        kind = each.task, each.think is not None, any(prompt.source_images for prompt in each.prompts)
        if each.alarms or all(task != each.task for task, *_ in first):
            first.setdefault(kind, each.name)
    shown: dict[str, int] = {}
    for task in dict.fromkeys(task for task, *_ in first):
        names = [name for (of, *_), name in first.items() if of == task]
        shown |= {name: (pictures + place) // len(names) for place, name in enumerate(reversed(names))}
    return shown


def watched(sets: Sequence[EvaluationSet], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes of those sets that may raise an alarm."""
    names = {each.name for each in sets if each.alarms}
    return [outcome for outcome in outcomes if outcome.set in names]


def _joined(parts: Sequence[Scorer]) -> Scored:
    outcomes = [outcome for part in parts for outcome in part.collect()]
    reasons = [part.stop_reason for part in parts if part.stop_reason]
    # The first of each set, then the second of each: what a page shows before its fold has something of all.
    shown = [each for row in zip_longest(*(part.shown for part in parts)) for each in row if each is not None]
    return Scored(outcomes, shown, reasons[0] if reasons else None)
