"""What was named on the command line, as one plan of whom to ask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rewards.plane.targets import Plan, SourceError, Target
from rewards.shipped import recipe, shipped
from wire.client.command import read_token
from wire.client.transport import checked_url

_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_GROUP = re.compile(r"(?P<name>[\w-]+)=(?P<urls>https?://.*)", re.IGNORECASE)
_OVERRIDE = re.compile(r"[\w.-]+=.*", re.DOTALL)


def read_plan(
    words: Sequence[str],
    *,
    only: Sequence[str] = (),
    profiles: Sequence[str] = (),
    env_file: Path | None = None,
    token_file: Path | None = None,
    ca_file: Path | None = None,
) -> Plan:
    """The plan of addresses, `name=ADDRESS,ADDRESS`, recipes with overrides, and compose files.

    Args:
        only: names of services to ask; all others are left out. With it a service of any profile has to run.
        token_file, ca_file: for all that is asked, in place of what a recipe or a compose file names.

    Raises:
        SourceError, and ConfigError of a recipe: something that is named cannot be asked.
    """
    overrides = [word for word in words if _OVERRIDE.fullmatch(word) and not _GROUP.fullmatch(word)]
    plans = [_plan(word, overrides, profiles, env_file) for word in words if word not in overrides]
    if not plans:
        raise SourceError("nothing is named to be asked: give addresses, a recipe, or a compose file")
    targets = [target for plan in plans for target in plan.targets]
    if only:
        known = {target.group for target in targets}
        if unknown := sorted(set(only) - known):
            raise SourceError(
                f"--only {', '.join(unknown)}: no such service there; there are: {', '.join(sorted(known))}"
            )
        targets = [replace(target, optional=False) for target in targets if target.group in only]
    if token_file is not None:
        token = _read(token_file)
        targets = [replace(target, token=token) for target in targets]
    if ca_file is not None:
        targets = [replace(target, ca_file=ca_file) for target in targets]
    notes = tuple(note for plan in plans for note in plan.notes)
    return Plan(", ".join(plan.title for plan in plans), tuple(targets), notes)


def _plan(word: str, overrides: Sequence[str], profiles: Sequence[str], env_file: Path | None) -> Plan:
    if _ADDRESS.match(word):
        return Plan(word, (_target("", word),))
    if (group := _GROUP.fullmatch(word)) is not None:
        urls = [url for url in group["urls"].split(",") if url.strip()]
        return Plan(word, tuple(_target(group["name"], url) for url in urls))
    from rewards.plane import recipe as recipes  # the trainer's fields: not needed to ask an address
    from trainer.config.file import read_yaml

    path = recipe(word)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        raw = read_yaml(path)
        if isinstance(raw.get("services"), dict) and "rewards" not in raw:
            from rewards.plane import compose

            return compose.plan_of(path, raw, profiles=profiles, env_file=env_file)
    return recipes.plan_of(Path(shipped(str(path))), overrides)


def _target(group: str, word: str) -> Target:
    try:
        url = checked_url(word.strip())
    except ValueError as error:
        raise SourceError(str(error)) from error
    return Target(group, url)


def _read(path: Path) -> str:
    try:
        return read_token(path)
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"--token-file: {path} cannot be read: {error}") from error
    except ValueError as error:
        raise SourceError(f"--token-file: {error}") from error
