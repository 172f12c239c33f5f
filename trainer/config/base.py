"""What all sections of the configuration share."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rewards.shipped import shipped

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]  # a word or more, no path
OutputPath = Annotated[str, Field(min_length=1)]  # written: counts from where the command is typed
FilePath = Annotated[OutputPath, AfterValidator(shipped)]  # read: what is not there may be a shipped file
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]  # part of metric and file names


class UserError(Exception):
    """An error that is the user's to fix: a command shows it as a sentence, without a traceback. Errors of other parts of
    the trainer belong to this class, too, so that one is known for what it is before torch is imported."""


class ConfigError(UserError, ValueError):
    """The configuration cannot be used; the message names the field and the remedy."""


class Section(BaseModel):
    """A group of fields: frozen, no unknown keys, no infinity or NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    default_types: ClassVar[Mapping[str, str]] = {}  # of fields that are told apart by `type`, where it is left out

    @classmethod
    def with_types(cls, raw: Any) -> Any:
        """Unchecked fields, with the default `type` of each section that leaves it out."""
        if not isinstance(raw, Mapping):
            return raw
        types = cls.types_beside(raw)
        given = {name: raw[name] for name in types if isinstance(raw.get(name), Mapping)}
        return {**raw, **{name: {"type": types[name], **section} for name, section in given.items()}}

    @classmethod
    def types_beside(cls, raw: Mapping[str, Any]) -> Mapping[str, str]:
        """The default `type` of each field that has one, beside these unchecked fields."""
        return cls.default_types


def by_type(union: Any) -> dict[str, type[Any]]:
    """The sections of a union that is told apart by `type`, by that name."""
    members, _ = get_args(union)
    return {get_args(section.model_fields["type"].annotation)[0]: section for section in get_args(members)}


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that is not known: the nearest known one, else all of them."""
    names = list(known)
    return did_you_mean(name, names).removeprefix("; ") or f"known are: {', '.join(names) or 'none'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that is not known: the nearest known one, or nothing where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def refuse_untranslated(field: str, path: str | None) -> None:
    """Raises ValueError where another trainer's file, which must be translated before the check, has come this far."""
    if path is not None:
        raise ValueError(
            f"{field} = {path} is a file of DeepGen-RL's: read the recipe by trainer.migration.load_recipe"
        )


def say(sentence: str) -> None:
    """Tell the user about a choice that the configuration made, once a run: rank 0 speaks, on stderr."""
    if os.environ.get("RANK", "0") == "0":
        print(f"config: {sentence}", file=sys.stderr)
