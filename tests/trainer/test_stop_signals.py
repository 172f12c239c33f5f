"""Signals that end a run, in this process: an evaluation is left at once, what was made is saved, nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import reward_servers
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.trainer_runs import ROOT, read_metrics, saved_weights
from trainer.checkpoint import Checkpoint, list_checkpoints
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train

Request = dict[str, Any]
scripted = reward_servers.scripted  # the fixture
BOUND_S = 60.0  # against a hang; nothing is timed


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def by_words(request: Request) -> Reply:
    return good(request, lambda item: (sum(item["id"].encode()) % 17) / 17)


@pytest.fixture
def small(recipe: Callable[..., Path]) -> Callable[..., Config]:
    """The config of a run of four steps, evaluated and saved every second one, against one scripted server."""

    def make(server: ScriptedServer, name: str = "run", **changes: Any) -> Config:
        service = {"urls": [server.url], "max_attempts": 1, "timeout_s": BOUND_S}
        rewards = {
            "services": {"svc": service},
            "columns": {"r": {"service": "svc", "canary": "none", "max_failure_rate": 1.0}},
        }
        data = {"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"r": 1.0}}]}
        logging = {"report_every": 1000, "report_to": [], "progress": False}
        changes = {"checkpoint": {"save_every": 2}} | changes
        return load_config(recipe(name, rewards=rewards, data=data, logging=logging, **changes), Config)

    return make


def is_heldout(request: Request) -> bool:
    """The recipe's evaluation sends four prompts at a time, training eight."""
    return len(request["items"]) == 4


def state(config: Config, step: int) -> dict[str, Any]:
    return Checkpoint.open(config.run_dir / "checkpoints" / f"step_{step:06d}").state


def assert_same_run(config: Config, whole: Config) -> None:
    assert read_metrics(config.run_dir) == read_metrics(whole.run_dir)
    ends = [list_checkpoints(each.run_dir / "checkpoints")[-1] for each in (config, whole)]
    one, other = saved_weights(ends[0]), saved_weights(ends[1])
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    for each in (config, whole):
        assert state(each, 4)["row"] is None, "nothing is owed at the end"


class Holds:
    """Answers as `by_words`, but at the evaluation after step `held`, when `signal_` is sent, not before `released`."""

    def __init__(self, held: int, number: int) -> None:
        self.held, self.number, self.released = held, number, threading.Event()
        self.evaluations, self.lock = 0, threading.Lock()

    def __call__(self, request: Request) -> Reply:
        if is_heldout(request):
            with self.lock:
                self.evaluations += 1
                step = self.evaluations - 1
            if step == self.held:  # two requests of four prompts each an evaluation
                os.kill(os.getpid(), self.number)
            if step >= self.held:
                self.released.wait(BOUND_S)
        return by_words(request)


@pytest.fixture
def whole(small: Callable[..., Config], scripted: Callable[..., ScriptedServer]) -> Config:
    config = small(scripted(by_words), "whole")
    assert train(config) == 0
    return config


@pytest.mark.parametrize(
    ("step", "number"), [(0, signal.SIGHUP), (2, signal.SIGTERM), (4, signal.SIGUSR1)], ids=["first", "between", "last"]
)
def test_an_evaluation_is_left_at_once_and_made_at_the_next_start(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer], whole: Config, step: int, number: int
) -> None:
    """The service that scores the evaluation answers nothing until the run has ended: who waited for it would wait for its
    deadline, and record an evaluation without scores."""
    holds = Holds(
        held=step, number=number
    )  # of step 0 requests 0 and 1, of step 2 requests 2 and 3, of step 4 from 4 on
    config = small(scripted(holds))
    assert train(config) == 0
    holds.released.set()
    rows = read_metrics(config.run_dir)
    assert [row["step"] for row in rows] == list(range(step + 1))
    assert not any(key.startswith("eval/") for key in rows[-1])
    assert list_checkpoints(config.run_dir / "checkpoints")[-1].name == f"step_{step:06d}"
    assert state(config, step)["row"]["step"] == step, "owed"
    assert train(config) == 0
    assert_same_run(config, whole)
