"""Connects a run to its reward services, and starts those of this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from trainer.config import Config, RewardsConfig
from trainer.processes.distributed import World
from trainer.records.recorder import Recorder, write_atomic
from trainer.rewards import LocalServices, RewardClient, TapeRecorder, resolve_urls
from trainer.rewards.asked import Requests
from trainer.rewards.encodings import Encodings

ENCODINGS = "image_encodings.json"


def begin_services(rewards: RewardsConfig, stack: ExitStack, logs: Path) -> LocalServices | None:
    """Start the local services (one process per node does); they become ready while the policy is built. None where none are to
    start. Raises RewardServiceError: a file of the user's cannot be run."""
    if rewards.launch != "local" or _local_rank():
        return None
    services = LocalServices(rewards, logs)
    services.begin()
    stack.callback(services.stop)
    return services


def connect(
    config: Config,
    world: World,
    services: LocalServices | None,
    recorder: Recorder,
    step: int | None,
    last_row: int | None,
) -> RewardClient:
    """Wait for the local services and connect every rank, or take the answers from a tape.

    Args:
        services: those that `begin_services` started.
        step, last_row: of the checkpoint that the run goes on from: its step, and the last step whose row is whole. A tape
            drops what was recorded later. None: the run begins anew.
    """
    if config.rewards.tape.mode == "replay":
        return RewardClient(config.rewards, urls={})
    notify = recorder.note if world.is_main else None  # lines that keep the progress bar whole
    launched = addresses(services, world, notify)
    tape = None
    if config.rewards.tape.mode == "record":
        tape = TapeRecorder(
            Path(config.rewards.tape.path or config.run_dir / "tape"),
            rank=world.rank,
            world_size=world.size,
            last_train=-1 if step is None else step,
            last_evaluation=-1 if last_row is None else last_row,
        )
    urls = resolve_urls(config.rewards, launched)
    return RewardClient(
        config.rewards,
        urls=urls,
        tape=tape,
        is_main=world.is_main,
        requests=Requests.of(config),
        encodings=_encodings(config.run_dir / ENCODINGS, world, goes_on=step is not None),
    )


def _encodings(path: Path, world: World, *, goes_on: bool) -> Encodings:
    """What a run that goes on has chosen for its services; its first rank keeps what is measured."""

    def keep(chosen: object) -> None:
        write_atomic(path, json.dumps(chosen, indent=1) + "\n")

    kept = json.loads(path.read_text(encoding="utf-8")) if goes_on and path.exists() else {}
    return Encodings(kept, keep if world.is_main else None)


def addresses(
    services: LocalServices | None, world: World, notify: Callable[[str], None] | None
) -> dict[str, list[str]]:
    """Wait for the services of this node, and share their addresses among its ranks; none where none were started."""
    launched: dict[str, list[str]] = {}
    if services is not None:
        services.wait_ready(notify)
        launched = {name: list(urls) for name, urls in services.urls.items()}
    shared: dict[str, list[str]] = world.gather(launched)[world.rank - _local_rank()]
    return shared


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
