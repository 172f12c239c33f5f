"""Whole runs whose checkpoints were damaged between two starts, and runs that keep the best."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.trainer_runs import ROOT, read_metrics, saved_weights
from trainer.checkpoint import Checkpoint, CheckpointError, Retention, list_checkpoints
from trainer.checkpoint.manifest import FileRecord, Manifest
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small(recipe: Callable[..., Path]) -> Callable[..., Config]:
    def make(name: str = "run", **changes: Any) -> Config:
        settings = {"evaluation": {}, "checkpoint": {"save_every": 1, "keep": 5}, **changes}
        return load_config(recipe(name, **settings), Config)

    return make


def damage(checkpoint: Path) -> None:
    """Flip a bit in the middle of the tensors: every file still opens."""
    (shard,) = checkpoint.glob("shard_*")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def test_a_damaged_checkpoint_is_passed_over_and_the_run_is_the_same(
    small: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(small("whole", max_steps=3)) == 0
    assert train(small(max_steps=2)) == 0
    config = small(max_steps=3)
    damage(config.run_dir / "checkpoints" / "step_000002")
    capsys.readouterr()
    assert train(config) == 0
    said = "".join(capsys.readouterr())
    assert "passed over: " in said and "step_000002 is not a usable checkpoint (shard_00_of_01.safetensors" in said
    assert "step_000001 (step 1 of 3)" in said
    whole = config.run_dir.parent / "whole"
    assert read_metrics(config.run_dir) == read_metrics(whole)
    last = "checkpoints/step_000003"
    for kind in ("weight", "average", "exp_avg", "exp_avg_sq", "step"):
        expected = saved_weights(whole / last, kind)
        found = saved_weights(config.run_dir / last, kind)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), kind
    for path in list_checkpoints(config.run_dir / "checkpoints"):
        Checkpoint.open(path).verify()


def test_a_damaged_checkpoint_that_was_asked_for_or_is_the_last_one_stops_the_start(
    small: Callable[..., Config],
) -> None:
    config = small(max_steps=2)
    assert train(config) == 0
    newest = config.run_dir / "checkpoints" / "step_000002"
    damage(newest)
    with pytest.raises(CheckpointError, match=r"step_000002 is not a usable checkpoint \(shard_00_of_01"):
        train(small(max_steps=3, resume=str(newest)))
    (config.run_dir / "checkpoints" / "step_000001" / "manifest.json").unlink()
    before = (config.run_dir / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .* is usable; .*delete them to start anew"):
        train(small(max_steps=3))
    assert (config.run_dir / "metrics.jsonl").read_bytes() == before  # nothing was cut or begun anew


@pytest.mark.parametrize(("failures", "told"), [(2, None), (100, r"Stale file handle\); nothing was deleted")])
def test_a_file_system_that_does_not_give_a_checkpoint_costs_none(
    small: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, failures: int, told: str | None
) -> None:
    """It may be back in a moment; until then the newest checkpoint is neither passed over nor removed."""
    assert train(small(max_steps=2)) == 0
    config = small(max_steps=3)
    real, left = FileRecord.of, failures

    def stale(path: Path) -> FileRecord:
        nonlocal left
        if path.parent.name == "step_000002" and path.name.startswith("shard_") and left:
            left -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path)

    monkeypatch.setattr(FileRecord, "of", stale)
    monkeypatch.setattr("trainer.checkpoint.starting._READ_PAUSE_S", 0.0)
    if told is None:
        assert train(config) == 0
        assert [row["step"] for row in read_metrics(config.run_dir)] == [0, 1, 2, 3]
        assert len(list_checkpoints(config.run_dir / "checkpoints")) == 3
        return
    with pytest.raises(CheckpointError, match=told):
        train(config)
    assert [path.name for path in list_checkpoints(config.run_dir / "checkpoints")] == ["step_000001", "step_000002"]


def test_a_checkpoint_of_another_version_is_not_passed_over(small: Callable[..., Config]) -> None:
    assert train(small(max_steps=2)) == 0
    config = small(max_steps=3)
    newest = config.run_dir / "checkpoints" / "step_000002"
    manifest = Manifest.read(newest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.checkpoint.manifest.FORMAT", 2)
        patch.setattr("trainer.checkpoint.manifest._plain", lambda files: {"of another shape": list(files)})
        manifest.write(newest)
    with pytest.raises(CheckpointError, match="step_000002 has format 2, this program reads format 1: go on with"):
        train(config)
    assert newest.is_dir()


def test_what_is_passed_over_goes_only_when_a_new_one_is_whole(
    small: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(small(max_steps=2)) == 0
    config = small(max_steps=3)
    folder = config.run_dir / "checkpoints"
    damage(folder / "step_000002")
    real, seen = Retention.apply, []

    def apply(self: Retention, pending: int | None = None) -> None:
        seen.append({path.name for path in folder.iterdir() if "step_" in path.name})
        real(self, pending)

    monkeypatch.setattr(Retention, "apply", apply)
    assert train(config) == 0
    assert seen[0] == {"step_000001", ".aside_step_000002", "step_000002"}, "the new second step beside the damaged one"
    assert not list(folder.glob(".*"))


def test_the_best_by_an_evaluation_stays_and_is_pointed_at(recipe: Callable[..., Path]) -> None:
    best = {"metric": "eval/small", "mode": "min"}
    checkpoint = {"save_every": 1, "keep": 1, "keep_best": best}
    config = load_config(recipe("best", checkpoint=checkpoint, evaluation__every=1), Config)
    assert train(config) == 0
    values = {row["step"]: row["eval/small"] for row in read_metrics(config.run_dir)}
    step = min(range(1, config.max_steps + 1), key=lambda at: (values[at], -at))
    pointer = json.loads((config.run_dir / "checkpoints" / "best").read_text())
    assert (pointer["checkpoint"], pointer["value"]) == (f"step_{step:06d}", values[step])
    kept = {path.name for path in list_checkpoints(config.run_dir / "checkpoints")}
    assert kept == {f"step_{step:06d}", f"step_{config.max_steps:06d}"}


def test_rows_say_how_long_saving_held_training_up(small: Callable[..., Config]) -> None:
    config = small(max_steps=3, checkpoint={"save_every": 2})
    assert train(config) == 0
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "time/checkpoint" in row] == [3]  # of what was saved after step 2
    assert rows[-1]["time/checkpoint"] > 0
