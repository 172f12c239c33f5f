"""Real processes for whole runs: one rules service for all, and a trainer started as a person starts it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

from tests.support.forked import ForkedTrainer
from trainer.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[2]
RUN_TIMEOUT_S = 600  # against a hang; nothing is timed
_STARTS = itertools.count()


def saved_weights(checkpoint: Path, kind: str = "weight") -> dict[str, Tensor]:
    """The trained weights in a checkpoint folder, by name; `average` gives their averages."""
    saved = Checkpoint.open(checkpoint)
    return {name: saved.read(name)[kind] for name in saved.names}


@pytest.fixture(scope="session")
def rules_url() -> Iterator[str]:
    """A running rules service."""
    command = [sys.executable, "-m", "services.rules", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "listening on" in line)
        yield line.rsplit(" ", 1)[1].strip()
        process.terminate()
        process.stdout.read()


@pytest.fixture
def recipe(tmp_path: Path, rules_url: str) -> Callable[..., Path]:
    """Writes the config of a small run: random weights, four prompts a step, rewards that are plain functions."""

    def write(name: str = "run", **changes: Any) -> Path:
        config: dict[str, Any] = {
            "run_name": name,
            "output_dir": str(tmp_path / "outputs"),
            "max_steps": 4,
            "policy": {"type": "tiny", "num_layers": 2, "num_heads": 2, "head_dim": 16},
            "sampling": {"prompts_per_step": 4, "group_size": 4, "micro_batch_size": 8, "num_inference_steps": 3},
            "rewards": {
                "services": {"rules": {"urls": [rules_url]}},
                "columns": {
                    "color": {"service": "rules", "reward": "color_match"},
                    "small": {"service": "rules", "reward": "jpeg_compressibility"},
                },
            },
            "data": {"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"color": 1.0, "small": 0.5}}]},
            "optim": {"lr": 1e-3},
            "distributed": {"num_threads": 1},
            "evaluation": {"path": str(_few_heldout(tmp_path)), "every": 2, "num_inference_steps": 3, "batch_size": 4},
            "checkpoint": {"save_every": 1},
            "logging": {"report_every": 1000, "report_to": []},
        }
        for key, value in changes.items():
            section, _, field = key.partition("__")
            if field:
                config[section][field] = value
            else:
                config[section] = value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return path

    return write


def _few_heldout(folder: Path) -> Path:
    lines = (ROOT / "assets" / "quickstart" / "heldout.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path = folder / "heldout.jsonl"
    path.write_text("".join(lines[:8]), encoding="utf-8")
    return path


def trainer_command(config: Path, *overrides: str, ranks: int = 1) -> list[str]:
    """The command line of a run on `ranks` processes."""
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    return [*launcher, "trainer", "train", str(config), *overrides]


def trainer_environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def start_trainer(
    config: Path, *overrides: str, ranks: int = 1, output: Path | None = None, terminal: str | None = None
) -> ForkedTrainer:
    """A run that goes on in a process of its own. Use as a context manager.

    `output`: where what it prints is kept, without an ending; None: beside the config. `terminal`: the path of a terminal that
    it is started from, which then has what it prints.
    """
    output = output or config.with_name(f"{config.stem}-{next(_STARTS)}")
    argv = ["train", str(config), *overrides]
    return ForkedTrainer(argv, output, trainer_environment(), ranks, terminal=terminal)


def run_trainer(
    config: Path, *overrides: str, ranks: int = 1, expect: int = 0, output: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end and check the exit code."""
    with start_trainer(config, *overrides, ranks=ranks, output=output) as trainer:
        code = trainer.wait(RUN_TIMEOUT_S)
    assert code == expect, trainer.stdout[-2000:] + trainer.stderr[-4000:]
    return subprocess.CompletedProcess(trainer.args, code, trainer.stdout, trainer.stderr)


def run_command(config: Path, *overrides: str, ranks: int = 1, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does, imports and all, and check the exit code."""
    done = subprocess.run(
        trainer_command(config, *overrides, ranks=ranks),
        cwd=ROOT,
        env=trainer_environment(),
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without what a clock measured."""
    clocks = (
        "time/",
        "perf/",
        "memory/",
        "latency_ms/",
        "wait/",
        "reward_wait_share",
        "images_per_s",
        "texts_per_s",
        "packs_per_s",
        "tokens_per_s",
        "cached/",
    )
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(clocks)} for row in rows]
