"""Whole runs with a Mixture-of-Transformers: rewards move it, and its checkpoint writes and draws."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.small_mot import SIZES, picture
from tests.support.trainer_runs import ROOT, read_metrics, saved_weights
from trainer.__main__ import main
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train

TRAINED = ["draw red disc left", "make left blue", "draw green ring right", "make right red"]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def mot_recipe(tmp_path: Path, rules_url: str) -> Callable[..., Path]:
    """A run on texts and edits, whose reward is how small an image is as a file."""
    source = picture(tmp_path, "source")
    # An id of its own: that of an edit would be of the path, and with it all that is drawn.
    rows: list[dict[str, Any]] = [{"id": text.replace(" ", "-"), "prompt": text} for text in TRAINED]
    rows = [row | ({"source_images": [source]} if "make" in row["prompt"] else {}) for row in rows]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "heldout.txt").write_text("draw blue disc left\ndraw red ring left\n")

    def write(name: str, objective: str, steps: int, **sampling: Any) -> Path:
        config = {
            "run_name": name,
            "output_dir": str(tmp_path / "outputs"),
            "max_steps": steps,
            "policy": {
                "type": "mot",
                "initialize": {**SIZES, "words": list(SIZES["words"])},
                "dtype": "float32",
                "max_latent_size": 8,
            },
            "objective": {"type": objective, "kl_beta": 0.01},
            "sampling": {
                "prompts_per_step": 2,
                "group_size": 8,
                "micro_batch_size": 16,
                "num_inference_steps": 3,
                **sampling,
            },
            "rewards": {
                "services": {"rules": {"urls": [rules_url]}},
                "columns": {"small": {"service": "rules", "reward": "jpeg_compressibility"}},
            },
            "data": {"train": [{"path": str(tmp_path / "train.jsonl"), "rewards": {"small": 1.0}}]},
            "optim": {"lr": 5e-3},
            "distributed": {"num_threads": 1, "device": "cpu"},
            "evaluation": {"path": str(tmp_path / "heldout.txt"), "every": 100, "num_inference_steps": 3},
            "checkpoint": {"save_every": 5},
            "logging": {"report_every": 1000, "report_to": [], "progress": False},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    return write


@pytest.mark.parametrize("objective", ["flow_grpo", "diffusion_nft"])
def test_rewards_move_it(mot_recipe: Callable[..., Path], objective: str) -> None:
    config = load_config(mot_recipe(objective, objective, 12), Config)
    assert train(config) == 0
    rows = [row for row in read_metrics(config.run_dir) if "reward/small/mean" in row]
    means = [row["reward/small/mean"] for row in rows]
    assert sum(means[-3:]) / 3 > sum(means[:3]) / 3 + 0.01, means
    if objective == "flow_grpo":
        assert all(row["ratio/min"] == row["ratio/max"] == 1 for row in rows), "one update: every ratio is 1 to the bit"
        assert rows[-1]["loss/kl"] > 0, "the reference stays where it began"
    eval_rows = [row["eval/small"] for row in read_metrics(config.run_dir) if "eval/small" in row]
    assert eval_rows[-1] > eval_rows[0]


def test_a_run_that_stopped_goes_on_bit_for_bit(mot_recipe: Callable[..., Path]) -> None:
    guided = {"guidance_scale": 1.5, "guidance": {"image": 2.0, "interval": [0.4, 1.0], "renorm": "global"}}
    config = load_config(mot_recipe("run", "flow_grpo", 10, **guided), Config)
    assert train(config) == 0
    rows = [row for row in read_metrics(config.run_dir) if "ratio/min" in row]
    assert len(rows) == 10 and all(row["ratio/min"] == row["ratio/max"] == 1 for row in rows), (
        "edits and drawings side by side"
    )
    last = config.run_dir / "checkpoints" / "step_000010"
    weights = saved_weights(last)
    shutil.rmtree(last)
    assert train(config) == 0
    again = saved_weights(last)
    assert weights.keys() == again.keys() and all(torch.equal(weights[each], again[each]) for each in weights)


def test_its_checkpoint_thinks_draws_and_refines(
    mot_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = mot_recipe("run", "flow_grpo", 5)
    assert train(load_config(path, Config)) == 0
    out = tmp_path / "out"
    flags = [
        "--think",
        "--refine",
        "1",
        "--num-inference-steps",
        "3",
        "--max-new-tokens",
        "4",
        "--seed",
        "3",
        "--score",
    ]
    given = ["generate", str(path), "--prompts", str(tmp_path / "train.jsonl"), "--output", str(out), *flags]
    assert main(given) == 0
    made = [json.loads(line) for line in (out / "made.0.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in made] == TRAINED
    assert [next(iter(step)) for step in made[0]["steps"]][:3] == ["thought", "image", "suggestion"]
    assert "source_images" in made[1] and "source_images" not in made[0]
    scored = [json.loads(line) for line in (out / "scores.0.jsonl").read_text().splitlines()]
    assert len(scored) == 4 and all(row["scores"]["small"] is not None for row in scored)
    assert "4 of 4" in capsys.readouterr().out
    assert json.loads((out / "settings.json").read_text())["weights"].endswith("step_000005 (step 5, average)")


def test_a_size_that_it_cannot_draw_is_said(
    mot_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = mot_recipe("run", "flow_grpo", 5)
    given = ["generate", str(path), "--prompts", str(tmp_path / "heldout.txt"), "--output", str(tmp_path / "out")]
    assert main([*given, "--checkpoint", "base", "--height", "20", "--width", "32"]) == 2
    assert "--height, --width: images of 20 x 32 pixels cannot be drawn" in capsys.readouterr().err
    (tmp_path / "heldout.txt").write_text("draw \N{LATIN SMALL LETTER E WITH ACUTE}\n")
    assert main([*given, "--checkpoint", "base"]) == 2
    assert "1 of 1 prompts cannot be read" in capsys.readouterr().err
