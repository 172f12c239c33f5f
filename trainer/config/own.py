"""Code of the user's own that a recipe names (`machine.own`): the fields, and how their code is loaded and its options checked."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from machine.own import Own, OwnError, find, function, named, subclass
from trainer.config.base import ConfigError


def _has_syntax(text: str) -> str:
    return named(text, "code").text


Code = Annotated[str, Field(min_length=1), AfterValidator(_has_syntax)]  # FILE.py:NAME, or module:NAME
Option = bool | int | float | str
Options = dict[str, Option]


def own_function(
    text: str, field: str, offered: Sequence[str], returns: str, options: Options | None = None
) -> Callable[..., Any]:
    """`machine.own.function` of a recipe's field, its options checked by the annotations. Raises ConfigError."""
    own = found(text, field)
    try:
        _check_options(own, options or {})
        return function(own, offered, returns, options)
    except OwnError as error:
        raise ConfigError(str(error)) from error


def own_class(text: str, field: str, base: type, example: str) -> type[Any]:
    """`machine.own.subclass` of a recipe's field. Raises ConfigError."""
    try:
        return subclass(found(text, field), base, example)
    except OwnError as error:
        raise ConfigError(str(error)) from error


def found(text: str, field: str) -> Own:
    """`machine.own.find`. Raises ConfigError."""
    try:
        return find(text, field)
    except OwnError as error:
        raise ConfigError(str(error)) from error


def _check_options(own: Own, options: Mapping[str, Option]) -> None:
    """Raises OwnError where an option is not of the type that its parameter is annotated with."""
    if not options or not callable(own.value):
        return
    try:
        hints = typing.get_type_hints(own.value)
    except (NameError, TypeError):  # names that are there for a type checker alone say nothing here
        return
    for name, value in options.items():
        if name in hints:
            try:
                TypeAdapter(hints[name]).validate_python(value, strict=True)
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]["msg"]
                raise own.error(
                    f"options.{name} = {value!r}: {problem}; {own.name} says {name}: {hints[name]!r}"
                ) from error
