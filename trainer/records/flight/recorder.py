"""The last steps of a run, whole, kept in memory and written when the run crashes.

`flight/step_NNNNNN.json` says per step its row, plan (of each task, where there are several) and state of the random numbers, and per sample its prompt, seed,
scores with error codes, advantage and loss weight. Of the last step there is also what was drawn: its texts in the record,
its images, small, in `flight/step_NNNNNN.png`.
SIGTERM is no crash. `python -m trainer flight RUN_DIR` prints what matters of it.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from machine.called import command
from trainer.processes.distributed import World
from trainer.processes.failure import before_ending
from trainer.records.pictures import contact_sheet, thumbnail
from trainer.records.recorder import write_atomic
from trainer.types import Sample, Scores

KEPT_STEPS = 50
MAX_PICTURES = 64
PICTURE_SIDE = 96
MAX_TEXTS, MAX_CHARACTERS = 1024, 20_000  # of the last step, and of each: a record is written when memory may be short


@dataclass
class _Step:
    """What is kept of a step, of a task where there are several: references to small tensors; no image. The last three come after
    its advantages."""

    number: int
    task: str
    plan: Mapping[str, Any]
    prompts: Mapping[str, str]
    seeds_B: Sequence[int]
    ids: Sequence[str]
    prompt_ids: Sequence[str]
    scores: Mapping[str, tuple[Tensor, Tensor]]  # reward -> score and validity of the B samples
    errors: Mapping[int, Mapping[str, str]]  # sample -> reward -> code
    rng: str
    adv_B: Tensor | None = None
    weight_B: Tensor | None = None
    row: Mapping[str, Any] = field(default_factory=dict)


class FlightRecorder:
    """Keeps the last KEPT_STEPS steps of this rank.

    Args:
        run_dir: records are written under its `flight`.
        note: told where a record was written.
    """

    def __init__(self, run_dir: Path, world: World, note: Callable[[str], None]) -> None:
        self._run_dir, self._world, self._note = run_dir, world, note
        self._steps: deque[_Step] = deque()
        self._thumbnails: list[np.ndarray] = []
        self._answers: tuple[int, list[dict[str, Any]]] = 0, []  # the last step, and what its samples say
        self._writing = threading.Lock()  # this rank's failure and another's may come at once

    def add(
        self,
        step: int,
        samples: Sequence[Sample],
        seeds_B: Sequence[int],
        plan: Mapping[str, Any],
        scores: Scores,
        task: str = "",
    ) -> None:
        """Keep step `step` as soon as it has its scores, good or bad, each of its tasks by itself; `plan` says how its samples were
        made."""
        thumbnails, answers = ([], []) if not task or step != self._answers[0] else (self._thumbnails, self._answers[1])
        images = [image_HWC for sample in samples for image_HWC in sample.images][: MAX_PICTURES - len(thumbnails)]
        self._thumbnails = [*thumbnails, *(thumbnail(image, PICTURE_SIDE) for image in images)]
        kept = len(samples) if len(answers) + len(samples) <= MAX_TEXTS else MAX_TEXTS - len(answers)
        self._answers = step, [*answers, *map(_answer, samples[:kept])]
        self._make_room(step)
        self._steps.append(
            _Step(
                number=step,
                task=task,
                plan=plan,
                seeds_B=seeds_B,
                prompts={sample.prompt.id: sample.prompt.text for sample in samples},
                ids=list(scores.ids),
                prompt_ids=[sample.prompt.id for sample in samples],
                scores={
                    name: (scores.scores_BR[:, r], scores.valid_BR[:, r])
                    for r, name in enumerate(scores.names)
                    if bool(scores.asked_BR[:, r].any())
                },
                errors=_errors(scores),
                rng=_random_state(),
            )
        )

    def add_given(self, step: int, plan: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """Keep a step that samples nothing, before its update, whose numbers will be in `row`: the dict itself is kept."""
        self._make_room(step)
        self._steps.append(
            _Step(
                number=step,
                task="",
                plan=plan,
                seeds_B=(),
                prompts={},
                ids=(),
                prompt_ids=(),
                scores={},
                errors={},
                rng=_random_state(),
                row=row,
            )
        )

    def add_advantages(self, adv_B: Tensor, weight_B: Tensor, row: Mapping[str, Any], task: str = "") -> None:
        """Complete the step before its update, whose numbers will be in `row`: the dict itself is kept, not a copy."""
        step = next(each for each in reversed(self._steps) if each.task == task)
        step.adv_B, step.weight_B, step.row = adv_B, weight_B, row

    def _make_room(self, step: int) -> None:
        """Let go of what lies KEPT_STEPS steps before `step`."""
        while self._steps and self._steps[0].number <= step - KEPT_STEPS:
            self._steps.popleft()

    @contextmanager
    def on_crash(self) -> Iterator[None]:
        """Write the record when an exception passes through, or another rank's failure ends this process."""
        try:
            with before_ending(self.write):
                yield
        except Exception as error:
            self.write(error)
            raise

    def write(self, error: Exception) -> None:
        """Write what is kept. A record that cannot be written is said so; it never hides the error itself."""
        with self._writing:
            self._write(error)

    def _write(self, error: Exception) -> None:
        number = self._steps[-1].number if self._steps else 0
        rank = f"_rank{self._world.rank}" if self._world.rank else ""
        path = self._run_dir / "flight" / f"step_{number:06d}{rank}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(self._record(number, error), ensure_ascii=False) + "\n")
            if self._thumbnails:
                Image.fromarray(contact_sheet(self._thumbnails)).save(path.with_suffix(".png"))
        except Exception as problem:
            self._note(f"the flight record was not written ({type(problem).__name__}: {problem})")
            return
        self._note(f"What led to it is in {path}: {command('flight')} {self._run_dir}")

    def _record(self, number: int, error: Exception) -> dict[str, Any]:
        return {
            "step": number,
            "rank": self._world.rank,
            "world_size": self._world.size,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "error": {
                "type": type(error).__name__,
                "message": str(error),
                "traceback": "".join(traceback.format_exception(error)),
            },
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "steps": self._whole_steps(),
        }

    def _whole_steps(self) -> list[dict[str, Any]]:
        """The kept steps, what was drawn in the last of them included."""
        steps: list[dict[str, Any]] = []
        for step in list(self._steps):  # the main thread may go on meanwhile
            whole = _whole(step)
            if step.task and steps and steps[-1]["step"] == step.number:
                steps[-1]["prompts"] |= whole["prompts"]
                steps[-1]["plan"] |= whole["plan"]
                steps[-1]["samples"] += whole["samples"]
            else:
                steps.append(whole)
        number, answers = self._answers
        if steps and steps[-1]["step"] == number:
            for sample, answer in zip(steps[-1]["samples"], answers, strict=False):
                sample.update(answer)
        return steps


def _whole(step: _Step) -> dict[str, Any]:
    scores = {name: (score_B.tolist(), valid_B.tolist()) for name, (score_B, valid_B) in step.scores.items()}
    nothing = [None] * len(step.ids)
    advs, weights = (nothing if values_B is None else values_B.tolist() for values_B in (step.adv_B, step.weight_B))
    columns = (step.ids, step.prompt_ids, step.seeds_B, advs, weights)
    samples = [
        {
            "id": sample_id,
            "prompt_id": prompt_id,
            "seed": seed,
            "adv": adv,
            "weight": weight,
            "scores": {name: score[b] if valid[b] else None for name, (score, valid) in scores.items()},
            "errors": step.errors.get(b, {}),
            **({"task": step.task} if step.task else {}),
        }
        for b, (sample_id, prompt_id, seed, adv, weight) in enumerate(zip(*columns, strict=True))
    ]
    return {
        "step": step.number,
        "row": _spelled(step.row),
        "plan": _spelled({step.task: step.plan} if step.task else step.plan),
        "rng": step.rng,
        "prompts": dict(step.prompts),
        "samples": _spelled(samples),
    }


def _answer(sample: Sample) -> dict[str, Any]:
    """What a policy wrote: the text, its tokens, whether it came to its end, and what its prompt has; nothing of others."""
    if sample.text is None:
        return {}
    return {
        "text": sample.text[:MAX_CHARACTERS],
        "tokens": len(sample.tokens),
        "finished": sample.finished,
        "source_images": list(sample.prompt.source_images),
        "targets": list(sample.prompt.targets or ()),
    }


def _random_state() -> str:
    """The state of the random numbers, short."""
    return hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()[:16]


def _errors(scores: Scores) -> dict[int, dict[str, str]]:
    """Sample to reward to error code, of the samples that have one."""
    found = {}
    for b, details in enumerate(scores.details):
        codes = {name: seen["error"]["code"] for name, seen in details.items() if "error" in seen}
        if codes:
            found[b] = codes
    return found


def _spelled(value: Any) -> Any:
    """As JSON holds it; what is not finite is spelled (`nan`, `inf`), since in a crash record that is what matters."""
    if isinstance(value, Mapping):
        return {str(key): _spelled(item) for key, item in value.items()}
    if is_dataclass(value):
        return _spelled(vars(value))
    if isinstance(value, list | tuple | range):
        return [_spelled(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else str(number)
