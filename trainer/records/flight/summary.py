"""`python -m trainer flight RUN_DIR`: what the newest flight record says, for a person."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from trainer.config import ConfigError
from trainer.processes.failure import OtherRankError
from trainer.records import keys
from trainer.records.flight.answers import answers, cell, scores_of

_SHOWN_STEPS, _SHOWN_SAMPLES = 12, 10
_ONE_CRASH = timedelta(minutes=1)
# What a rank meets when another one failed.
_OF_OTHERS = (OtherRankError.__name__, "DistBackendError", "DistNetworkError", "DistStoreError")
_COLUMNS = {
    "loss/policy": "loss",
    "grad_norm": "grad norm",
    "ratio/max": "ratio max",
    "clip_share": "clipped",
    "kl": "kl",
    "adv/trained_share": "trained",
}
_OF_SOME = {  # shown where a step has them
    "loss/sft": "loss sft",
    "loss/flow": "loss flow",
    "text/length": "tokens",
    "text/truncated_share": "cut off",
    "text/entropy": "entropy",
    "image/entropy": "image entropy",
}


def print_flight(run_dir: Path) -> None:
    """Print the newest record of a run folder; of several ranks', the first that failed itself. What cannot be read is
    left out and named.

    Raises:
        ConfigError: there is none, or none that can be read.
    """
    folder = run_dir / "flight"
    paths = sorted(folder.glob("step_*.json"))
    if not paths:
        raise ConfigError(f"no flight record under {folder}: they are written when a run crashes")
    records: dict[Path, Any] = {}
    unreadable: list[str] = []
    for path in paths:
        try:
            records[path] = _read(path)
        except (OSError, ValueError) as error:
            unreadable.append(f"{path.name} ({getattr(error, 'strerror', None) or error})")
    if not records:
        raise ConfigError(
            f"no flight record under {folder} can be read: {', '.join(unreadable)}; the disk may have been full when the "
            f"run crashed: look at what it printed"
        )
    if unreadable:  # first: one of them may be of the last crash
        print(f"Records that cannot be read: {', '.join(unreadable)}")
    newest = _newest(records)
    print("\n".join(summary(newest, records[newest])))
    others = [path.name for path in records if path != newest]
    if others:
        print(f"Other records: {', '.join(others)}")


def _read(path: Path) -> Any:
    """A record. Raises OSError or ValueError where it is none, such as one that was cut off."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    if missing := {"rank", "world_size", "written", "error", "steps"} - record.keys():
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    return record


def _newest(records: Mapping[Path, Any]) -> Path:
    """Of the last crash, by time: a run that went back may crash at a lower step than before. Its ranks write within
    _ONE_CRASH of each other; the first that was not ended by another's failure has the cause."""
    written = {path: datetime.fromisoformat(record["written"]) for path, record in records.items()}
    of_rank: dict[Any, Path] = {}
    for path in sorted(records, key=lambda path: (written[path], path)):
        of_rank[records[path]["rank"]] = path
    last = max(written.values())
    of_last = [path for path in of_rank.values() if last - written[path] <= _ONE_CRASH]
    return min(of_last, key=lambda path: (records[path]["error"]["type"] in _OF_OTHERS, written[path], path))


def summary(path: Path, record: Mapping[str, Any]) -> Iterator[str]:
    """The lines that matter of the record in `path`."""
    yield f"{path}: rank {record['rank']} of {record['world_size']}, written {record['written']}"
    yield f"{record['error']['type']}: {record['error']['message']}"
    steps = record["steps"]
    if not steps:
        yield "It crashed before any step had its scores."
    else:
        yield ""
        yield from _table([step["row"] | {"step": step["step"]} for step in steps[-_SHOWN_STEPS:]])
        yield ""
        yield from _last_step(steps[-1])
    picture = path.with_suffix(".png")
    if picture.exists():
        yield f"Pictures: {picture}"
    yield ""
    yield record["error"]["traceback"].rstrip()


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Steps by columns; a dash where a step did not get that far."""
    rewards = {key: name for row in rows for key in row if (name := keys.reward_of(key)) is not None}
    names = {"step": "step", **_columns(rows), **rewards}
    cells = [list(names.values()), *([cell(row.get(key)) for key in names] for row in rows)]
    cells[0].append("failed")
    for row, line in zip(rows, cells[1:], strict=True):
        line.append(f"{sum(value for key, value in row.items() if keys.failed_of(key)):.0f}")
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        yield "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The keys that are shown, with their headings: what every step has, and what some have; of each task, where there are several."""
    found: dict[str, str] = {}
    for key, name in {**_COLUMNS, **_OF_SOME}.items():
        by_task = [each for each in dict.fromkeys(k for row in rows for k in row) if each.endswith(f"/{key}")]
        if (key in _COLUMNS and not by_task) or any(key in row for row in rows):
            found[key] = name
        found |= {
            each: f"{each.partition('/')[0]} {name}" for each in by_task if each.removesuffix(key).count("/") == 1
        }
    return found


def _last_step(step: Mapping[str, Any]) -> Iterator[str]:
    samples, plan = step["samples"], step["plan"]
    if not samples:  # of a program that is given what it trains on
        told = ", ".join(f"{name} {value}" for name, value in plan.items())
        yield f"Step {step['step']}: {told}; random state {step['rng']}"
        return
    yield (
        f"Step {step['step']}: {len(samples)} samples of {len(step['prompts'])} prompts; {_how(plan)}; random state "
        f"{step['rng']}"
    )
    codes = Counter(f"{name}: {code}" for sample in samples for name, code in sample["errors"].items())
    if codes:
        yield "Scores that are missing: " + ", ".join(f"{code} ({count})" for code, count in codes.most_common())
    odd = [sample["id"] for sample in samples if isinstance(sample["adv"], str)]
    if odd:
        yield f"Advantages that are not finite: {', '.join(odd[:_SHOWN_SAMPLES])}{', ...' if odd[_SHOWN_SAMPLES:] else ''}"
    has_advantages = all(sample["adv"] is not None for sample in samples)
    yield "Samples with the largest advantages:" if has_advantages else "It crashed before its advantages:"
    for sample in sorted(samples, key=_size, reverse=True)[:_SHOWN_SAMPLES]:
        prompt = step["prompts"][sample["prompt_id"]]
        yield (
            f"  {sample['id']}: advantage {cell(sample['adv'])}, weight {cell(sample['weight'])}, {scores_of(sample)}, seed "
            f"{sample['seed']}, {prompt!r}"
        )
    yield from answers(step)


def _how(plan: Mapping[str, Any]) -> str:
    """How the samples of a step were drawn; of each task, where there are several."""
    if plan and all(isinstance(each, Mapping) for each in plan.values()):
        return "; ".join(f"{task}: {_how(each)}" for task, each in plan.items())
    if "num_inference_steps" not in plan:  # of a policy of texts
        return ", ".join(f"{name} {value:g}" for name, value in plan.items() if isinstance(value, int | float))
    return (
        f"{plan['num_inference_steps']} denoising steps, {plan['kind']} with noise level {plan['noise_level']:g}, trained steps "
        f"{', '.join(map(str, plan['trained_steps'])) or 'none'}"
    )


def _size(sample: Mapping[str, Any]) -> float:
    """How far an advantage is from 0, one that is not finite first; without advantages, how many scores are missing."""
    adv = sample["adv"]
    if adv is None:
        return float(len(sample["errors"]))
    return float("inf") if isinstance(adv, str) else abs(adv) * (sample["weight"] > 0)
