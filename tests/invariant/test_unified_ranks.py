"""A run of a policy that reads and draws takes the same steps on one rank, on two, under ZeRO, and in smaller micro-batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import reward_servers
from tests.support.compare_runs import assert_same_run
from tests.support.reward_servers import ScriptedServer
from tests.support.trainer_runs import read_metrics, run_trainer
from tests.support.unified_runs import SIMILARITIES, unified_changes, with_task

scripted = reward_servers.scripted  # the fixture


@pytest.fixture
def changes(scripted: Callable[..., ScriptedServer], rules_url: str, tmp_path: Path) -> dict[str, Any]:
    return unified_changes(tmp_path / "given", scripted, rules_url)


@pytest.mark.slow
def test_two_ranks_and_smaller_micro_batches_take_the_steps_of_one(
    recipe: Callable[..., Path], changes: dict[str, Any], tmp_path: Path
) -> None:
    run_trainer(recipe("one", max_steps=2, **changes))
    smaller = with_task(changes, "understand", micro_batch_size=2)
    smaller = with_task(smaller, "generate", micro_batch_size=2)
    smaller["optim"] = changes["optim"] | {"micro_batch_size": 1}
    run_trainer(recipe("two", max_steps=2, **smaller), ranks=2)
    one, two = tmp_path / "outputs" / "one", tmp_path / "outputs" / "two"
    assert_same_run(one, two, step=2)
    last = read_metrics(one)[-1]
    assert last["understand/adv/abs_mean"] > 0 < last["generate/adv/abs_mean"], "both tasks have something to learn"
    assert last["generate/ratio/max"] > 1 and last["generate/clip_share"] > 0, (
        "the second update on the same samples has moved"
    )


@pytest.mark.slow
def test_thinking_takes_the_same_steps_on_two_ranks(
    recipe: Callable[..., Path], changes: dict[str, Any], tmp_path: Path
) -> None:
    think = {"max_new_tokens": 5, "plan_weight": 0.5}
    thinking = with_task(changes, "generate", think=think)
    run_trainer(recipe("one", **thinking))
    smaller = with_task(thinking, "generate", micro_batch_size=2)
    smaller["optim"] = changes["optim"] | {"micro_batch_size": 3}
    run_trainer(recipe("two", **smaller), ranks=2)
    assert_same_run(tmp_path / "outputs" / "one", tmp_path / "outputs" / "two")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("think", [None, {"max_new_tokens": 5}], ids=["at_once", "thinking"])
def test_zero_takes_the_steps_of_none(
    recipe: Callable[..., Path],
    scripted: Callable[..., ScriptedServer],
    rules_url: str,
    tmp_path: Path,
    stage: int,
    think: dict[str, Any] | None,
) -> None:
    # A code that only images of a pair of similarity 0 have gets its gradient from the KL alone, which is all rounding at first, and
    # AdamW makes a whole step of it. Plans move the images, and then there is one.
    similarities = [max(each, 0.1) for each in SIMILARITIES] if think else SIMILARITIES
    changes = unified_changes(tmp_path / "given", scripted, rules_url, similarities)
    changes = with_task(changes, "generate", think=think)
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": zero, "train_batch_size": "auto"}), encoding="utf-8")
    run_trainer(recipe("one", **changes))
    sharded = changes | {"distributed": {"num_threads": 1, "deepspeed": str(path)}}
    run_trainer(recipe("other", **sharded), ranks=2)
    assert_same_run(tmp_path / "outputs" / "one", tmp_path / "outputs" / "other")
