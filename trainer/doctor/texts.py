"""The texts that prompts ask an OCR service to find: whether its model can write them at all."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.config import Config, ConfigError, RewardConfig
from trainer.data.datasets import DataError, load_datasets, sampled
from trainer.doctor.findings import Finding
from trainer.evaluation.sets import load_sets
from trainer.types import Prompt
from wire.quotes import quoted_texts

_SHOWN_CHARACTERS = 8


def check_texts(
    config: Config, service: str, columns: Mapping[str, RewardConfig], about: Mapping[str, Any]
) -> Iterator[Finding]:
    """Prompts whose text the model of a service has no characters for, and prompts without a text, set by set.

    Both get no score. A service whose `about` (of /v1/info) has no `characters` reads no text.
    """
    if "characters" not in about:
        return
    listed = about["characters"]
    if not isinstance(listed, str):
        what = f"{service} does not say which characters its model can write, so the prompts' texts were not checked"
        yield Finding("services", "WARN", what, "see that the model writes the script of your texts")
        return
    known = _code_points(listed)
    for name, column in columns.items():
        for dataset, prompts in _asking(config, name).items():
            yield from _check_set(f"{dataset}, reward {name}", prompts, known, first_only=column.reward == "flow_grpo")


def _check_set(where: str, prompts: Sequence[Prompt], known: frozenset[int], *, first_only: bool) -> Iterator[Finding]:
    silent, unwritable = 0, []
    for prompt in prompts:
        texts = list(prompt.targets or quoted_texts(prompt.text, straight_first=True))
        silent += not texts
        for text in texts[:1] if first_only else texts:
            if missing := _missing(text, known):
                unwritable.append((text, missing))
                break
    if unwritable:
        text, missing = unwritable[0]
        letters = " ".join(missing[:_SHOWN_CHARACTERS])
        yield Finding(
            "services",
            "WARN",
            f"{where}: {len(unwritable)} of {len(prompts)} prompts ask for text that the OCR model cannot write, such as "
            f"{text!r} ({letters}); they get no score (not_applicable)",
            "serve a model of that script (docs/services.md, OCR), or leave those prompts out",
        )
    if silent:
        yield Finding(
            "services",
            "WARN",
            f"{where}: {silent} of {len(prompts)} prompts ask for no text; they get no score (not_applicable)",
            "quote the text in the prompt, give `targets`, or ask for this reward in another data set",
        )
    if not unwritable and not silent:
        yield Finding("services", "OK", f"{where}: the OCR model can write the texts of all {len(prompts)} prompts")


def _asking(config: Config, reward: str) -> dict[str, list[Prompt]]:
    """Prompts that ask for a reward, by data set; none where a file cannot be read, which is said elsewhere."""
    try:
        train = load_datasets(config)
        sets = load_sets(config, sampled(train), train)
    except (DataError, ConfigError):
        return {}
    found = {each.name: [p for p in sampled([each]) if reward in p.weights] for each in train}
    found |= {f"evaluation {each.folder}": list(each.prompts) for each in sets if reward in each.columns(final=True)}
    return {name: prompts for name, prompts in found.items() if prompts}


def _code_points(ranges: str) -> frozenset[int]:
    """Of hexadecimal ranges such as "21-7e a1"."""
    ends = (part.partition("-")[::2] for part in ranges.split())
    return frozenset(point for low, high in ends for point in range(int(low, 16), int(high or low, 16) + 1))


def _missing(text: str, known: frozenset[int]) -> list[str]:
    """Letters and digits that are not known in either case."""
    letters = (c for c in dict.fromkeys(unicodedata.normalize("NFKC", text)) if c.isalnum())
    return [c for c in letters if not any(ord(form) in known for form in (c, *c.lower(), *c.upper()))]
