"""What a run says when it ends: held-out means before and after, what failed, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from machine.called import command
from trainer.config import Config
from trainer.records.numbers import interval, plain
from trainer.records.progress import duration


def closing_lines(config: Config, summary: Mapping[str, Any]) -> list[str]:
    """Lines of at most 80 characters, but for paths and reasons.

    Args:
        summary: what `summary.json` holds.
    """
    lines = ["", *_how_it_ended(config, summary), *_table(summary["eval"])]
    failed = {f"{name} {code}": n for name, codes in summary["failed_by_reward"].items() for code, n in codes.items()}
    if failed:
        lines.append(f"Failed scores, masked: {', '.join(f'{name} {count}' for name, count in failed.items())}")
    return [*lines, f"Report: {config.run_dir / 'report.html'}", *_next(config, summary)]


def _how_it_ended(config: Config, summary: Mapping[str, Any]) -> list[str]:
    step, last = summary["steps"], config.max_steps
    if summary["stopped"]:
        return [f"Stopped after step {step}: {summary['stopped']}"]
    if step < last or summary["owed"] is not None:
        return [f"Saved after step {step} of {last}."]
    return [f"Finished: {step} steps in {duration(summary['wall_s'])}."]


def _table(evaluation: Mapping[str, Any]) -> list[str]:
    """Per reward the mean before, the mean after with its 95 % interval, and the paired gain with its own."""
    before, after = evaluation["before"], evaluation["after"]
    if not after:
        return []
    intervals, gains = evaluation["interval"], evaluation["gain"]
    if before == after and not gains:  # one evaluation; a later one may find the same means
        rows = [(name, _ends(after[name], intervals.get(name)), "") for name in after]
        title = "Held-out means (95 % interval):"
    else:
        rows = [
            (name, f"{plain(before.get(name))} → {_ends(after[name], intervals.get(name))}", _gain(gains.get(name)))
            for name in after
        ]
        title = "Held-out means, before → after (95 % interval), gain on the same prompts:"
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [title, *(f"  {name:{widths[0]}}  {mean:{widths[1]}}  {gain}".rstrip() for name, mean, gain in rows)]


def _ends(mean: float, ends: Any) -> str:
    return plain(mean) if ends is None else interval([mean, *ends])


def _gain(gain: Mapping[str, float] | None) -> str:
    if gain is None:
        return ""
    return interval([gain["gain"], gain["low"], gain["high"]], sign=True)


def _next(config: Config, summary: Mapping[str, Any]) -> list[str]:
    if summary["stopped"]:
        return ["Next: see to that; the same command then goes on from the newest checkpoint"]
    if summary["owed"] is not None:
        return [f"Next: the same command makes the evaluation after step {summary['owed']}, and goes on"]
    if summary["steps"] < config.max_steps:
        return ["Next: the same command goes on from there"]
    if config.quickstart is not None:
        return [f"Next: start RL from it: policy.checkpoint={config.quickstart.output}"]
    adapters = getattr(config.policy, "lora", None) is not None
    formats = config.policy.formats
    chosen = "lora" if adapters and "lora" in formats else formats[0]
    shown = {"tokens": "answers", "tasks": "samples"}.get(config.sampling.type, "pictures")
    return [
        f"Next: look at the report's {shown}; then take the weights with you:\n"
        f"  {command('export')} {shlex.quote(str(config.run_dir))} --to {chosen} --output my_model"
    ]
