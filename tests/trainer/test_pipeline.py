"""`pipeline: one_step_off`: what is sampled when, that nothing is lost or trained twice, and that it resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import reward_servers
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.trainer_runs import ROOT, read_metrics, saved_weights
from trainer import loop
from trainer.checkpoint import list_checkpoints
from trainer.config import Config
from trainer.config.file import load_config
from trainer.programs.early import EarlyUpdate
from trainer.programs.rl import RlProgram
from trainer.programs.rollout import Drawn

scripted = reward_servers.scripted  # the fixture
SMALL = {"prompts_per_step": 2, "group_size": 4, "micro_batch_size": 4, "num_inference_steps": 3}
OFF = {**SMALL, "pipeline": "one_step_off"}


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    yield


@pytest.fixture
def make(recipe: Callable[..., Path], scripted: Callable[..., ScriptedServer]) -> Callable[..., Config]:
    def by_id(request: dict[str, Any]) -> Reply:
        return good(request, lambda item: (sum(item["id"].encode()) % 17) / 17)

    server = scripted(by_id)

    def config(name: str, **changes: Any) -> Config:
        rewards = {
            "services": {"svc": {"urls": [server.url], "timeout_s": 20.0}},
            "columns": {"r": {"service": "svc", "canary": "none"}},
        }
        data = {"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"r": 1.0}}]}
        logging = {"report_every": 1000, "report_to": [], "progress": False}
        return load_config(recipe(name, rewards=rewards, data=data, logging=logging, **changes), Config)

    return config


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, list[str]]]:
    """Which step is sampled after how many finished ones, and with which prompts."""
    seen: list[tuple[int, int, list[str]]] = []

    roll_out = RlProgram.roll_out

    def watched(program: RlProgram, step: int) -> list[Drawn]:
        (drawn,) = roll_out(program, step)
        seen.append((step, program.session.step, [sample.prompt.id for sample in drawn.samples]))
        return [drawn]

    monkeypatch.setattr(RlProgram, "roll_out", watched)
    return seen


def test_each_step_is_sampled_once_one_update_ahead_with_the_same_prompts(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    assert loop.train(make("on", max_steps=4, sampling=SMALL)) == 0
    on_policy = list(seen)
    seen.clear()
    off = make("off", max_steps=4, sampling=OFF)
    assert loop.train(off) == 0
    assert [(step, finished) for step, finished, _ in on_policy] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert [(step, finished) for step, finished, _ in seen] == [(0, 0), (1, 0), (2, 1), (3, 2)]
    assert [ids for _, _, ids in seen] == [ids for _, _, ids in on_policy]
    assert [row["step"] for row in read_metrics(off.run_dir)] == [0, 1, 2, 3, 4]


def test_its_first_step_is_on_policy_and_later_ones_are_marked(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    stale: list[list[bool]] = []

    def finish(self: Any, scores: Any, fed: Any, after: Any) -> dict[str, float]:
        stale.append([rollout.behind > 0 for rollout in fed.rollouts])
        return original(self, scores, fed, after)

    original = EarlyUpdate.finish
    monkeypatch.setattr(EarlyUpdate, "finish", finish)
    assert loop.train(make("off", max_steps=3, sampling=OFF)) == 0
    assert [any(s) for s in stale] == [all(s) for s in stale] == [False, True, True]


def test_a_resumed_run_draws_the_same_prompts(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch)
    assert loop.train(make("whole", max_steps=4, sampling=OFF)) == 0
    whole = {step: ids for step, _, ids in seen}
    assert loop.train(make("parts", max_steps=2, sampling=OFF)) == 0
    seen.clear()
    parts = make("parts", max_steps=4, sampling=OFF)
    assert loop.train(parts) == 0
    assert [(step, finished) for step, finished, _ in seen] == [(2, 2), (3, 2)]
    assert all(whole[step] == ids for step, _, ids in seen)
    weights = saved_weights(list_checkpoints(parts.run_dir / "checkpoints")[-1])
    assert all(bool(torch.isfinite(w).all()) for w in weights.values())
