"""Reward functions as trainers of texts write them: one call for all completions of a batch, one number for each.

    def accuracy_reward(prompts, completions, completion_ids, answer, **columns): ...
    def format_reward(completions, **kwargs): ...

A function with a parameter `completions` is one. It is called with keyword arguments, each a list with one entry for each
completion: `prompts`, `completions`, `completion_ids` (of `metadata.completion_ids`), `images` (the lists of the prompts'
images, as PIL) and `image` (the first of each), `answer` (the target, or the list of several), and every other column of the
metadata. Without `**columns` it gets those that it names. It returns one number or None, which means not applicable, for each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.kit.functions.outcomes import checked
from services.kit.scorer import Failure, Item, Result
from wire.schema import ErrorCode, ScorerInfo

BatchFunction = Callable[..., object]

_MARK: Final = "completions"
# Columns that are made of the item itself; metadata of these names would hide it.
_OWN: Final = ("prompts", "completions", "completion_ids", "prompt", "completion")
# Names under which data sets keep what is right; the loader of the data moves them into the targets.
_TARGETS: Final = ("answer", "solution", "ground_truth", "target", "expected_answer", "original_answer")
# What a trainer gives that calls the function in its own process.
_OF_A_TRAINER: Final = ("trainer_state", "log_extra", "log_metric")


def takes_completions(function: Callable[..., object]) -> bool:
    """Whether a function judges all completions of a batch in one call."""
    parameter = inspect.signature(function).parameters.get(_MARK)
    return parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def what_is_missing(function: Callable[..., object]) -> str | None:
    """Why no service could call the function, if so."""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            return f"its parameter {parameter.name} takes no name, and all are given by name: take the / out"
        if parameter.name in _OF_A_TRAINER and parameter.default is parameter.empty:
            return f"it needs {parameter.name}, which only a trainer in the same process has: give it a default"
    return None


@dataclass(frozen=True)
class BatchReward:
    """A named reward and the function that judges whole batches.

    `conversational`: prompts and completions are lists of messages ({"role", "content"}), not texts.
    """

    info: ScorerInfo
    function: BatchFunction
    conversational: bool = False
    image_only: bool = False

    def score(self, items: Sequence[Item]) -> list[Result]:
        """One result for each item, whatever the function does.

        One that raises is called again for each item alone, so that only the guilty ones fail; a group stays whole.
        """
        results: dict[int, Result] = {
            place: Failure(ErrorCode.BAD_INPUT, f"{self.info.name} judges completions, and the item has none")
            for place, item in enumerate(items)
            if item.completion is None
        }
        asked = [place for place in range(len(items)) if place not in results]
        if asked:
            results |= zip(asked, self._scored([items[place] for place in asked]), strict=True)
        return [results[place] for place in range(len(items))]

    def _scored(self, items: Sequence[Item]) -> list[Result]:
        parameters = inspect.signature(self.function).parameters.values()
        given = self._arguments(items)
        needed = [each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
        absent = [name for name in needed if name not in given]
        if absent:
            columns = ", ".join(name for name in given if name not in _OWN) or "none"
            reason = (
                f"{self.info.name} takes the column {absent[0]!r}, and `metadata` has no such; its columns: {columns}"
            )
            return [Failure(ErrorCode.BAD_INPUT, reason)] * len(items)
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            named = {each.name for each in parameters}
            given = {name: column for name, column in given.items() if name in named}
        try:
            outcomes = _listed(self.function(**given))
        except Exception as error:  # a user's function may raise anything, and its neighbours keep their scores
            if len(items) > 1 and not self.info.grouped:
                return [result for item in items for result in self._scored([item])]
            name = str(error.args[0]) if isinstance(error, KeyError) and error.args else None
            if name is not None and name not in given:  # columns["level"], most likely
                return [self._without(name, given)] * len(items)
            reason = f"{self.info.name} raised {type(error).__name__}: {error}{self._shape(error)}"
            return [Failure(ErrorCode.INTERNAL, reason)] * len(items)
        if isinstance(outcomes, str) or len(outcomes) != len(items):
            got = outcomes if isinstance(outcomes, str) else f"{len(outcomes)} rewards"
            reason = f"{self.info.name} returned {got} for {len(items)} completions; a list with a number or None for each is needed"
            return [Failure(ErrorCode.INTERNAL, reason)] * len(items)
        return [self._checked(outcome) for outcome in outcomes]

    def _shape(self, error: Exception) -> str:
        """What to try where a function seems to have got texts for messages, or messages for texts."""
        words = str(error)
        if not isinstance(error, TypeError | AttributeError):
            return ""
        if not self.conversational and "string indices must be integers" in words:
            return (
                "; completions are texts here: where the function takes lists of messages (completion[0]['content']), serve it with "
                "--conversational, in a recipe args: {conversational: true}"
            )
        if self.conversational and ("got 'list'" in words or "'list' object has no attribute" in words):
            return "; completions are lists of messages here: where the function takes texts, serve it without --conversational"
        return ""

    def _without(self, column: str, given: Mapping[str, object]) -> Failure:
        columns = ", ".join(name for name in given if name not in _OWN) or "none"
        return Failure(
            ErrorCode.BAD_INPUT,
            f"{self.info.name} takes the column {column!r}, and `metadata` has no such; its columns: {columns}",
        )

    def _checked(self, outcome: object) -> Result:
        try:
            return checked(self.info, outcome)
        except Exception as error:  # of a value that is no number, and yet calls itself one
            return Failure(
                ErrorCode.INTERNAL, f"{self.info.name} returned what is no number: {type(error).__name__}: {error}"
            )

    def _arguments(self, items: Sequence[Item]) -> dict[str, list[Any]]:
        names = dict.fromkeys(name for item in items for name in item.metadata if name not in _OWN)
        columns: dict[str, list[Any]] = {name: [item.metadata.get(name) for item in items] for name in names}
        if any(item.source_images for item in items):
            columns["images"] = [list(item.source_images) for item in items]
            columns["image"] = [next(iter(item.source_images), None) for item in items]
        if any(item.targets for item in items):
            parameters = inspect.signature(self.function).parameters
            for name in ("answer", *(other for other in _TARGETS if other in parameters)):
                columns.setdefault(name, [_target(item) for item in items])
        return columns | {
            "prompts": [self._said("user", item.prompt) for item in items],
            "completions": [self._said("assistant", item.completion or "") for item in items],
            "completion_ids": [item.metadata.get("completion_ids") for item in items],
        }

    def _said(self, role: str, text: str) -> str | list[dict[str, str]]:
        return [{"role": role, "content": text}] if self.conversational else text


def _target(item: Item) -> str | list[str] | None:
    targets = list(item.targets or ())
    return targets[0] if len(targets) == 1 else targets or None


def _listed(outcome: object) -> list[object] | str:
    """What a function returned as a list; or, as words, what it is if it is none. Arrays and tensors are lists, too."""
    plain = outcome.tolist() if hasattr(outcome, "tolist") else outcome
    if isinstance(plain, str | bytes | Mapping) or not isinstance(plain, Iterable):
        return f"a {type(outcome).__name__}"
    return [value.item() if hasattr(value, "item") else value for value in plain]
