"""The rules scorer: one named reward per function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from PIL import Image

from services.kit.scorer import Item, Result
from services.rules import answers, color, jpeg
from services.rules.functions import FunctionReward, FunctionsError, load_functions
from wire.schema import ScorerInfo

MAX_BATCH = 64  # functions gain nothing from a batch; a small one lets callers take turns


def builtin_rewards() -> list[FunctionReward]:
    """The rewards that come with the service; the first is its default."""

    def info(name: str, revision: str, low: float | None, high: float | None) -> ScorerInfo:
        return ScorerInfo(name=name, revision=revision, range=(low, high))

    return [
        FunctionReward(info("color_match", color.REVISION, 0.0, 1.0), color.color_match),
        FunctionReward(info("jpeg_compressibility", jpeg.REVISION, None, 0.0), jpeg.jpeg_compressibility, True),
        FunctionReward(info("jpeg_incompressibility", jpeg.REVISION, 0.0, None), jpeg.jpeg_incompressibility, True),
        FunctionReward(info("option_letter", answers.OPTION_LETTER_REVISION, 0.0, 1.0), answers.option_letter),
        FunctionReward(info("number", answers.NUMBER_REVISION, 0.0, 1.0), answers.number),
        FunctionReward(info("think_format", answers.THINK_FORMAT_REVISION, 0.0, 1.0), answers.think_format),
    ]


class RulesScorer:
    """Serves the built-in rewards and those of the given functions files. A `Scorer`.

    Raises FunctionsError when a file cannot be used or two rewards have one name.
    """

    def __init__(self, functions: Sequence[str] = ()) -> None:
        named = [("the built-in one", reward) for reward in builtin_rewards()]
        named += [(spec, reward) for spec in functions for reward in load_functions(spec)]
        self._rewards: dict[str, FunctionReward] = {}
        sources: dict[str, str] = {}
        for source, reward in named:
            name = reward.info.name
            if name in sources:
                raise FunctionsError(
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

    @property
    def max_batch(self) -> int:
        return MAX_BATCH

    def load(self) -> None:
        """Nothing to load: the functions are there since construction."""

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        function = self._rewards[reward]
        return [function(item) for item in items]

    def warmup(self) -> Sequence[tuple[str, Item]]:
        """The built-in rewards on a white image with a red square, and on an answer. What users' functions take is not known."""
        image = Image.new("RGB", (16, 16), "white")
        image.paste((220, 30, 30), (4, 4, 12, 12))
        item = Item("warmup", "a square in red", (image,), completion="<think>one</think><answer>1</answer>")
        targets = {"option_letter": ("A",), "number": ("1",)}
        names = [reward.info.name for reward in builtin_rewards()]
        return [(name, replace(item, targets=targets.get(name))) for name in names]

    def close(self) -> None:
        """Nothing to free."""
