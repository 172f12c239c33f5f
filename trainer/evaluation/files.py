"""What an evaluation leaves in the run folder, under `eval/step_NNNNNN/`.

scores.jsonl                       a line per sample: its scores, codes of failures, statistics, test points
alarms.json                        what was noticed, a name and a sentence each
<set>/unigenbench.json, .csv       the table of a set with `scoring`
<set>/<prompt>.<duplicate>.png     its images, its texts as .text.json, where the set has a name (a benchmark's own tool may
                                   judge them) or they are scored in the background; all but those of a few evaluations
                                   are removed again
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.evaluation.artefacts import whole
from trainer.evaluation.outcomes import Outcome
from trainer.evaluation.sampling import Placed
from trainer.evaluation.sets import EvaluationSet
from trainer.processes.distributed import World, even_share
from trainer.records.recorder import write_atomic
from trainer.types import Sample

_STEP = re.compile(r"^step_(\d{6,})$")


def step_dir(run_dir: Path, step: int) -> Path:
    """The folder of the evaluation after `step` steps."""
    return run_dir / "eval" / f"step_{step:06d}"


def save_samples(folder: Path, chosen: EvaluationSet, samples: Sequence[Placed]) -> None:
    """Write samples of a set; `folder` is the evaluation's."""
    names = chosen.file_names()
    (folder / chosen.folder).mkdir(parents=True, exist_ok=True)
    for placed in samples:
        whole.save(folder / chosen.folder, f"{names[placed.index]}.{placed.duplicate}", placed.sample)


def read_samples(folder: Path, chosen: EvaluationSet, world: World, size: int) -> Iterator[list[Placed]]:
    """This rank's samples of a set, `size` at a time. Raises OSError when one is missing or damaged."""
    names = chosen.file_names()
    mine = even_share(len(chosen.prompts), world.rank, world.size)
    places = [(index, d) for index in mine.indices[: mine.real] for d in range(chosen.duplicates)]
    for start in range(0, len(places), size):
        samples = []
        for index, duplicate in places[start : start + size]:
            prompt = chosen.prompts[index]
            named = Sample(id=f"{prompt.id}#{duplicate}", group_id=prompt.id, prompt=prompt)
            found = whole.load(folder / chosen.folder, f"{names[index]}.{duplicate}", named)
            samples.append(Placed(index, duplicate, found))
        yield samples


def has_samples(folder: Path, sets: Sequence[EvaluationSet]) -> bool:
    """Whether every sample of the sets is there."""
    return all(
        whole.saved(folder / chosen.folder, f"{name}.{duplicate}")
        for chosen in sets
        for name in chosen.file_names()
        for duplicate in range(chosen.duplicates)
    )


def write_outcomes(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write `scores.jsonl`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(outcome.as_dict(), ensure_ascii=False, allow_nan=False) for outcome in outcomes]
    write_atomic(folder / "scores.jsonl", "".join(f"{line}\n" for line in lines))


def read_outcomes(folder: Path) -> list[Outcome]:
    """The lines of `scores.jsonl`; none where there is no such file, or it is of another version."""
    try:
        lines = (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
        return [Outcome.from_dict(json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def steps_with_files(run_dir: Path) -> list[int]:
    """Steps whose evaluation has a folder, in order."""
    matches = [_STEP.match(path.name) for path in (run_dir / "eval").glob("step_*")]
    return sorted(int(match.group(1)) for match in matches if match)


def discard_samples(run_dir: Path, keep: Sequence[int]) -> None:
    """Remove the samples of all evaluations but those after the steps in `keep`; scores and tables stay."""
    for step in steps_with_files(run_dir):
        if step not in keep:
            for path in (path for pattern in whole.PATTERNS for path in step_dir(run_dir, step).glob(f"*/{pattern}")):
                path.unlink(missing_ok=True)


def discard_after(run_dir: Path, step: int) -> None:
    """Remove evaluations of steps after `step`: they will be made again."""
    for later in steps_with_files(run_dir):
        if later > step:
            shutil.rmtree(step_dir(run_dir, later), ignore_errors=True)
