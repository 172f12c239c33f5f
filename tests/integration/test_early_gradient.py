"""A whole run whose gradient is added up while scores are awaited is the run that waits."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support.reward_servers import Reply, ScriptedServer, good, scripted
from tests.support.trainer_runs import saved_weights
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train
from trainer.programs.early import EarlyUpdate
from trainer.rewards.client import Batch
from trainer.types import Sample

__all__ = ["scripted"]

CLOCKS = ("time/", "perf/", "memory/", "latency_ms/", "wait/", "reward_wait", "images_per_s")


@pytest.fixture
def run(
    recipe: Callable[..., Path],
    scripted: Callable[..., ScriptedServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Any]:
    """Two steps against a server that takes its time with a step's last micro-batch, the second of two; `stops` are the steps after
    which it is started again, from there on without a late answer."""
    last, numbers, submit = set[str](), count(1), Batch.submit

    def noted(batch: Batch, samples: Sequence[Sample]) -> None:
        if next(numbers) % 2 == 0:
            last.add(samples[0].id)
        submit(batch, samples)

    def behave(request: Mapping[str, Any]) -> Reply:
        reply = good(request)
        if request["items"][0]["id"] in last:
            reply.delay_s = delays[-1]
        return reply

    monkeypatch.setattr(Batch, "submit", noted)

    server, delays = scripted(behave), [1.0]

    def make(name: str, *overrides: str, stops: Sequence[int] = ()) -> Any:
        path = recipe(
            name,
            max_steps=2,
            rewards={
                "services": {"slow": {"urls": [server.url]}},
                "columns": {"number": {"service": "slow", "canary": "none"}},
            },
            data={"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"number": 1.0}}]},
            evaluation={},
            logging={"report_every": 1000, "report_to": [], "progress": False},
        )
        for step in stops:
            assert train(load_config(path, Config, [*overrides, f"max_steps={step}"])) == 0
            delays.append(0.0)
        assert train(load_config(path, Config, list(overrides))) == 0
        folder = tmp_path / "outputs" / name
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines], saved_weights(folder / "checkpoints" / "step_000002")

    return make


def test_the_run_is_the_one_that_waits(run: Callable[..., Any]) -> None:
    """Numbers are equal but for rounding; the seconds of the update that are hidden no longer count as waiting."""
    rows, weights = run("early")
    others, waited = run("waits", "optim.early_gradient=false")
    rows, others = rows[1:], others[1:]  # row 0 is before training
    for row, other in zip(rows, others, strict=True):
        for key, value in other.items():
            if not key.startswith(CLOCKS) and isinstance(value, float):
                assert row[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    for name, value in waited.items():
        assert (weights[name] - value).abs().max() <= 1e-4 * max(float(value.abs().max()), 1e-2), name
    assert [0 < row["time/update_hidden"] <= row["time/update"] for row in rows] == [True, True]
    assert [row["time/update_hidden"] for row in others] == [0, 0]
    for row in rows:
        total = row["time/rollout"] + row["time/reward_wait"] + row["time/update"]
        assert row["time/total"] == pytest.approx(total, rel=1e-6)


@pytest.mark.slow
def test_with_a_kl_that_is_kept_apart_as_well(run: Callable[..., Any]) -> None:
    """Two steps and, with two updates in each, what comes after them; the KL has a gradient from the second update on."""
    with_kl = ("objective.kl_beta=0.5", "optim.lr=0.01", "optim.updates_per_rollout=2")
    rows, weights = run("early", "optim.early_gradient=always", *with_kl)
    others, waited = run("waits", *with_kl)
    for row, other in zip(rows[1:], others[1:], strict=True):
        for key, value in other.items():
            if not key.startswith(CLOCKS) and isinstance(value, float):
                assert row[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    assert others[-1]["kl"] > 0
    for name, value in waited.items():
        assert (weights[name] - value).abs().max() <= 1e-3 * max(float(value.abs().max()), 1e-2), name
    assert [row["time/update_hidden"] > 0 for row in rows[1:]] == [True, True]
    assert [row["time/update_hidden"] for row in others[1:]] == [0, 0]


@pytest.mark.slow
def test_a_run_that_goes_on_where_other_scores_are_late_is_the_same(run: Callable[..., Any]) -> None:
    """Bit for bit, though before the stop each step began early, and after it none need have."""
    apart = ("objective.kl_beta=0.5", "optim.lr=0.01", "optim.schedule=constant", "optim.early_gradient=always")
    _, whole = run("whole", *apart)
    rows, resumed = run("stopped", *apart, stops=[1])
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert whole.keys() == resumed.keys() and all((whole[name] == resumed[name]).all() for name in whole)


def test_work_that_goes_on_after_the_last_score_is_no_waiting_of_less_than_nothing(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = EarlyUpdate.advance

    def long(self: EarlyUpdate) -> bool:
        has_added = advance(self)
        if has_added:
            time.sleep(1.5)  # the server answers after one second
            self.hidden_s += 1.5
        return has_added

    monkeypatch.setattr(EarlyUpdate, "advance", long)
    rows = run("long")[0][1:]
    assert [row["time/update_hidden"] > 1.5 for row in rows] == [True, True]
    assert [0 <= row["reward_wait_share"] < 0.1 for row in rows] == [True, True]
