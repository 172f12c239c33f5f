"""Which weights drew a step's answers is known, shown, and checked before they are trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from tests.support.bigram import Bigram
from trainer.config import Task
from trainer.config.advantage import GdpoConfig
from trainer.config.vllm import VllmConfig
from trainer.policies.base import SamplingPlan
from trainer.programs.rollout import Drawn
from trainer.programs.rollout_servers import RolloutServers
from trainer.types import Prompt, StopTrainingError

TASK = Task("", 2, 2, GdpoConfig())


def drawn(*versions: int | None) -> Drawn:
    plan = SamplingPlan(num_inference_steps=3, micro_batch_size=2)
    [rollout] = Bigram().sample([Prompt("a", "a")], 2, [1, 2], plan)
    rollouts = [replace(rollout, version=version) for version in versions]
    return Drawn(TASK, rollouts, cast(Any, None), {}, [1, 2], plan, 0.0, 0.0)


def test_the_lag_is_what_the_pipeline_says() -> None:
    assert drawn(None, None).version_lag(5) == {}
    assert drawn(5, 5).version_lag(5) == {"rollout/weight_version_lag": 0.0}
    assert drawn(5).stale().version_lag(6) == {"rollout/weight_version_lag": 1.0}


@pytest.mark.parametrize(("versions", "old"), [((4,), 1), ((5, 4), 1), ((7,), -2)])
def test_samples_of_other_weights_are_not_trained_on(versions: tuple[int, ...], old: int) -> None:
    with pytest.raises(
        StopTrainingError, match=f"step 6 would train on samples of weights that are {old} updates old, and 0"
    ):
        drawn(*versions).version_lag(5)


def test_samples_that_were_drawn_again_in_a_pipeline_are_younger() -> None:
    """One step off, the groups that taught nothing are drawn again with the weights of now."""
    again = replace(drawn(5).stale(), rollouts=[*drawn(5).stale().rollouts, *drawn(6).rollouts])
    assert again.version_lag(6) == {"rollout/weight_version_lag": 1.0}


class KeepsVersions:
    """Stands for the drawer: it only notes what it is told."""

    def __init__(self) -> None:
        self.updates, self.told, self.metrics = 0, list[int](), {"rollout/servers": 1.0}

    def weights_changed(self, updates: int) -> None:
        self.updates = updates
        self.told.append(updates)


def test_drift_beyond_its_limit_is_said_once_and_can_stop_the_run() -> None:
    said: list[str] = []
    drawer, config = KeepsVersions(), VllmConfig(urls=("http://127.0.0.1:1",), drift_alarm=0.1, drift_action="stop")
    servers = RolloutServers(cast(Any, drawer), config, said.append)
    assert servers.after_update(1, {"drift/mean": 0.05}) == {"rollout/servers": 1.0, "alarm/drift": 0.0}
    assert servers.stop_reason is None
    rows = [
        servers.after_update(step, {"drift/mean": drift}) for step, drift in ((2, 0.2), (3, float("nan")), (4, 0.0))
    ]
    assert [row["alarm/drift"] for row in rows] == [1.0, 1.0, 0.0] and len(said) == 1
    assert "step 2: rollout servers and trainer disagree by 0.2 a token" in said[0] and "drift_alarm = 0.1" in said[0]
    assert servers.stop_reason is not None and drawer.told == [1, 2, 3, 4]


def test_an_average_that_is_evaluated_is_pushed_and_taken_back() -> None:
    from contextlib import nullcontext

    drawer = KeepsVersions()
    servers = RolloutServers(cast(Any, drawer), VllmConfig(urls=("http://127.0.0.1:1",)), print)
    servers.after_update(3, {})
    with servers.averaged(nullcontext)():
        assert drawer.told == [3, 3]
    assert drawer.told == [3, 3, 3], "the weights themselves again"
