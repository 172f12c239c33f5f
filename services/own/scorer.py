"""The scorer of a user's file: of its functions, or of its reward model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path

from machine.own import Own, Source, load, named, pick, subclass
from services.kit.functions.batches import BatchReward
from services.kit.functions.file import FunctionReward, functions_of
from services.kit.models.network_scorer import NetworkOptions
from services.kit.models.sources import at_hand, inspect_any
from services.kit.scorer import Item, Result, Scorer
from services.own.model import ModelScorer, RewardModel
from wire.schema import ScorerInfo

EXAMPLE = "class {}(RewardModel): with load and score (from services.own import RewardModel)"
MAX_BATCH = 64  # functions of one item gain nothing from a batch; a small one lets callers take turns
WHOLE_BATCH = 1024  # functions of completions get a request in one call


class FunctionsScorer:
    """Serves the functions of a file. A `Scorer`. Raises OwnError where two have one name."""

    def __init__(self, source: Source, *, conversational: bool) -> None:
        file = functions_of(source, conversational=conversational)
        self._rewards: dict[str, FunctionReward | BatchReward] = {}
        for reward in file.rewards:
            if reward.info.name in self._rewards:
                raise source.named.error(
                    f'two rewards are called {reward.info.name!r}; rename one with @reward(name="...")'
                )
            self._rewards[reward.info.name] = reward
        self.about = {"not_served": list(file.not_served)} if file.not_served else {}

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        return {name: reward.info for name, reward in self._rewards.items()}

    @property
    def image_only(self) -> Sequence[str]:
        return [name for name, reward in self._rewards.items() if reward.image_only]

    @property
    def max_batch(self) -> int:
        return WHOLE_BATCH if any(isinstance(each, BatchReward) for each in self._rewards.values()) else MAX_BATCH

    def load(self) -> None:
        """The functions are there since construction."""

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        return self._rewards[reward].score(items)

    def warmup(self) -> Sequence[tuple[str, Item]]:
        """Nothing: what users' functions take is not known. A trainer's canary asks for a score before it trains."""
        return []

    def close(self) -> None:
        """Nothing to free."""


def scorer_of(file: str, *, conversational: bool, checkpoint: Path | None, options: NetworkOptions) -> Scorer:
    """What the file is: where it names or has a `RewardModel`, that one is served, else its functions. Raises OwnError, ValueError."""
    source = load(named(file, "--file", needs_name=False))
    own = _model_in(source)
    if own is None:
        if checkpoint is not None:
            raise source.named.error(
                f"--checkpoint {checkpoint} is for a reward model, and this has functions; leave it out"
            )
        return FunctionsScorer(source, conversational=conversational)
    kind = subclass(own, RewardModel, EXAMPLE.format(own.name))
    given = checkpoint or (None if kind.checkpoint is None else Path(kind.checkpoint))
    if given is None:
        return ModelScorer(own, kind, None, None, options)
    found = inspect_any(at_hand(given, "--checkpoint"), "--checkpoint")
    return ModelScorer(own, kind, found.path, found.name, options)


def _model_in(source: Source) -> Own | None:
    """The class that is meant; None where functions are."""
    if len(source.named.names) == 1 and inspect.isclass(getattr(source.module, source.named.names[0], None)):
        return pick(source, source.named.names[0])
    if source.named.names:
        return None
    models = [
        name
        for name, value in vars(source.module).items()
        if inspect.isclass(value) and issubclass(value, RewardModel) and value.__module__ == source.module.__name__
    ]
    if len(models) > 1:
        raise source.named.error(f"it has {len(models)} reward models; name one: {source.named.source}:{models[0]}")
    return pick(source, models[0]) if models else None
