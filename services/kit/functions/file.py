"""A reward from a plain function, and those of a user's own Python file.

    from PIL import ImageStat
    from services.kit.scorer import Item
    from services.own import reward

    @reward(range=(0, 1))
    def brightness(item: Item) -> float:
        return ImageStat.Stat(item.images[0].convert("L")).mean[0] / 255

A reward function takes one `Item` (prompt, decoded images, completion, targets, metadata) and returns

- a finite number (True and False count as 1 and 0), or a `Score` to add components and details;
- a `Failure` with the reason why this item has no score; or
- None when the reward does not apply to this item.

An exception, NaN, or a number outside the stated range fails that item alone. Functions are called one at a time. One with a
parameter `completions` judges the texts of a whole batch in one call, as services/kit/functions/batches.py says.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import TypeVar, overload

from machine.own import Source, did_you_mean, load, named
from services.kit.functions.batches import BatchReward, takes_completions, what_is_missing
from services.kit.functions.outcomes import checked
from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode, ScorerInfo

Outcome = float | Score | Failure | None
RewardFunction = Callable[[Item], Outcome]
Function = TypeVar("Function", bound=Callable[..., object])
Range = tuple[float | None, float | None]

_MARK = "__reward_mark__"


@dataclass(frozen=True)
class RewardMark:
    """What `@reward` says about a function."""

    name: str
    range: Range
    revision: str
    higher_is_better: bool
    image_only: bool = False
    grouped: bool = False


@dataclass(frozen=True)
class FunctionsFile:
    """The rewards of one file, and the names of the functions that could be rewards and were not chosen."""

    rewards: Sequence[FunctionReward | BatchReward]
    not_served: Sequence[str]


@dataclass(frozen=True)
class FunctionReward:
    """A named reward and the function behind it. `image_only`: it does not look at the prompt."""

    info: ScorerInfo
    function: RewardFunction
    image_only: bool = False

    def score(self, items: Sequence[Item]) -> list[Result]:
        """One result for each item, in order."""
        return [self(item) for item in items]

    def __call__(self, item: Item) -> Result:
        """Score one item. Never raises: whatever the function does becomes a `Score` or a `Failure`."""
        try:
            return checked(self.info, self.function(item))
        except Exception as error:  # a user's function may raise anything, and its neighbours keep their scores
            return Failure(ErrorCode.INTERNAL, f"{self.info.name} raised {type(error).__name__}: {error}")


@overload
def reward(function: Function, /) -> Function: ...


@overload
def reward(
    *,
    name: str | None = None,
    range: Range = (None, None),
    revision: str = "1",
    higher_is_better: bool = True,
    image_only: bool = False,
    grouped: bool = False,
) -> Callable[[Function], Function]: ...


def reward(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    range: Range = (None, None),
    revision: str = "1",
    higher_is_better: bool = True,
    image_only: bool = False,
    grouped: bool = False,
) -> Function | Callable[[Function], Function]:
    """Mark a function as a reward; used as `@reward` or `@reward(...)`. The function itself is unchanged.

    `name` defaults to the function's; `range` is (lowest, highest), None where unbounded; `revision` is the author's
    own version, to be raised when scores change for a reason outside the file (the file's hash is added to it).
    `image_only` says that the prompt does not matter, so that clients which send none may be served. `grouped` is for a
    function of `completions` that compares: it is called with the completions of one whole group at a time.
    """

    def mark(marked: Function) -> Function:
        mark = RewardMark(name or marked.__name__, range, revision, higher_is_better, image_only, grouped)
        setattr(marked, _MARK, mark)
        return marked

    return mark if function is None else mark(function)


def load_functions(spec: str, *, field: str = "--functions", conversational: bool = False) -> FunctionsFile:
    """The rewards of `spec`: `FILE.py` (marked functions) or `FILE.py:name1,name2` (exactly these).

    Runs the file. `conversational` is for functions of `completions`: they get lists of messages.
    Raises OwnError when it is missing or does not run, when nothing is marked or a listed name is absent, and when a
    function can be called neither with one item nor with `completions`; `field` is the flag that it came from.
    """
    return functions_of(load(named(spec, field, needs_name=False)), conversational=conversational)


def functions_of(source: Source, *, conversational: bool = False) -> FunctionsFile:
    """The same of a file that has been run."""
    chosen = _listed(source) if source.named.names else _marked(source)
    rewards: list[FunctionReward | BatchReward] = []
    for function in chosen:
        of_batches = takes_completions(function)
        _check_signature(function, source, of_batches)
        mark = getattr(function, _MARK, None) or RewardMark(function.__name__, (None, None), "1", True)
        if mark.grouped and not of_batches:
            raise source.named.error(
                f"{mark.name} is marked grouped, and only a function of `completions` sees a group: write "
                f"def {function.__name__}(completions, **columns)"
            )
        info = ScorerInfo(
            name=mark.name,
            revision=f"{mark.revision}+sha256:{source.sha256}{'+messages' if of_batches and conversational else ''}",
            range=_checked_range(mark, source),
            higher_is_better=mark.higher_is_better,
            grouped=mark.grouped,
        )
        if of_batches:
            rewards.append(BatchReward(info, function, conversational, mark.image_only))
        else:
            rewards.append(FunctionReward(info, function, mark.image_only))
    left = [function.__name__ for function in _possible(source.module) if function not in chosen]
    return FunctionsFile(rewards, left)


def _own(module: ModuleType) -> list[FunctionType]:
    """The functions that the file defines itself."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, FunctionType) and value.__module__ == module.__name__
    ]


def _possible(module: ModuleType) -> list[FunctionType]:
    """The functions of a file that are rewards by their mark or their parameters."""
    return [function for function in _own(module) if hasattr(function, _MARK) or takes_completions(function)]


def _marked(source: Source) -> list[FunctionType]:
    found = [function for function in _own(source.module) if hasattr(function, _MARK)]
    spec = source.named.source
    if not found and (possible := _possible(source.module)):
        listed = ",".join(function.__name__ for function in possible)
        raise source.named.error(
            f"it has {len(possible)} functions of completions, and which of them are rewards is for you to say: "
            f"{spec}:{listed}"
        )
    if not found:
        raise source.named.error(
            "no function is marked as a reward; put @reward above it (from services.own import reward), or list names: "
            f"{spec}:name"
        )
    return found


def _listed(source: Source) -> list[FunctionType]:
    functions = {name: value for name, value in vars(source.module).items() if isinstance(value, FunctionType)}
    absent = [name for name in source.named.names if name not in functions]
    if absent:
        there = [function.__name__ for function in _own(source.module)]
        raise source.named.error(
            f"no function named {', '.join(absent)}; it has {', '.join(there) or 'none'}{did_you_mean(absent[0], there)}"
        )
    return [functions[name] for name in source.named.names]


def _check_signature(function: FunctionType, source: Source, of_batches: bool) -> None:
    shown = f"{function.__name__}{inspect.signature(function)}"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise source.named.error(
            f"{shown} is async or a generator; a reward is a plain function that returns its score"
        )
    if of_batches:
        if problem := what_is_missing(function):
            raise source.named.error(f"{shown} cannot be served: {problem}")
        return
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise source.named.error(
            f"{shown} cannot be called with one item ({error}); write def {function.__name__}(item: Item) -> float, or "
            f"def {function.__name__}(completions, **columns) for the texts of a batch"
        ) from error


def _checked_range(mark: RewardMark, source: Source) -> Range:
    low, high = mark.range
    if (low is not None and math.isnan(low)) or (high is not None and math.isnan(high)):
        raise source.named.error(f"range {mark.range} of {mark.name} has a NaN; use None for unbounded")
    if low is not None and high is not None and low >= high:
        raise source.named.error(f"range {mark.range} of {mark.name} is not (lowest, highest)")
    return low, high
