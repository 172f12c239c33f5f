"""Pairs whose reward of images dies under the run: its samples are masked and counted, answers go on training, and it recovers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import reward_servers
from tests.support.pair_rows import pair, side, write_pairs
from tests.support.reward_servers import ROOT, Reply, ScriptedServer, good
from tests.support.tiny_janus import make_janus
from tests.support.trainer_runs import read_metrics
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train

scripted = reward_servers.scripted  # the fixture


class Rules:
    """A rules service in a process of its own, which is killed and brought back on the same port."""

    def __init__(self) -> None:
        self.port, self.process = 0, None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "services.rules", "--port", str(self.port)]
        self.process: Any = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = next(line for line in self.process.stdout if "listening on" in line)
        self.url = line.rsplit(" ", 1)[1].strip()
        self.port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def rules() -> Iterator[Rules]:
    service = Rules()
    yield service
    service.kill()


@pytest.mark.slow
def test_images_reward_killed_mid_run_is_masked_said_and_recovers(
    recipe: Callable[..., Path],
    tmp_path: Path,
    rules: Rules,
    scripted: Callable[..., ScriptedServer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Answers are scored first in each step: in the second step that kills the other service, in the third it is started again."""
    steps: list[int] = []

    def by_letters(request: dict[str, Any]) -> Reply:
        steps.append(len(steps) + 1)
        if len(steps) == 2:
            rules.kill()
        if len(steps) == 3:
            rules.start()
        return good(request, lambda item: (sum(item["completion"].encode()) % 17) / 17)

    make_janus(tmp_path / "model")
    rows = [pair(s, generate_ann={"prompt": f"draw a red disc {n}"}, understand_ann=side(f"{'abcd'[n]}.png", question="which is left ?\nA. red\nB. blue")) for n, s in enumerate((1.0, 0.64, 0.25, 0.88))]  # fmt: skip
    pairs = write_pairs(tmp_path / "pairs", *rows)
    understand = {"group_size": 4, "micro_batch_size": 8, "max_new_tokens": 4, "rewards": {"letters": 1.0}}
    generate = {"group_size": 4, "micro_batch_size": 8, "guidance_scale": 2.0, "rewards": {"small": 1.0}}
    dying = {"urls": [rules.url], "timeout_s": 2.0, "connect_timeout_s": 0.5, "max_attempts": 2, "breaker_reset_s": 0.1}
    path = recipe(
        "run",
        max_steps=4,
        policy={"type": "janus", "pretrained": str(tmp_path / "model"), "dtype": "float32"},
        sampling={"prompts_per_step": 2, "tasks": {"understand": understand, "generate": generate}},
        rewards__services={"rules": dying, "letters": {"urls": [scripted(by_letters).url]}},
        rewards__columns={
            "small": {
                "service": "rules",
                "reward": "jpeg_compressibility",
                "canary": "none",
                "max_failure_rate": 1.0,
            },
            "letters": {"service": "letters", "canary": "none"},
        },
        data__train=[{"path": str(pairs), "format": "pairs"}],
        evaluation={"every": 10},
    )
    config = load_config(path, Config)
    assert train(config) == 0
    assert steps == [1, 2, 3, 4], "one micro-batch of answers a step"
    rows = [row for row in read_metrics(config.run_dir) if row["step"]]
    assert [row["reward/letters/valid_share"] for row in rows] == [1.0] * 4
    valid = [row["reward/small/valid_share"] for row in rows]
    failed = [sum(count for key, count in row.items() if key.startswith("failed/small/")) for row in rows]
    assert (valid[0], valid[1], valid[3]) == (1.0, 0.0, 1.0), "the service comes back while the third step is scored"
    assert failed == [8 * (1 - share) for share in valid]
    assert "reward/small/mean" not in rows[1], "no number stands in for a score"
    assert all(row["grad_norm"] > 0 for row in rows), "answers train on"
    assert rows[1]["understand/loss_share"] == 1.0 and rows[1]["generate/loss_share"] == 0.0
    assert rows[3]["generate/loss_share"] > 0
    said = capsys.readouterr().err
    assert "failed 8" in said and "Failed scores, masked: small unreachable" in said, said[-2000:]
