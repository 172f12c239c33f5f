"""The reward services of a recipe: those with addresses, and those that its run has started on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, Field

from rewards.plane.targets import Plan, SourceError, Target
from trainer.config import URL_VARIABLES, RewardsConfig, ServiceConfig
from trainer.config.base import OutputPath
from trainer.migration import load_recipe

_LISTENING = re.compile(r" listening on (http://\S+)$")


class _Watched(BaseModel):
    """What is read of a recipe. The rest may name models that are not here: nobody trains."""

    run_name: str
    output_dir: OutputPath = "outputs"
    rewards: RewardsConfig = Field(default_factory=RewardsConfig)


def plan_of(path: str | Path, overrides: Sequence[str]) -> Plan:
    """The plan of a recipe. Raises ConfigError as other commands do, and SourceError where it asks no service."""
    config = load_recipe(path, _Watched, overrides)
    if config.rewards.tape.mode == "replay":
        raise SourceError(f"{path} takes its scores from the tape {config.rewards.tape.path}: no service is asked")
    if not config.rewards.services:
        raise SourceError(f"{path} names no reward service (rewards.services)")
    targets: list[Target] = []
    for name, service in config.rewards.services.items():
        columns = {key: each.reward for key, each in config.rewards.columns.items() if each.service == name}
        token, no_token = _token(service)
        ca_file = None if service.ca_file is None else Path(service.ca_file)
        started = config.rewards.launch == "local" and service.module is not None and not service.urls
        logs = Path(config.output_dir) / config.run_name / "logs"
        urls, absent = _started(name, logs) if started else (list(_addresses(name, service)), "")
        targets += [
            Target(name, url, token, no_token, ca_file, service.module if started else None, columns, absent=absent)
            for url in urls or [""]
        ]
    return Plan(str(path), tuple(targets))


def _addresses(name: str, service: ServiceConfig) -> Iterator[str]:
    """The service's own, else those of its variable, as a run resolves them."""
    given = service.urls or os.environ.get(URL_VARIABLES.get(name, ""), "").split(",")
    return (url.strip().rstrip("/") for url in given if url.strip())


def _started(name: str, logs: Path) -> tuple[list[str], str]:
    """Where the newest start of a run's own service listens; else why that is not known."""
    log = logs / f"{name}.log"
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:  # one start after the other
            found = [said[1] for line in lines if (said := _LISTENING.search(line.rstrip()))]
    except OSError:
        return [], f"the run starts it (launch: local), and no run has written {log}"
    if not found:
        return [], f"the run starts it (launch: local), and {log} does not say where it listens"
    return [found[-1]], ""


def _token(service: ServiceConfig) -> tuple[str | None, str]:
    """The token as the trainer would send it, or why there is none."""
    if service.token_file is None:
        return None, "it wants a token, and the recipe names none (token_file)"
    path = Path(service.token_file)
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        return None, f"it wants a token, and token_file = {path} cannot be read: {error}"
    if len(token.split()) != 1 or not token.isascii():
        return None, f"it wants a token, and token_file = {path} must hold one ASCII token, nothing else"
    return token, ""
