"""Connects a run to its reward services, and starts those of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from trainer.config import Config, RewardsConfig
from trainer.processes.distributed import World
from trainer.records.recorder import Recorder
from trainer.rewards import LocalServices, RewardClient, TapeRecorder, resolve_urls
from trainer.rewards.asked import Requests


def connect(
    config: Config, world: World, stack: ExitStack, recorder: Recorder, step: int | None, last_row: int | None
) -> RewardClient:
    """Start the local services and connect every rank, or take the answers from a tape.

    Args:
        step, last_row: of the checkpoint that the run goes on from: its step, and the last step whose row is whole. A tape
            drops what was recorded later. None: the run begins anew.
    """
    if config.rewards.tape.mode == "replay":
        return RewardClient(config.rewards, urls={})
    notify = recorder.note if world.is_main else None  # lines that keep the progress bar whole
    launched = start_services(config.rewards, world, stack, config.run_dir / "logs", notify)
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
    return RewardClient(config.rewards, urls=urls, tape=tape, is_main=world.is_main, requests=Requests.of(config))


def start_services(
    rewards: RewardsConfig, world: World, stack: ExitStack, logs: Path, notify: Callable[[str], None] | None
) -> dict[str, list[str]]:
    """Start the local services (one process per node does) and share their addresses; none where none are to start."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    launched: dict[str, list[str]] = {}
    if rewards.launch == "local" and local_rank == 0:
        services = stack.enter_context(LocalServices(rewards, logs, notify=notify))
        launched = {name: list(urls) for name, urls in services.urls.items()}
    shared: dict[str, list[str]] = world.gather(launched)[world.rank - local_rank]
    return shared
