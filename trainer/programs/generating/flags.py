"""The flags of `python -m trainer generate`: the fields of GenerationConfig, under their names with dashes."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from trainer.config.base import ConfigError
from trainer.config.generation import GenerationConfig


def add_generation_flags(parser: argparse.ArgumentParser) -> None:
    """The prompts, the folder, and a flag a field; `settings_of` reads them."""
    parser.add_argument(
        "--prompts", type=Path, required=True, help="A file or a folder of prompts, of any known format."
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="A folder; what is there from a start that was stopped is kept."
    )
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="A checkpoint's or a run's folder, checkpoints/best, or `base`; default: the newest of the recipe's run.",
    )
    parser.add_argument(
        "--weights", choices=("average", "trained"), default="average", help="Averaged (default) or last weights."
    )
    parser.add_argument("--score", action="store_true", help="Have all that is made scored by the recipe's rewards.")
    for name, field in GenerationConfig.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **_words(field))


def settings_of(args: argparse.Namespace) -> GenerationConfig:
    """The checked settings of a command line. Raises ConfigError naming the flag, what was given and what it must be."""
    given = {name: value for name in GenerationConfig.model_fields if (value := getattr(args, name)) is not None}
    try:
        return GenerationConfig(**given)
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(each) for each in error.errors(include_url=False))) from error


def _words(field: FieldInfo) -> dict[str, Any]:
    """What argparse is told of a field. What is not given is None, and texts become numbers in the section."""
    help_text = f"{field.description}".replace("%", "%%")
    if field.annotation is bool:
        return {"action": "store_true", "default": None, "help": help_text}
    default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    words: dict[str, Any] = {"help": help_text if default is None else f"{help_text} (default: {default})"}
    origin = get_origin(field.annotation)
    if origin is Literal:
        return {**words, "choices": get_args(field.annotation)}
    if origin is tuple:
        return {**words, "nargs": len(get_args(field.annotation)), "metavar": "N"}
    assert origin in (None, UnionType) and NoneType in (*get_args(field.annotation), NoneType)
    return {**words, "metavar": "N"}


def _sentence(problem: Any) -> str:
    text = problem["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if not problem["loc"]:
        return str(text)
    name, *_ = problem["loc"]
    description = GenerationConfig.model_fields[name].description
    return f"--{name.replace('_', '-')}: {text} (given: {problem['input']}). It is: {description}"
