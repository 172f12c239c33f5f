"""Code of the user's own that a recipe names (`machine.own`): the fields, and how their code is loaded and its options checked."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from machine.own import Named, Own, OwnError, find, function, is_code, named, read, subclass
from trainer.config.base import ConfigError

if TYPE_CHECKING:
    from trainer.config import Config


def _has_syntax(text: str) -> str:
    return named(text, "code").text


Code = Annotated[str, Field(min_length=1), AfterValidator(_has_syntax)]  # FILE.py:NAME, or module:NAME
Option = bool | int | float | str
Options = dict[str, Option]


def code_of(config: Config) -> Iterator[Named]:
    """Everything of the user's own that the recipe names. Nothing is opened."""
    policy, objective = (getattr(section, "code", None) for section in (config.policy, config.objective))
    fields = {"policy.code": policy, "objective.code": objective}
    fields |= {f"evaluation.alarms.own.{i}": code for i, code in enumerate(config.evaluation.alarms.own)}
    paths = [(f"data.train.{i}.path", each.path) for i, each in enumerate(config.data.train)]
    fields |= {field: path for field, path in [*paths, *config.evaluation.prompt_files()] if is_code(path)}
    for field, text in fields.items():
        if text is not None:
            yield named(text, field)
    if config.rewards.launch == "local":
        for name, service in config.rewards.services.items():
            if service.module is not None and is_code(service.module) and not service.urls:
                yield named(service.module, f"rewards.services.{name}.module", needs_name=False)


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


def content(wanted: Named) -> tuple[str, bytes]:
    """The path and the bytes of a named file, without running it. Raises ConfigError."""
    try:
        path, read_bytes = read(wanted)
    except OwnError as error:
        raise ConfigError(str(error)) from error
    return str(path), read_bytes


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
