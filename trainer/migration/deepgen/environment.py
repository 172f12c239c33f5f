"""DeepGen-RL's environment as overrides of a recipe that says `environment: deepgen_rl`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from trainer.config.base import ConfigError, say
from trainer.migration.deepgen.variables import VARIABLES, Variable


def environment_overrides(environment: Mapping[str, str], raw: Mapping[str, Any]) -> list[str]:
    """Overrides `key.sub=value` of the variables that are set, in the order of the table; a line is said of each.

    Args:
        environment: as os.environ.
        raw: the recipe, of which some variables need a section to act on. Empty variables count as not set.

    Raises:
        ConfigError: a value that cannot be used; the message names the variable.
    """
    overrides = []
    for name, variable in VARIABLES.items():
        text = environment.get(name, "")
        if not text.strip() or variable.quiet:
            continue
        missing = _missing(variable, raw)
        if missing is not None:
            say(f"{name}={_shown(name, text)} is not used: {missing}")
            continue
        for field, value in _values(name, text, variable).items():
            if variable.in_sections and _at(raw, _section(field)) is None:
                continue
            say(f"{name} sets {field} = {_shown(name, str(value))}")
            overrides.append(f"{field}={json.dumps(value)}")
    return overrides


def _values(name: str, text: str, variable: Variable) -> Mapping[str, Any]:
    if variable.convert is None:
        say(f"{name}={_shown(name, text)} is not used: {variable.remark}")
        return {}
    try:
        return variable.convert(text)
    except ValueError as error:
        raise ConfigError(f"the environment has {name}={_shown(name, text)!r}: {error}") from error


def _shown(name: str, text: str) -> str:
    """`text` without the user names and passwords in addresses; those of a variable for them may lack their http://.

    A password may hold blanks, quotes, commas and @: all up to the last @ of an address goes. A comma ends an address only
    where the next one begins with its scheme, so several without one are shown from the last @ on.
    """
    if not (name.endswith(("_URL", "_ADDR")) or "://" in text):
        return text
    return "".join(map(_without_user, re.split(r"(?<=[,\s])(?=[\w+.-]+://)", text)))


def _without_user(address: str) -> str:
    scheme = re.match(r"[\w+.-]+://", address)
    _, found, host = address.rpartition("@")
    return (scheme.group() if scheme else "") + host if found else address


def _missing(variable: Variable, raw: Mapping[str, Any]) -> str | None:
    """Why the variable has nothing to act on in this recipe."""
    if variable.in_sections:
        sections = [_section(field) for field in (variable.field or "").split(", ")]
        there = any(_at(raw, section) is not None for section in sections)
        return None if there else f"the recipe has no {' and no '.join(sections)}"
    if variable.only_if is None:
        return None
    field, wanted = variable.only_if
    return f"it acts with {field} = {wanted} only" if _at(raw, field) != wanted else None


def _section(field: str) -> str:
    return field.rpartition(".")[0]


def _at(raw: Mapping[str, Any], field: str) -> Any:
    """What the recipe has at the dotted `field`; None where it has nothing."""
    node: Any = raw
    for part in field.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
