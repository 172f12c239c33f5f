"""The rules scorer: one named reward per function."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import get_args

from PIL import Image
from pydantic import JsonValue

from machine.own import OwnError
from services.kit.functions.batches import BatchReward
from services.kit.functions.file import FunctionReward, load_functions
from services.kit.samples import Sample
from services.kit.scorer import Item, Result
from services.rules import answers, color, forms, jpeg, objects, side_by_side
from services.rules.lengths import Lengths, Unit
from services.rules.samples import samples
from wire.schema import ScorerInfo

MAX_BATCH = 64  # functions of one item gain nothing from a batch; a small one lets callers take turns
WHOLE_BATCH = 1024  # functions of completions get a request in one call, which has at most that many items by default

logger = logging.getLogger("services.rules")


def builtin_rewards(lengths: Lengths) -> list[FunctionReward]:
    """The rewards that come with the service; the first is its default."""

    def info(name: str, revision: str, low: float | None, high: float | None) -> ScorerInfo:
        return ScorerInfo(name=name, revision=revision, range=(low, high))

    return [
        FunctionReward(info("color_match", color.REVISION, 0.0, 1.0), color.color_match),
        FunctionReward(info("side_by_side", side_by_side.REVISION, 0.0, 1.0), side_by_side.side_by_side),
        FunctionReward(info("jpeg_compressibility", jpeg.REVISION, None, 0.0), jpeg.jpeg_compressibility, True),
        FunctionReward(info("jpeg_incompressibility", jpeg.REVISION, 0.0, None), jpeg.jpeg_incompressibility, True),
        FunctionReward(info("option_letter", answers.OPTION_LETTER_REVISION, 0.0, 1.0), answers.option_letter),
        FunctionReward(info("number", answers.NUMBER_REVISION, 0.0, 1.0), answers.number),
        FunctionReward(info("exact_answer", answers.EXACT_REVISION, 0.0, 1.0), answers.exact_answer),
        FunctionReward(info("answer", answers.ANSWER_REVISION, 0.0, 1.0), answers.answer),
        FunctionReward(info("think_format", forms.THINK_FORMAT_REVISION, 0.0, 1.0), forms.think_format),
        FunctionReward(info("answer_format", forms.ANSWER_FORMAT_REVISION, 0.0, 1.0), forms.answer_format),
        FunctionReward(info("tag_count", forms.TAG_COUNT_REVISION, 0.0, 1.0), forms.tag_count),
        FunctionReward(info("length", lengths.revision, 0.0, 1.0), lengths.length),
        FunctionReward(info("overlong", lengths.revision, -1.0, 0.0), lengths.overlong),
        FunctionReward(info("json_valid", objects.REVISION, 0.0, 1.0), objects.json_valid),
    ]


class RulesScorer:
    """Serves the built-in rewards and those of the given functions files. A `Scorer`.

    Args:
        functions: files, each as FILE.py or FILE.py:name1,name2.
        lengths: what `length` and `overlong` count, and their limits.
        conversational: functions of `completions` get lists of messages instead of texts.

    Raises OwnError when a file cannot be used or two rewards have one name.
    """

    off_scale = get_args(Unit)  # how long a text is

    def __init__(
        self, functions: Sequence[str] = (), lengths: Lengths | None = None, *, conversational: bool = False
    ) -> None:
        self._lengths = lengths or Lengths()
        named: list[tuple[str, FunctionReward | BatchReward]] = [
            ("the built-in one", reward) for reward in builtin_rewards(self._lengths)
        ]
        self._not_served: dict[str, Sequence[str]] = {}
        for spec in functions:
            file = load_functions(spec, conversational=conversational)
            named += [(spec, reward) for reward in file.rewards]
            if file.not_served:
                self._not_served[spec] = file.not_served
        self._rewards: dict[str, FunctionReward | BatchReward] = {}
        sources: dict[str, str] = {}
        for source, reward in named:
            name = reward.info.name
            if name in sources:
                raise OwnError(
                    f"--functions {source}: the reward {name!r} is already served ({sources[name]}); "
                    f'rename one with @reward(name="...")'
                )
            sources[name] = source
            self._rewards[name] = reward

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        return {name: reward.info for name, reward in self._rewards.items()}

    @property
    def image_only(self) -> Sequence[str]:
        return [name for name, reward in self._rewards.items() if reward.image_only]

    @cached_property
    def samples(self) -> Mapping[str, Sample]:
        return samples(self._lengths.unit)

    @property
    def max_batch(self) -> int:
        return WHOLE_BATCH if any(isinstance(each, BatchReward) for each in self._rewards.values()) else MAX_BATCH

    @property
    def about(self) -> Mapping[str, JsonValue]:
        """Which functions of the files could be rewards and were not listed."""
        return (
            {"not_served": {spec: list(names) for spec, names in self._not_served.items()}} if self._not_served else {}
        )

    def load(self) -> None:
        """The functions are there since construction; those that were left out are named once."""
        for spec, names in self._not_served.items():
            logger.warning(
                "functions that could be rewards are not served", extra={"file": spec, "names": ", ".join(names)}
            )

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        return self._rewards[reward].score(items)

    def warmup(self) -> Sequence[tuple[str, Item]]:
        """The built-in rewards on a white image with a red square, and on an answer. What users' functions take is not known."""
        image = Image.new("RGB", (16, 16), "white")
        image.paste((220, 30, 30), (4, 4, 12, 12))
        metadata: dict[str, JsonValue] = {
            "target_length": 3,
            "max_length": 4,
            "overlong_buffer": 2,
            "completion_ids": [1, 2, 3],
            "left": "red square",
            "right": "red square",
        }
        completion = "<think>one</think><answer>1</answer>"
        item = Item("warmup", "a square in red", (image,), completion=completion, targets=("1",), metadata=metadata)
        targets = {"color_match": None, "option_letter": ("A",)}
        names = [reward.info.name for reward in builtin_rewards(self._lengths)]
        return [(name, replace(item, targets=targets.get(name, item.targets))) for name in names]

    def close(self) -> None:
        """Nothing to free."""
