"""Which checkpoints stay: the newest, the best, never none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checkpoints import write_checkpoint
from trainer.checkpoint import Retention, list_checkpoints, set_aside_after
from trainer.config import CheckpointConfig, Config, ConfigError
from trainer.config.file import load_config
from trainer.config.records import KeepBestConfig


def run(folder: Path, values: dict[int, float | None], **best: object) -> Retention:
    """Save steps 1, 2, ... with `keep: 1`, each evaluated before it is saved."""
    config = CheckpointConfig(keep=1, keep_best=KeepBestConfig(metric="eval/ocr", **best))
    retention = Retention(folder, config)
    for step, value in values.items():
        write_checkpoint(folder, step, keep=100)
        retention.observe({"step": step, "eval/ocr": value})
        retention.apply()
    return retention


def steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(folder)]


def best(folder: Path) -> object:
    return json.loads((folder / "best").read_text())


def test_the_best_outlives_newer_ones(tmp_path: Path) -> None:
    run(tmp_path, {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6})
    assert steps(tmp_path) == [2, 4]
    values = {"step_000001": 0.5, "step_000002": 0.9, "step_000003": 0.7, "step_000004": 0.6}
    expected = {"metric": "eval/ocr", "mode": "max", "checkpoint": "step_000002", "value": 0.9, "values": values}
    assert best(tmp_path) == expected


def test_less_may_be_better_and_several_may_stay(tmp_path: Path) -> None:
    run(tmp_path, {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.8}, mode="min", count=2)
    assert steps(tmp_path) == [1, 3, 4]


def test_of_equal_ones_the_newer_is_best(tmp_path: Path) -> None:
    run(tmp_path, {1: 0.5, 2: 0.5, 3: 0.1})
    assert steps(tmp_path) == [2, 3]


def test_steps_without_a_value_are_never_best(tmp_path: Path) -> None:
    run(tmp_path, {1: 0.2, 2: None, 3: float("nan"), 4: None})
    assert steps(tmp_path) == [1, 4]


def test_a_late_evaluation_counts_for_the_step_it_is_of(tmp_path: Path) -> None:
    retention = run(tmp_path, {1: 0.2, 2: None})
    assert steps(tmp_path) == [1, 2]
    retention.observe({"step": 3, "eval/ocr": 0.6, "eval/step": 2})
    write_checkpoint(tmp_path, 3, keep=100)
    retention.apply()
    assert steps(tmp_path) == [2, 3]


def test_values_survive_a_restart_and_a_step_back(tmp_path: Path) -> None:
    run(tmp_path, {1: 0.5, 2: 0.9, 3: 0.7})
    again = Retention(tmp_path, CheckpointConfig(keep=1, keep_best=KeepBestConfig(metric="eval/ocr")))
    write_checkpoint(tmp_path, 4, keep=100)
    again.apply()
    assert steps(tmp_path) == [2, 4]
    again.forget_after(1)  # the run went back to step 1: what is saved as step 2 from now on is not the 0.9
    write_checkpoint(tmp_path, 5, keep=100)
    again.apply()
    assert steps(tmp_path) == [5]


def test_values_of_another_metric_count_for_nothing(tmp_path: Path) -> None:
    run(tmp_path, {1: 0.5, 2: 0.1})
    other = Retention(tmp_path, CheckpointConfig(keep=1, keep_best=KeepBestConfig(metric="eval/color")))
    other.apply()
    assert steps(tmp_path) == [2]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"metric": "eval/ocr"}', '{"metric": "eval/ocr", "mode": "max", "values": 3}']
)
def test_a_torn_pointer_counts_for_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "best").write_text(text)
    run(tmp_path, {1: 0.5, 2: 0.1})
    assert steps(tmp_path) == [1, 2]
    assert isinstance(best(tmp_path), dict)


def test_what_was_set_aside_stays_until_there_is_a_newer_one(tmp_path: Path) -> None:
    """A start that goes back to step 1 and is stopped before its first step saves step 1 again."""
    retention = Retention(tmp_path, CheckpointConfig(keep=1))
    for step in (1, 2):
        write_checkpoint(tmp_path, step, keep=100)
    set_aside_after(tmp_path, 1)
    retention.began_at = 1
    retention.apply()
    assert steps(tmp_path) == [1] and (tmp_path / ".aside_step_000002").is_dir()
    write_checkpoint(tmp_path, 2, keep=100)
    retention.apply()
    assert steps(tmp_path) == [2] and not (tmp_path / ".aside_step_000002").exists()


def test_a_step_whose_evaluation_is_on_its_way_stays(tmp_path: Path) -> None:
    config = CheckpointConfig(keep=1, keep_best=KeepBestConfig(metric="eval/ocr"))
    retention = Retention(tmp_path, config)
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, keep=100)
    retention.apply(pending=2)
    assert steps(tmp_path) == [2, 3]


@pytest.mark.parametrize(
    ("metric", "row", "there"),
    [
        ("eval/orc", {"step": 0, "eval/ocr": 0.1}, "there are eval/ocr$"),
        ("reward/orc/mean", {"step": 1, "reward/ocr/mean": 0.1}, "there are reward/ocr/mean, step$"),
    ],
)
def test_a_metric_that_is_not_measured_is_told_at_the_first_row_that_could_have_it(
    tmp_path: Path, metric: str, row: dict[str, float | None], there: str
) -> None:
    retention = Retention(tmp_path, CheckpointConfig(keep_best=KeepBestConfig(metric=metric)))
    retention.observe({"step": 0})
    retention.observe({"step": 1, "eval/step": 0} if metric.startswith("eval") else {"step": 0, "eval/ocr": 0.3})
    with pytest.raises(ConfigError, match=rf"keep_best\.metric = {metric} is not measured by this run; {there}"):
        retention.observe(row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": {"save_every": 3}}, "evaluation.every = 2 and checkpoint.save_every = 3; make one a multiple"),
        ({"evaluation": {}}, "metric = eval/color, but evaluation names no prompts"),
        (
            {"data": {"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"small": 1.0}}]}},
            "metric = eval/color, but neither training nor evaluation asks for the reward color",
        ),
        ({"checkpoint": {"save_every": 4}}, None),
        ({"checkpoint": {"save_every": 1}}, None),
        ({"checkpoint": {"save_every": 3, "keep_best": {"metric": "reward/color/mean"}}}, None),
    ],
)
def test_the_best_is_told_by_what_is_measured_at_saved_steps(
    recipe: Callable[..., Path], changes: dict[str, dict[str, object]], message: str | None
) -> None:
    checkpoint = {"keep_best": {"metric": "eval/color"}} | changes.get("checkpoint", {})
    path = recipe(**changes | {"checkpoint": checkpoint})
    if message is None:
        assert load_config(path, Config).checkpoint.keep_best is not None
    else:
        with pytest.raises(ConfigError, match=re.escape(message)):
            load_config(path, Config)
