"""Whole runs whose rewards go bad under them, in this process: what is masked, what stops, what is said, what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import reward_servers
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.trainer_runs import ROOT, read_metrics
from trainer.checkpoint import list_checkpoints
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train
from trainer.report import build_report
from trainer.rewards import RewardServiceError

scripted = reward_servers.scripted  # the fixture


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Rewards:
    """Two rewards, `one` and `two`, of one server, scored by the item alone; `scores` and `revisions` may be changed."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.score: Callable[[dict[str, Any]], float] = lambda item: (sum(item["id"].encode()) % 17) / 17
        self.revisions = {"one": "1", "two": "1"}
        server.behave = self.answer
        self.tell()

    def scorer(self, name: str) -> dict[str, Any]:
        return {"name": name, "revision": self.revisions[name], "range": [0.0, 1.0]}

    def tell(self) -> None:
        self.server.info.body |= {"rewards": [self.scorer("one"), self.scorer("two")], "default_reward": "one"}

    def answer(self, request: dict[str, Any]) -> Reply:
        canary = request["items"][0]["id"].startswith("canary")
        reply = good(request, (lambda item: float("right" in item["id"])) if canary else self.score)
        reply.body["scorer"] = self.scorer(request["reward"])
        return reply


@pytest.fixture
def rewards(scripted: Callable[..., ScriptedServer]) -> Rewards:
    return Rewards(scripted())


@pytest.fixture
def small(recipe: Callable[..., Path], rewards: Rewards) -> Callable[..., Config]:
    """The config of a run with the columns a and b, which are the rewards one and two."""

    def make(
        *,
        a: dict[str, Any] | None = None,
        b: dict[str, Any] | None = None,
        tape: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Config:
        usual = {"service": "svc", "max_failure_rate": 1.0}
        columns = {"a": usual | {"reward": "one"} | (a or {}), "b": usual | {"reward": "two"} | (b or {})}
        services = {"svc": {"urls": [rewards.server.url], "max_attempts": 1, "timeout_s": 20.0}}
        data = {"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"a": 1.0, "b": 1.0}}]}
        logging = {"report_every": 1000, "report_to": [], "progress": False}
        tree = {
            "rewards": {"services": services, "columns": columns, "tape": tape or {}},
            "data": data,
            "logging": logging,
        } | changes
        return load_config(recipe("run", evaluation={}, **tree), Config)

    return make


def state(config: Config) -> dict[str, Any]:
    saved: dict[str, Any] = json.loads(
        (list_checkpoints(config.run_dir / "checkpoints")[-1] / "state.json").read_text()
    )
    return saved


def page(config: Config) -> str:
    return build_report(config.run_dir).read_text(encoding="utf-8")


def test_scores_outside_the_range_are_masked_counted_and_shown(small: Callable[..., Config], rewards: Rewards) -> None:
    """Honest for the canary; then 1000 and -50 for a reward that declares [0, 1]."""
    rewards.score = lambda item: 1000.0 if sum(item["id"].encode()) % 2 else -50.0
    config = small(max_steps=2)
    assert train(config) == 0
    rows = read_metrics(config.run_dir)
    assert [row["failed/a/out_of_range"] for row in rows[1:]] == [16.0, 16.0]
    assert all(row["adv/trained_share"] == 0 and row["reward/a/valid_share"] == 0 for row in rows[1:])
    summary = json.loads((config.run_dir / "summary.json").read_text())
    assert summary["failed_by_reward"] == {"a": {"out_of_range": 32}, "b": {"out_of_range": 32}}
    assert "out_of_range" in page(config)


def test_a_scorer_that_changes_stops_the_run_and_is_accepted_once(
    small: Callable[..., Config], rewards: Rewards, capsys: pytest.CaptureFixture[str]
) -> None:
    def after_the_first_step(item: dict[str, Any]) -> float:
        seen.append(item["id"])
        if len(seen) > 2 * 16:
            rewards.revisions["one"] = "2"
        return (sum(item["id"].encode()) % 17) / 17

    seen: list[str] = []
    rewards.score = after_the_first_step
    config = small(max_steps=4)
    assert train(config) == 1
    assert [row["step"] for row in read_metrics(config.run_dir)] == [0, 1]
    stopped = json.loads((config.run_dir / "summary.json").read_text())["stopped"]
    assert "reward a" in stopped and "revision 1, now 2" in stopped and "rewards.columns.a.on_change: accept" in stopped
    assert "revision 1, now 2" in page(config)
    assert state(config)["scorers"]["a"]["revision"] == "1" and state(config)["changes"] == []

    rewards.tell()  # the service was replaced, and says so
    with pytest.raises(
        RewardServiceError, match=r"reward a comes from another scorer than until step 1 \(revision 1, now 2\)"
    ):
        train(config)
    capsys.readouterr()

    accepting = small(max_steps=2, a={"on_change": "accept"}, tape={"mode": "record"})
    assert train(accepting) == 0
    change = {"reward": "a", "step": 2, "before": {"revision": "1"}, "after": {"revision": "2"}}
    assert state(config)["changes"] == [change] and state(config)["scorers"]["a"]["revision"] == "2"
    records = json.loads((config.run_dir / "rewards.json").read_text())
    assert records["changes"] == [change] and records["scorers"]["b"]["revision"] == "1"
    assert (config.run_dir / "tape" / "rank_0.jsonl").read_text().count('"kind": "change"') == 1

    assert train(small(max_steps=3)) == 0, "without the setting: the checkpoint has the new one"
    assert state(config)["changes"] == [change]
    text = page(config)
    assert text.count("Since step 2 the reward a comes from another scorer: revision 1, now 2") == 1
    assert "revision 2" in text.split('id="failures"')[0]


def test_a_service_that_takes_less_than_a_group_is_found_at_the_start(
    small: Callable[..., Config], rewards: Rewards
) -> None:
    """Not at the first step, whose requests would all be refused."""
    told = [scorer | {"grouped": True} for scorer in rewards.server.info.body["rewards"]]
    rewards.server.info.body |= {"rewards": told, "limits": {"max_group_items": 3}}
    with pytest.raises(RewardServiceError) as caught:
        train(small(max_steps=1))
    assert "sampling.group_size is 4, and the service takes at most 3 items of one group" in str(caught.value)
    assert "lower sampling.group_size to 3, or start the service with --max-group-items 4" in str(caught.value)


def test_a_column_that_points_at_another_reward_does_not_go_on(small: Callable[..., Config], rewards: Rewards) -> None:
    assert train(small(max_steps=1)) == 0
    swapped = {"a": {"reward": "two"}, "b": {"reward": "one"}}
    with pytest.raises(RewardServiceError) as caught:
        train(small(max_steps=2, **swapped))
    assert "reward a comes from another scorer than until step 1 (name one, now two)" in str(caught.value)
    assert "reward b comes from another scorer than until step 1 (name two, now one)" in str(caught.value)
    accepted = {name: {**column, "on_change": "accept"} for name, column in swapped.items()}
    config = small(max_steps=2, **accepted)
    assert train(config) == 0
    assert [(change["reward"], change["step"]) for change in state(config)["changes"]] == [("a", 2), ("b", 2)]


def test_a_reward_that_turns_constant_is_said_on_the_console_and_in_the_report(
    small: Callable[..., Config], rewards: Rewards, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards.score = lambda item: 0.5
    config = small(max_steps=3)
    assert train(config) == 0
    told = "very score of the reward a was 0.5 in the 3 steps from 1 to 3"
    error = capsys.readouterr().err
    assert f"warning: e{told}" in error and "warning: the gradient was 0 in the 3 steps from 1 to 3" in error
    text = page(config)
    assert f"E{told}" in text and "The gradient was 0 in the 3 steps" in text


def test_a_run_that_is_well_has_no_warnings(small: Callable[..., Config], capsys: pytest.CaptureFixture[str]) -> None:
    config = small(max_steps=3)
    assert train(config) == 0
    assert "warning" not in capsys.readouterr().err and "Warnings</b>" not in page(config)
