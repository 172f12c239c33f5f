"""A recipe that names the stage before it: that one is trained and exported first where it is not there, and left alone where it is."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.trainer_runs import saved_weights
from trainer.__main__ import main
from trainer.quickstart.words import draw_word, render


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two recipes of two steps each: the second starts from what the first exports."""
    monkeypatch.chdir(tmp_path)
    words = [draw_word(random.Random(n), heldout=False) for n in range(4)]
    for n, word in enumerate(words):
        render(word, random.Random(n)).save(tmp_path / f"{n}.png")
    rows = [{"image_path": f"{n}.png", "txt": word.prompt} for n, word in enumerate(words)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    changes: list[dict[str, Any]] = [
        {"checkpoint": {"export": "models/one"}},
        {
            "after": "one.yaml",
            "policy": {
                "type": "tiny",
                "num_layers": 1,
                "num_heads": 2,
                "head_dim": 16,
                "checkpoint": "models/one/model.safetensors",
            },
        },
    ]
    for name, change in zip(("one", "two"), changes, strict=True):
        tree = {
            "run_name": name,
            "program": "supervised",
            "max_steps": 2,
            "policy": {"type": "tiny", "num_layers": 1, "num_heads": 2, "head_dim": 16},
            "sft": {"path": "rows.json", "batch_size": 4},
            "optim": {"ema_decay": 0.0},
            "distributed": {"device": "cpu", "num_threads": 1},
            "logging": {"report_to": [], "progress": False},
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**tree, **change}))
    return [tmp_path / "one.yaml", tmp_path / "two.yaml"]


def test_the_stage_before_is_trained_once_and_started_from(
    stages: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert main(["train", "two.yaml"]) == 0
    assert "two.yaml: models/one is not there, so one.yaml is trained first" in capsys.readouterr().out
    written = load_file("models/one/model.safetensors")
    exported = {name.removeprefix("transformer."): tensor for name, tensor in written.items()}
    trained = saved_weights(tmp_path / "outputs/one/checkpoints/step_000002")
    assert trained and all(torch.equal(exported[name], tensor) for name, tensor in trained.items())
    after = saved_weights(tmp_path / "outputs/two/checkpoints/step_000002")
    moved = max(float((after[name] - exported[name]).abs().max()) for name in after)
    assert 0 < moved < 1e-2, "two steps from there, not from elsewhere"
    made = Path("models/one/model.safetensors").stat().st_mtime_ns
    assert main(["train", "one.yaml"]) == 0
    assert "checkpoint.export = models/one is there; the trained model was not written again" in capsys.readouterr().out
    seen: list[str] = []
    monkeypatch.setattr("trainer.loop.train", lambda config, signals: seen.append(config.run_name) or 0)
    assert main(["train", "two.yaml", "run_name=again"]) == 0
    assert seen == ["again"]
    assert Path("models/one/model.safetensors").stat().st_mtime_ns == made


def changed(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_stage_that_leaves_nothing_is_refused(stages: list[Path], capsys: Any) -> None:
    changed(stages[0], checkpoint={})
    assert main(["train", "two.yaml"]) == 2
    assert "two.yaml: after = one.yaml, but that recipe has no checkpoint.export" in capsys.readouterr().err


@pytest.mark.slow
def test_several_processes_train_a_stage_by_itself(stages: list[Path], monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "two.yaml"]) == 2
    assert "train one.yaml first, with the same command" in capsys.readouterr().err


def test_a_stage_that_stops_stops_those_behind_it(stages: list[Path], monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("trainer.loop.train", lambda config, signals: 1)
    assert main(["train", "two.yaml"]) == 2
    assert "one.yaml, the stage before it, ended with exit code 1; see outputs/one" in capsys.readouterr().err


def test_a_stage_that_a_signal_ended_is_gone_on_with_later(stages: list[Path], monkeypatch: Any) -> None:
    """It ends well and has not made all steps, so nothing is exported and the next stage does not begin."""
    seen: list[str] = []

    def ended(config: Any, signals: Any) -> int:
        seen.append(config.run_name)
        return 0

    monkeypatch.setattr("trainer.loop.train", ended)
    assert main(["train", "two.yaml"]) == 0
    assert seen == ["one"] and not Path("models/one").exists()
