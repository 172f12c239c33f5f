"""The text tab of a flight record: the last step's prompts with their answers, scores and advantages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SHOWN_PROMPTS, _SHOWN_ANSWERS, _WIDTH = 4, 8, 400


def answers(step: Mapping[str, Any]) -> Iterator[str]:
    """Lines about the texts of a step; none where it drew no texts.

    The prompts whose advantages lie furthest from 0 come first, and of each its answers from the best to the worst; what is
    left out is counted.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for sample in step["samples"]:
        if "text" in sample:
            groups.setdefault(sample["prompt_id"], []).append(sample)
    if not groups:
        return
    yield ""
    yield f"Prompts and answers of step {step['step']}:"
    ordered = sorted(groups, key=lambda name: -max(abs(_advantage(sample)) for sample in groups[name]))
    for name in ordered[:_SHOWN_PROMPTS]:
        yield from _group(step["prompts"][name], sorted(groups[name], key=_advantage, reverse=True))
    if len(ordered) > _SHOWN_PROMPTS:
        yield f"  and {len(ordered) - _SHOWN_PROMPTS} more prompts; the record has them all"


def _group(prompt: str, samples: list[Mapping[str, Any]]) -> Iterator[str]:
    first = samples[0]
    yield f"  {_short(prompt)}"
    if first["source_images"]:
        yield f"    images: {', '.join(first['source_images'])}"
    if first["targets"]:
        yield f"    right answer: {', '.join(map(str, first['targets']))}"
    for sample in samples[:_SHOWN_ANSWERS]:
        end = "" if sample["finished"] else ", cut off"
        yield (
            f"    {cell(sample['adv']):>8}  {_short(sample['text'])}  [{scores_of(sample)}, {sample['tokens']} tokens{end}]"
        )
    if len(samples) > _SHOWN_ANSWERS:
        yield f"    and {len(samples) - _SHOWN_ANSWERS} more answers"


def scores_of(sample: Mapping[str, Any]) -> str:
    """Each reward with its score, or with the code of its failure."""
    return ", ".join(
        f"{n} {cell(s) if s is not None else sample['errors'].get(n, 'none')}" for n, s in sample["scores"].items()
    )


def cell(value: Any) -> str:
    """A number, short; a dash where there is none."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _advantage(sample: Mapping[str, Any]) -> float:
    """For the order: one that is not finite, which is spelled, comes first."""
    adv = sample["adv"]
    return float("inf") if isinstance(adv, str) else adv or 0.0


def _short(text: str) -> str:
    """One line of at most _WIDTH characters."""
    line = " ".join(text.split()) or "(nothing)"
    return line if len(line) <= _WIDTH else f"{line[:_WIDTH]}… ({len(text)} characters)"
