"""A reward from a plain function, and those of a user's own Python file.

    from PIL import ImageStat
    from services.kit.scorer import Item
    from services.rules import reward

    @reward(range=(0, 1))
    def brightness(item: Item) -> float:
        return ImageStat.Stat(item.images[0].convert("L")).mean[0] / 255

A reward function takes one `Item` (prompt, decoded images, completion, targets, metadata) and returns

- a finite number (True and False count as 1 and 0), or a `Score` to add components and details;
- a `Failure` with the reason why this item has no score; or
- None when the reward does not apply to this item.

An exception, NaN, or a number outside the stated range fails that item alone. Functions are called one at a time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import math
import numbers
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TypeVar, overload

from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode, ScorerInfo

Outcome = float | Score | Failure | None
RewardFunction = Callable[[Item], Outcome]
Function = TypeVar("Function", bound=Callable[..., object])
Range = tuple[float | None, float | None]

_MARK = "__reward_mark__"
# Sums of floating-point numbers may miss a bound by rounding; that is not a bug in the reward.
_RANGE_TOLERANCE = 1e-6


class FunctionsError(ValueError):
    """A functions file cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class RewardMark:
    """What `@reward` says about a function."""

    name: str
    range: Range
    revision: str
    higher_is_better: bool
    image_only: bool = False


@dataclass(frozen=True)
class FunctionReward:
    """A named reward and the function behind it. `image_only`: it does not look at the prompt."""

    info: ScorerInfo
    function: RewardFunction
    image_only: bool = False

    def __call__(self, item: Item) -> Result:
        """Score one item. Never raises: whatever the function does becomes a `Score` or a `Failure`."""
        try:
            return _checked(self.info, self.function(item))
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
) -> Function | Callable[[Function], Function]:
    """Mark a function as a reward; used as `@reward` or `@reward(...)`. The function itself is unchanged.

    `name` defaults to the function's; `range` is (lowest, highest), None where unbounded; `revision` is the author's
    own version, to be raised when scores change for a reason outside the file (the file's hash is added to it).
    `image_only` says that the prompt does not matter, so that clients which send none may be served.
    """

    def mark(marked: Function) -> Function:
        setattr(marked, _MARK, RewardMark(name or marked.__name__, range, revision, higher_is_better, image_only))
        return marked

    return mark if function is None else mark(function)


def load_functions(spec: str) -> list[FunctionReward]:
    """The rewards of one `--functions` value: `FILE.py` (marked functions) or `FILE.py:name1,name2` (exactly these).

    Runs the file. Raises FunctionsError when it is missing or does not run, when nothing is marked or a listed name is
    absent, and when a function cannot be called with one item.
    """
    path, names = _split(spec)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise FunctionsError(
            f"--functions {path}: cannot be read ({error.strerror}); give the path of a .py file"
        ) from error
    digest = hashlib.sha256(source).hexdigest()
    module = _run(path, digest)
    chosen = _listed(module, path, names) if names else _marked(module, path)
    rewards = []
    for function in chosen:
        _check_signature(function, path)
        mark = getattr(function, _MARK, None) or RewardMark(function.__name__, (None, None), "1", True)
        info = ScorerInfo(
            name=mark.name,
            revision=f"{mark.revision}+sha256:{digest}",
            range=_checked_range(mark, path),
            higher_is_better=mark.higher_is_better,
        )
        rewards.append(FunctionReward(info, function, mark.image_only))
    return rewards


def _split(spec: str) -> tuple[Path, list[str]]:
    file, colon, listed = spec.rpartition(".py:")
    if not colon:
        return Path(spec), []
    names = [name.strip() for name in listed.split(",")]
    if not all(name.isidentifier() for name in names):
        raise FunctionsError(f"--functions {spec}: after the colon come function names, as in FILE.py:name1,name2")
    return Path(file + ".py"), names


def _run(path: Path, digest: str) -> ModuleType:
    # The path is in the name too: two equal files at two places are two modules.
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    module_spec = importlib.util.spec_from_file_location(f"reward_functions_{place}_{digest[:8]}", path)
    if path.suffix != ".py" or module_spec is None or module_spec.loader is None:
        raise FunctionsError(f"--functions {path}: not a .py file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses and pickling look a class's module up there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # the file is a program; whatever it raises at import is the user's to read
        del sys.modules[module_spec.name]
        raise FunctionsError(f"--functions {path}: does not run, {type(error).__name__}: {error}") from error
    return module


def _marked(module: ModuleType, path: Path) -> list[FunctionType]:
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    found = [value for value in own if isinstance(value, FunctionType) and hasattr(value, _MARK)]
    if not found:
        raise FunctionsError(
            f"--functions {path}: no function is marked as a reward; put @reward above it "
            f"(from services.rules import reward), or list names: --functions {path}:name"
        )
    return found


def _listed(module: ModuleType, path: Path, names: list[str]) -> list[FunctionType]:
    functions = {name: value for name, value in vars(module).items() if isinstance(value, FunctionType)}
    absent = [name for name in names if name not in functions]
    if absent:
        own = [name for name, value in functions.items() if value.__module__ == module.__name__]
        raise FunctionsError(
            f"--functions {path}: no function named {', '.join(absent)}; it has {', '.join(own) or 'none'}"
        )
    return [functions[name] for name in names]


def _check_signature(function: FunctionType, path: Path) -> None:
    where = f"--functions {path}: {function.__name__}{inspect.signature(function)}"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise FunctionsError(f"{where} is async or a generator; a reward is a plain function that returns its score")
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise FunctionsError(
            f"{where} cannot be called with one item ({error}); write def {function.__name__}(item: Item) -> float"
        ) from error


def _checked_range(mark: RewardMark, path: Path) -> Range:
    low, high = mark.range
    if (low is not None and math.isnan(low)) or (high is not None and math.isnan(high)):
        raise FunctionsError(f"--functions {path}: range {mark.range} of {mark.name} has a NaN; use None for unbounded")
    if low is not None and high is not None and low >= high:
        raise FunctionsError(f"--functions {path}: range {mark.range} of {mark.name} is not (lowest, highest)")
    return low, high


def _checked(info: ScorerInfo, outcome: object) -> Result:
    """The outcome of a call as a result; raises TypeError when a Score holds something that is not a number."""
    if outcome is None:
        return Failure(ErrorCode.NOT_APPLICABLE, f"{info.name} does not apply to this item")
    if isinstance(outcome, Failure):
        return outcome
    if isinstance(outcome, Score):
        return _flaw(info, outcome) or outcome
    if isinstance(outcome, numbers.Real):
        score = Score(float(outcome))
        return _flaw(info, score) or score
    kind = type(outcome).__name__
    return Failure(ErrorCode.INTERNAL, f"{info.name} returned a {kind}; a float, Score, Failure or None is needed")


def _flaw(info: ScorerInfo, score: Score) -> Failure | None:
    for name, value in (("score", score.value), *score.components.items()):
        if not math.isfinite(value):
            return Failure(ErrorCode.NON_FINITE, f"{info.name}: {name} is {value}")
    try:
        json.dumps(dict(score.details), allow_nan=False)
    except (TypeError, ValueError) as error:
        return Failure(ErrorCode.INTERNAL, f"{info.name}: details are not JSON ({error})")
    low, high = info.range
    below = low is not None and score.value < low - _RANGE_TOLERANCE
    if below or (high is not None and score.value > high + _RANGE_TOLERANCE):
        return Failure(ErrorCode.INTERNAL, f"{info.name} returned {score.value}, outside its range {low} to {high}")
    return None
