"""The reward services: started when they are local, reached, ready, with a canary score, the same as before, fast enough."""

from __future__ import annotations

import asyncio
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config import Config, RewardConfig, RewardsConfig, ServiceConfig
from trainer.doctor.findings import Finding
from trainer.doctor.load import check_load
from trainer.doctor.texts import check_texts
from trainer.rewards import LocalServices, RewardServiceError, resolve_urls
from trainer.rewards.answers import RewardEvent
from trainer.rewards.asked import Requests
from trainer.rewards.identity import Scorers, describe_change
from trainer.rewards.startup import check_service, read_info
from trainer.rewards.tape import TapePlayer
from trainer.rewards.transport import ServiceCaller
from wire.schema import ScorerInfo

_RUNNING_TIMEOUT_S = 10.0  # a service that is said to run answers soon; a local one may take rewards.ready_timeout_s


def check_services(config: Config, scorers: Mapping[str, Any]) -> Iterator[Finding]:
    """Every service of the config; local ones are started for it and stopped again.

    Args:
        scorers: reward to the scorer that a run to be resumed was trained against, as its checkpoint holds it.
    """
    if config.rewards.tape.mode == "replay":
        yield _check_tape(config.rewards)
        return
    tokens = list(_check_tokens(config.rewards.services))
    yield from tokens
    if any(finding.status == "FAIL" for finding in tokens):
        return
    try:
        if config.rewards.launch == "local":
            with (
                tempfile.TemporaryDirectory() as logs,
                LocalServices(config.rewards, Path(logs)) as local,
            ):
                yield from _check_all(config, resolve_urls(config.rewards, local.urls), scorers)
        else:
            yield from _check_all(config, resolve_urls(config.rewards, {}), scorers)
    except RewardServiceError as error:
        yield Finding("services", "FAIL", str(error))


def _check_tape(rewards: RewardsConfig) -> Finding:
    assert rewards.tape.path is not None, "checked by the configuration"
    try:
        TapePlayer(Path(rewards.tape.path), rewards, Scorers(rewards.columns, _ignore), _ignore)
    except RewardServiceError as error:
        return Finding("services", "FAIL", str(error))
    return Finding("services", "OK", f"answers come from the tape at {rewards.tape.path}; no service is asked")


def _ignore(event: RewardEvent) -> None:
    """What a player says while it plays is not asked for here."""


def _check_tokens(services: Mapping[str, ServiceConfig]) -> Iterator[Finding]:
    for name, service in services.items():
        if service.token_file is None:
            continue
        path, field = Path(service.token_file), f"rewards.services.{name}.token_file"
        if not path.is_file():
            remedy = "put the token there, or leave token_file out"
            yield Finding("services", "FAIL", f"{field}: no file at {path.absolute()}", remedy)
        elif path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            yield Finding("services", "WARN", f"{field}: others may read {path}", f"chmod 600 {path}")


def _check_all(config: Config, urls: Mapping[str, Sequence[str]], scorers: Mapping[str, Any]) -> Iterator[Finding]:
    async def run() -> list[Finding]:
        groups = await asyncio.gather(
            *(_collect(config, name, urls[name], scorers) for name in config.rewards.services)
        )
        return [finding for group in groups for finding in group]

    yield from asyncio.run(run())


async def _collect(config: Config, name: str, urls: Sequence[str], scorers: Mapping[str, Any]) -> list[Finding]:
    try:
        return [finding async for finding in _check_one(config, name, urls, scorers)]
    except RewardServiceError as error:
        return [Finding("services", "FAIL", str(error))]


async def _check_one(
    config: Config, name: str, urls: Sequence[str], scorers: Mapping[str, Any]
) -> AsyncIterator[Finding]:
    """Reach, ready, canary, scorer, speed, of all URLs of one service."""
    rewards = config.rewards
    columns = {key: column for key, column in rewards.columns.items() if column.service == name}
    events: list[RewardEvent] = []
    caller = ServiceCaller(name, rewards.services[name], urls, events.append)
    patience_s = rewards.ready_timeout_s
    if rewards.launch != "local" or rewards.services[name].urls:
        patience_s = min(patience_s, _RUNNING_TIMEOUT_S)
    started = time.monotonic()
    try:
        now = await check_service(caller, columns, patience_s, rewards.canary, events.append, Requests.of(config))
        took_s = time.monotonic() - started
        about = (await read_info(caller, urls[0])).about
        load = [finding async for finding in check_load(config, caller, now)]
    finally:
        await caller.aclose()
    for event in events:
        if event.kind == "warning":
            remedy = "see that the reward is the one you mean; `canary: none` on its column silences this"
            yield Finding("services", "WARN", event.message, remedy)
        if event.kind == "hint":
            yield Finding("services", "OK", f"{event.subject}: {event.message}")
    yield Finding("services", "OK", f"{name} at {', '.join(urls)}: ready, checked in {took_s:.1f} s")
    unsure = {event.subject for event in events if event.kind == "warning"}
    for key, column in columns.items():
        scored = key not in unsure if rewards.canary and column.canary != "none" else None
        yield _scorer(key, column, now[key], scorers.get(key), scored=scored)
    for finding in [*check_texts(config, name, columns, about), *load]:
        yield finding


def _scorer(key: str, column: RewardConfig, now: ScorerInfo, before: Any, *, scored: bool | None) -> Finding:
    """Whether a run that goes on would go on with the reward it had; the trainer makes the same comparison."""
    reward = f"reward {key} ({column.reward or 'the default'})"
    change = describe_change(ScorerInfo.model_validate(before), now) if before is not None else ""
    if change:
        text = f"{reward} comes from another scorer than the one the run was trained against ({change})"
        if column.on_change == "accept":
            return Finding("services", "WARN", f"{text}; on_change: accept goes on, and scores cannot be compared", "")
        remedy = f"start the old one again, choose another run_name, or set rewards.columns.{key}.on_change=accept once"
        return Finding("services", "FAIL", f"{text}, so it will not go on", remedy)
    if scored is None:
        return Finding("services", "NOT CHECKED", f"{reward}: revision {now.revision}; no canary was asked for a score")
    canary = "canary scored as it should, " if scored else ""
    return Finding("services", "OK", f"{reward}: {canary}revision {now.revision}")
