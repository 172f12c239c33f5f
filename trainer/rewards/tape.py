"""Every answer of the reward services on file, so that a run can be made again, bit for bit, without any service.

A tape is a folder with one `rank_<n>.jsonl` per recording rank: a line of its own about the scorers, then a line per
sample, `{"kind", "step", "id", "sha256", "answers": {reward: {...}}}`, and one where a reward came from another scorer from
some step on, `{"kind": "change", "step", "reward", "before", "after"}`; whole lines only. A sample is found again by its
step, its id and the SHA-256 of its pixels, whichever rank asks.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from trainer.config import RewardsConfig
from trainer.rewards.answers import Answer, ClientCode, OnEvent, RewardEvent, RewardServiceError, all_failed
from trainer.rewards.batch import MicroBatch, Moment
from trainer.rewards.checks import outside_range
from trainer.rewards.identity import ScorerChange, Scorers, plain
from trainer.rewards.mixture import Cells
from trainer.types import Sample
from wire.schema import ScorerInfo

_HEAD = re.compile(rb'\{"kind": "(train|evaluation|change)", "step": (\d+), ')  # as it is written below
_CHANGE = "change"
_MOMENTS_KEPT = 4  # a training step, the one sampled ahead of it, an evaluation under way, and one to spare


class TapeRecorder:
    """Appends to one rank's file. A batch is one write, so a kill leaves whole lines and at most one torn end.

    Args:
        folder: made when missing.
        rank, world_size: this process; rank 0 also takes care of files that ranks of an earlier, larger start left.
        last_train, last_evaluation: the last steps whose answers stay, of a run that goes on from a checkpoint; what
            comes later will be recorded again. -1 starts anew.
    """

    def __init__(self, folder: Path, *, rank: int, world_size: int, last_train: int, last_evaluation: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        last = {b"train": last_train, b"evaluation": last_evaluation, _CHANGE.encode(): last_train}
        mine = folder / f"rank_{rank}.jsonl"
        left = [path for path in _files(folder) if _rank(path) >= world_size] if rank == 0 else []
        for path in {mine, *left}:
            _cut(path, last)
        self._noted = _changes_in(mine)
        self._file: BinaryIO = mine.open("ab", buffering=0)

    def start(self, scorers: Mapping[str, ScorerInfo]) -> None:
        """Note what scores each reward."""
        if self._file.tell() == 0:
            head = {"tape": 2, "scorers": {name: plain(scorer) for name, scorer in scorers.items()}}
            self._file.write(json.dumps(head, ensure_ascii=False).encode() + b"\n")

    def note(self, changes: Sequence[ScorerChange]) -> None:
        """Note the changes of scorers that are not on this tape yet."""
        new = [change for change in changes if change not in self._noted]
        self._noted += new
        lines = [{"kind": _CHANGE, "step": change.step, **change.as_dict()} for change in new]
        self._file.write(b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))

    def write(self, moment: Moment, samples: Sequence[Sample], cells: Cells, changes: Sequence[ScorerChange]) -> None:
        """Append a batch's answers, and before them the changes of scorers until then."""
        self.note(changes)
        lines = [
            _line(moment, sample, {name: answers[sample.id] for name, answers in cells.items() if sample.id in answers})
            for sample in samples
        ]
        self._file.write(b"".join(lines))

    def close(self) -> None:
        self._file.close()


class TapePlayer:
    """Answers from a tape, in the place of the dispatcher and the failure guard. Nothing is ever waited for.

    Args:
        scorers: told what scores each column, at the start and wherever the tape says that it changed.

    Raises:
        RewardServiceError: the folder holds no tape, or one of another reward than a column names.
    """

    def __init__(self, folder: Path, config: RewardsConfig, scorers: Scorers, on_event: OnEvent) -> None:
        self._folder, self._config, self._scorers, self._on_event = folder, config, scorers, on_event
        self._places: dict[Moment, list[tuple[Path, int, int]]] = {}  # file, offset, length
        self._loaded: dict[Moment, dict[str, dict[str, Any]]] = {}  # sample id -> SHA-256 -> answers
        self._first: dict[str, ScorerInfo] = {}
        self._changes: list[ScorerChange] = []
        self.interrupted = asyncio.Event()  # a tape makes nobody wait, so there is nothing to interrupt
        for path in _files(folder):
            self._index(path)
        if not self._places:
            raise RewardServiceError(
                f"rewards.tape.path = {folder} holds no tape; give the `tape` folder of a run that was made with "
                "rewards.tape.mode: record"
            )
        self._changes.sort(key=lambda change: change.step)
        for name, column in config.columns.items():
            if name in self._first:
                self._check_name(name, column.reward)
                scorers.begin(name, self._first[name], proven=True)

    def wind_to(self, step: int) -> None:
        """The run goes on after `step` steps: what scored until then is what the tape had then."""
        for name in self._scorers.now:
            self._scorers.begin(name, self._scorer(name, step), proven=True)

    async def score(self, micro: MicroBatch, names: Sequence[str], started_at: float) -> None:
        """Fill `micro.answers` for `names`."""
        digests = await asyncio.to_thread(lambda: {sample.id: digest(sample) for sample in micro.samples})
        for name in names:
            asked = micro.asked[name]
            micro.answers[name] = {s.id: self._answer(micro.moment, s.id, digests[s.id], name) for s in asked}
            micro.latency_s[name] = 0.0
            if name in self._first:
                step = micro.moment.next_step
                problem = self._scorers.admit(name, self._scorer(name, step), f"on the tape at {self._folder}", step)
                if problem is not None:
                    micro.answers[name] = all_failed([s.id for s in asked], ClientCode.CHANGED_SCORER, problem)

    async def review(self, micros: Sequence[MicroBatch], names: Sequence[str], *, patient: bool) -> str | None:
        """Why the run must stop: more of a reward's answers than its `max_failure_rate` are not on the tape, or it became
        another one where that is not accepted."""
        reasons = [self._scorers.refused[name] for name in names if name in self._scorers.refused]
        for name in names:
            answers = [answer for micro in micros for answer in micro.answers.get(name, {}).values()]
            missing = [answer for answer in answers if answer.code == ClientCode.NOT_ON_TAPE]
            if not missing:
                continue
            text = f"{len(missing)} of {len(answers)} scores are not on the tape; the first: {missing[0].message}"
            self._on_event(RewardEvent("failure", name, text))
            if len(missing) > self._config.columns[name].max_failure_rate * len(answers):
                reasons.append(f"reward {name}: {text}")
        return "; ".join(reasons) or None

    def _answer(self, moment: Moment, sample_id: str, sha256: str, name: str) -> Answer:
        found = self._load(moment).get(sample_id, {})
        if sha256 in found and name in found[sha256]:
            return self._believed(name, Answer(**found[sha256][name]))
        when = f"training step {moment.step}" if moment.kind == "train" else f"the evaluation after step {moment.step}"
        if moment not in self._places:
            problem = f"{when} is not on the tape at {self._folder}"
        elif not found:
            problem = f"sample {sample_id} is not on the tape in {when}"
        elif sha256 in found:
            problem = f"sample {sample_id} was not scored by {name} in {when}"
        else:
            problem = (
                f"sample {sample_id} in {when} is not what was recorded (SHA-256 {sha256[:12]} here, "
                f"{next(iter(found))[:12]} on the tape): its configuration, seed, weights, library versions or device differ"
            )
        return Answer(None, ClientCode.NOT_ON_TAPE, problem)

    def _believed(self, name: str, answer: Answer) -> Answer:
        """A number that no scorer of the reward on this tape can have given is none; a recorder never writes one."""
        if answer.score is None:
            return answer
        scorers = [self._first[name], *self._later(name)] if name in self._first else []
        problems = [outside_range(answer.score, scorer) for scorer in scorers]
        if math.isfinite(answer.score) and (not problems or None in problems):
            return answer
        text = problems[0] if problems else f"scores {answer.score}, which is not a finite number"
        return Answer(None, ClientCode.OUT_OF_RANGE, f"{text}; so says the tape", details=answer.details)

    def _scorer(self, name: str, step: int) -> ScorerInfo:
        """What scores a reward in a training step."""
        found = self._first[name]
        for change in self._changes:
            if change.reward == name and change.step <= step:
                found = change.apply(found)
        return found

    def _later(self, name: str) -> list[ScorerInfo]:
        return [self._scorer(name, change.step) for change in self._changes if change.reward == name]

    def _check_name(self, name: str, reward: str | None) -> None:
        recorded = {self._first[name].name, *(scorer.name for scorer in self._later(name))}
        if reward is not None and reward not in recorded:
            raise RewardServiceError(
                f"rewards.columns.{name}.reward = {reward!r}, and the tape at {self._folder} has answers of "
                f"{', '.join(sorted(recorded))}: correct the column, or record a tape of it"
            )

    def _load(self, moment: Moment) -> dict[str, dict[str, Any]]:
        if moment not in self._loaded:
            samples: dict[str, dict[str, Any]] = {}
            for path, offset, length in self._places.get(moment, ()):
                with path.open("rb") as file:
                    file.seek(offset)
                    lines = file.read(length).splitlines()
                for entry in map(json.loads, lines):
                    samples.setdefault(entry["id"], {}).setdefault(entry["sha256"], {}).update(entry["answers"])
            while len(self._loaded) >= _MOMENTS_KEPT:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[moment] = samples
        return self._loaded[moment]

    def _index(self, path: Path) -> None:
        """Where each moment's lines are, without reading what is in them."""
        offset = 0
        with path.open("rb") as file:
            for line in file:
                head = _HEAD.match(line)
                if head and head[1] == _CHANGE.encode():
                    self._changes += [change for change in _read_changes([line]) if change not in self._changes]
                elif head and line.endswith(b"\n"):
                    places = self._places.setdefault(Moment(head[1].decode(), int(head[2])), [])
                    if places and places[-1][0] == path and sum(places[-1][1:]) == offset:
                        places[-1] = (path, places[-1][1], places[-1][2] + len(line))
                    else:
                        places.append((path, offset, len(line)))
                elif offset == 0 and line.endswith(b"\n"):
                    told = json.loads(line).get("scorers", {})
                    self._first |= {name: ScorerInfo.model_validate(scorer) for name, scorer in told.items()}
                offset += len(line)


def digest(sample: Sample) -> str:
    """SHA-256 of the raw pixels (uint8, row by row) of a sample's images, one after the other, and then of its text."""
    seen = hashlib.sha256()
    for image_HWC in sample.images:
        seen.update(image_HWC.tobytes())
    seen.update((sample.text or "").encode())
    return seen.hexdigest()


def _line(moment: Moment, sample: Sample, answers: Mapping[str, Answer]) -> bytes:
    entry = {
        "kind": moment.kind,
        "step": moment.step,
        "id": sample.id,
        "sha256": digest(sample),
        "answers": {name: _plain(answer) for name, answer in answers.items()},
    }
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _plain(answer: Answer) -> dict[str, Any]:
    """The fields of an answer that say something."""
    fields = {
        "code": str(answer.code),
        "message": answer.message,
        "components": dict(answer.components),
        "details": dict(answer.details),
        "cached": answer.cached,
    }
    return {"score": answer.score, **{name: value for name, value in fields.items() if value}}


def _changes_in(path: Path) -> list[ScorerChange]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        return _read_changes(line for line in file if (head := _HEAD.match(line)) and head[1] == _CHANGE.encode())


def _read_changes(lines: Iterable[bytes]) -> list[ScorerChange]:
    """Changes from their whole lines."""
    trees = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [ScorerChange.from_dict({key: value for key, value in tree.items() if key != "kind"}) for tree in trees]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("rank_*.jsonl"))


def _rank(path: Path) -> int:
    return int(path.stem.removeprefix("rank_"))


def _cut(path: Path, last: Mapping[bytes, int]) -> None:
    """Remove the lines of later steps, and a torn one, by a rename."""
    if not path.exists():
        return
    temporary = path.with_suffix(".writing")
    with path.open("rb") as old, temporary.open("wb") as new:
        for number, line in enumerate(old):
            head = _HEAD.match(line)
            stays = int(head[2]) <= last[head[1]] if head else number == 0 and max(last.values()) >= 0
            if stays and line.endswith(b"\n"):
                new.write(line)
        new.flush()
        os.fsync(new.fileno())
    temporary.replace(path)
