"""Real runs against real services: an exploited reward raises alarms, honest training and chance raise none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.trainer_runs import ROOT, read_metrics
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train
from trainer.report.evaluation import evaluation_part
from trainer.report.run_folder import load_run

REWARDS = """
from PIL import ImageStat
from services.kit.scorer import Item
from services.rules import reward


@reward(range=(0, 1))
def brightness(item: Item) -> float:
    return ImageStat.Stat(item.images[0].convert("L")).mean[0] / 255


@reward(range=(0, 1))
def detail(item: Item) -> float:
    return ImageStat.Stat(item.images[0].convert("L")).stddev[0] / 255
"""


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bright(recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., Config]:
    """A run from random weights that is paid for brightness alone; detail is held out."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    rules = {"module": "rules", "args": {"functions": str(tmp_path / "rewards.py")}}

    def make(name: str, action: str = "note", **rewards: Any) -> Config:
        path = recipe(
            name,
            max_steps=20,
            rewards={
                "launch": "local",
                "services": {"rules": rules},
                "columns": {n: {"service": "rules", "reward": n} for n in ("brightness", "detail")},
                **rewards,
            },
            data={"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"brightness": 1.0}}]},
            optim={"lr": 1e-2, "ema_decay": 0.0, "schedule": "constant"},
            sampling={"prompts_per_step": 4, "group_size": 8, "micro_batch_size": 16, "num_inference_steps": 4},
            checkpoint={"save_every": 1000},
            evaluation__every=10,
            evaluation__rewards=["brightness", "detail"],
            evaluation__alarms={"action": action},
            logging={"report_every": 1000, "report_to": [], "progress": False},
        )
        return load_config(path, Config)

    return make


def raised(config: Config) -> dict[int, list[str]]:
    rows = {row["step"]: [key for key in row if key.startswith("alarm/")] for row in read_metrics(config.run_dir)}
    return {step: alarms for step, alarms in rows.items() if alarms}


@pytest.mark.slow
def test_a_hacked_reward_raises_the_alarm_and_may_stop_the_run(
    bright: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    """The pictures turn white: brightness rises, detail goes. The run stops where it is first seen, and goes on when
    told to."""
    config = bright("hacked", action="stop")
    assert train(config) == 1
    [(step, alarms)] = raised(config).items()
    assert step in (10, 20) and "alarm/heldout/detail" in alarms
    stopped = json.loads((config.run_dir / "summary.json").read_text())["stopped"]
    assert "alarms.action = stop" in stopped and "detail, which training does not use, fell by" in stopped
    assert "raise objective.kl_beta" in stopped
    assert "ALARM heldout/detail after step" in capsys.readouterr().err
    going_on = bright("hacked", action="note")
    assert train(going_on) == 0
    assert [row["step"] for row in read_metrics(config.run_dir)] == list(range(21))
    assert "alarm/heldout/detail" in raised(going_on)[20]
    names = {name: (steps, text) for name, steps, text in evaluation_part(load_run(config.run_dir)).alarms}
    assert "brightness rose by" in names["heldout/detail"][1]
    assert "heldout/detail" in (config.run_dir / "report.html").read_text()


@pytest.mark.slow
def test_where_nothing_can_be_learned_no_reward_is_said_to_be_exploited(bright: Callable[..., Config]) -> None:
    """The control run: scores dealt to random samples, at the same learning rate."""
    config = bright("control", shuffle_control=True)
    assert train(config) == 0
    assert not [key for alarms in raised(config).values() for key in alarms if "heldout" in key]


def test_honest_training_raises_none(recipe: Callable[..., Path]) -> None:
    """The quickstart's model on the asked colour: four steps, held out is the size of the picture's file."""
    path = recipe(
        "honest",
        max_steps=4,
        policy={"type": "tiny", "checkpoint": "assets/quickstart/base.safetensors"},
        data={"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"color": 1.0}}]},
        optim={"lr": 1e-4},
        sampling={"prompts_per_step": 2, "group_size": 4, "micro_batch_size": 8, "num_inference_steps": 4},
        evaluation__rewards=["color", "small"],
        logging={"report_every": 1000, "report_to": [], "progress": False},
    )
    config = load_config(path, Config)
    assert train(config) == 0
    assert raised(config) == {}
    part = evaluation_part(load_run(config.run_dir))
    assert part.alarms == () and {m.name for m in part.measured} == {"color", "small"}
    assert part.step == 4
