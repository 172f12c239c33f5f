"""Signals that end a run, in this process: an evaluation is left at once, what was made is saved, nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
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
from trainer.config.rewards import TapeConfig
from trainer.loop import train
from trainer.policies.flow.policy import FlowPolicy
from trainer.processes.stopping import STOP_SIGNALS, StartStoppedError, StopSignals

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


def test_a_step_that_waits_for_its_rewards_is_left_and_made_again(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer], whole: Config
) -> None:
    """A judge may take as long as its deadline, which whoever ends the process does not wait for."""
    released, seen = threading.Event(), [0]

    def hold(request: Request) -> Reply:
        if not is_heldout(request):
            seen[0] += 1
            if seen[0] == 6:  # of the third step, whose samples are sent in two requests
                os.kill(os.getpid(), signal.SIGTERM)
                released.wait(BOUND_S)
        return by_words(request)

    config = small(scripted(hold))
    assert train(config) == 0
    released.set()
    assert read_metrics(config.run_dir)[-1]["step"] == 2 and state(config, 2)["step"] == 2
    assert not (config.run_dir / "flight").exists()
    assert train(config) == 0
    assert_same_run(config, whole)


def test_a_step_is_saved_before_it_is_evaluated(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer], whole: Config
) -> None:
    """The service answers the evaluation of a step once its checkpoint is there; `best` is right as soon as it is known."""
    seen = 0
    folder: list[Path] = []

    def after_the_save(request: Request) -> Reply:
        nonlocal seen
        if is_heldout(request):
            seen += 1
            step = 2 * ((seen - 1) // 2)
            deadline = time.monotonic() + BOUND_S / 3
            while step and not (folder[0] / f"step_{step:06d}").is_dir():
                if time.monotonic() > deadline:
                    return Reply({"error": {"code": "internal", "message": "not saved"}}, status=500)
                time.sleep(0.01)
        return by_words(request)

    best = {"metric": "eval/r", "mode": "max", "count": 1}
    config = small(scripted(after_the_save), checkpoint={"save_every": 2, "keep_best": best})
    folder.append(config.run_dir / "checkpoints")
    assert train(config) == 0
    assert_same_run(config, whole)
    pointer = (config.run_dir / "checkpoints" / "best").read_text()
    assert '"step_000002"' in pointer and '"step_000004"' in pointer


def test_the_tape_of_an_evaluation_that_was_left_replays(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer], whole: Config
) -> None:
    """What was recorded of it before the end is recorded anew, and not twice."""
    holds = Holds(held=3, number=signal.SIGTERM)  # the second of two requests: the first may be on the tape already
    config = small(scripted(holds), evaluation__batch_size=4)
    recording = config.model_copy(
        update={"rewards": config.rewards.model_copy(update={"tape": TapeConfig(mode="record")})}
    )
    assert train(recording) == 0
    holds.released.set()
    assert train(recording) == 0
    assert_same_run(recording, whole)
    tape = TapeConfig(mode="replay", path=str(config.run_dir / "tape"))
    again = small(scripted(by_words), "again")
    replayed = again.model_copy(update={"rewards": again.rewards.model_copy(update={"tape": tape})})
    assert train(replayed) == 0
    assert_same_run(replayed, whole)


@pytest.mark.parametrize("wait", [True, False])
def test_a_signal_while_pictures_are_drawn(
    small: Callable[..., Config],
    scripted: Callable[..., ScriptedServer],
    monkeypatch: pytest.MonkeyPatch,
    wait: bool,
) -> None:
    """Between two micro-batches, also where scoring is left to the background: the second is not drawn."""
    changes = {"evaluation__wait": wait, "max_steps": 5, "evaluation__every": 3, "checkpoint": {"save_every": 3}}
    whole = small(scripted(by_words), "undisturbed", **changes)
    assert train(whole) == 0
    config, drawn, real = small(scripted(by_words), **changes), [0], FlowPolicy.sample

    def counted(self: Any, prompts: Any, group_size: int, seeds: Any, plan: Any) -> Iterator[Any]:
        for rollout in real(self, prompts, group_size, seeds, plan):
            if group_size == 1:  # an evaluation
                drawn[0] += 1
                if drawn[0] == 3:  # the first picture of the second evaluation
                    os.kill(os.getpid(), signal.SIGTERM)
            yield rollout

    with monkeypatch.context() as patch:
        patch.setattr(FlowPolicy, "sample", counted)
        assert train(config) == 0
    assert drawn[0] == 3
    assert state(config, 3)["row"]["step"] == 3 and read_metrics(config.run_dir)[-1]["step"] == 3
    assert train(config) == 0
    rows, expected = read_metrics(config.run_dir), read_metrics(whole.run_dir)
    if not wait:  # in which row the results come depends on the clock
        rows, expected = rows[-1:], expected[-1:]
    assert rows == expected


def test_the_other_signals_are_heard_and_a_second_one_changes_nothing() -> None:
    acted: list[int] = []
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    for number in STOP_SIGNALS:
        with StopSignals() as signals:
            signals.training(lambda number=number: acted.append(number), says=False)  # type: ignore[misc]
            assert not signals.asked
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.asked
    assert acted == [number for number in STOP_SIGNALS for _ in range(2)]
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_ctrl_c_twice_interrupts_at_once() -> None:
    with StopSignals() as signals:
        signals.training(lambda: None, says=False)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [n for n in STOP_SIGNALS if n != signal.SIGINT])
def test_before_training_begins_there_is_nothing_to_save(number: int) -> None:
    with pytest.raises(StartStoppedError, match="stopped before training began; the same command"), StopSignals():
        os.kill(os.getpid(), number)


def test_what_a_handler_of_errors_kept_back_is_said_before_training() -> None:
    with StopSignals() as signals:
        with contextlib.suppress(StartStoppedError):
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)  # on its way out: not raised again
        with pytest.raises(StartStoppedError):
            signals.training(lambda: None, says=False)


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signals.training(lambda: None, says=False)
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.asked
    finally:
        signal.signal(signal.SIGHUP, before)
