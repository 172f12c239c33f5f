"""A DeepGen-RL user's files and environment, unchanged, in a real run: data-set YAML, evaluation YAML, OUTPUT_DIR."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.trainer_runs import read_metrics, run_trainer
from trainer.config import Config
from trainer.migration import load_recipe

TRAIN = """
sampling_mode: sample_proportional
datasets:
  - name: text
    path: text.txt
    sample_weight: 3.0
    rewards:
      - color: 0.3
      - clip_sim: 0.1
      - small: 0.6
  - name: rows
    path: rows.jsonl
    rewards:
      - small: 1.0
"""
EVAL = "datasets: [{name: held, path: held.csv, duplicates: 2, num_inference_steps: 3}]"


@pytest.mark.slow
def test_their_files_and_environment_train(
    tmp_path: Path, recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.yaml").write_text(TRAIN)
    (tmp_path / "eval.yaml").write_text(EVAL)
    (tmp_path / "text.txt").write_text("".join(f'the word "W{i}" in red\n' for i in "ACDEFGHJKL"))
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"caption": f'the word "R{i}" in blue'}) + "\n" for i in "ACDEFGHJKL")
    )
    (tmp_path / "held.csv").write_text('index,prompt\n5,"the word ""HELD"" in green"\n6,"the word ""EAR"" in red"\n')
    config = recipe(max_steps=2, environment="deepgen_rl", data={"ignore_rewards": ["clip_sim"]})
    raw = yaml.safe_load(config.read_text())
    raw["evaluation"] = {"every": 2, "num_inference_steps": 3, "batch_size": 4}
    config.write_text(yaml.safe_dump(raw))
    monkeypatch.setenv("DATASET_CONFIG", str(tmp_path / "train.yaml"))
    monkeypatch.setenv("EVAL_DATASET_CONFIG", str(tmp_path / "eval.yaml"))
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "outputs/first"))

    done = run_trainer(config)

    assert "config: DATASET_CONFIG sets data.dataset_config" in done.stderr
    assert "config: data.train.0 (text) does without clip_sim, as data.ignore_rewards says" in done.stderr
    rows = read_metrics(tmp_path / "outputs/first")
    assert [row["step"] for row in rows if row["step"]] == [1, 2]
    assert all(row["reward/small/mean"] < 0 for row in rows if row["step"])
    assert any(key.startswith("eval/held/") for row in rows for key in row)
    resolved = load_recipe(tmp_path / "outputs/first/config.yaml", Config)
    assert [(d.name, d.weight, d.rewards) for d in resolved.data.train] == [
        ("text", 3.0, {"color": 0.3, "small": 0.6}),
        ("rows", 1.0, {"small": 1.0}),
    ]
