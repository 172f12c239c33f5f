"""A run that an earlier version began: its configuration has the names of before, and everything still reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.trainer_runs import ROOT, read_metrics
from trainer.__main__ import main
from trainer.config import Config
from trainer.config.file import load_config
from trainer.config.old_keys import NEW_PLACES
from trainer.loop import train

pytestmark = pytest.mark.slow  # whole runs

# What the fields of before that do not act with flow_grpo were in every configuration that a run wrote down.
IDLE: dict[str, Any] = {
    "guard_reweight": False,
    "nft_beta": 0.1,
    "nft_adv_clip": 5.0,
    "dpo_beta": 100.0,
    "old_decay": 0.0,
    "old_decay_steps": 0,
    "timestep_draws": 1,
    "timestep_distribution": "uniform",
    "timestep_shift": 1.0,
}
NEWER = ("program", "preferences", "quickstart")  # sections of later versions


def as_before(text: str) -> str:
    """A resolved configuration as the earlier version wrote it down."""
    now: dict[str, Any] = yaml.safe_load(text)
    old: dict[str, Any] = {}
    for field, places in NEW_PLACES.items():
        section, _, name = places[0].partition(".")
        if not name:
            old[field] = now.get(section)
        elif name in now[section]:
            old[field] = now[section].pop(name)
        else:
            old[field] = IDLE[field]
    now["sampling"].pop("type")
    for section in ("objective", "advantage", "sft", *NEWER):
        now.pop(section, None)
    return yaml.safe_dump({**now, "algorithm": old}, sort_keys=False)


@pytest.fixture
def old_run(recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of two steps, of four that are meant, whose own files are those of the earlier version."""
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    path = recipe(max_steps=2, objective={"kl_beta": 0.1}, advantage={"type": "grpo"}, evaluation__every=100)
    config = load_config(path, Config, ["logging.progress=false"])
    assert train(config) == 0
    torch.set_num_threads(threads)
    for file in (config.run_dir / "config.yaml", *(config.run_dir / "starts").glob("*.yaml")):
        file.write_text(as_before(file.read_text()))
        assert "algorithm:" in file.read_text() and "objective:\n" not in file.read_text()
    return config.run_dir


def test_it_is_reported_exported_evaluated_and_taken_up_again(
    old_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["report", str(old_run)]) == 0
    page = (old_run / "report.html").read_text(encoding="utf-8")
    assert "post-trained by RL (GRPO)" in page and "Clipped beyond ±0.0001" in page
    assert main(["export", str(old_run), "--to", "safetensors", "--output", str(tmp_path / "weights")]) == 0
    recipe = str(old_run / "config.yaml")
    assert main(["evaluate", recipe, "--checkpoint", "base", "--output", str(tmp_path / "evaluation")]) == 0
    assert capsys.readouterr().err.count("earlier version of this trainer") == 2, "once for each that needs all of it"
    assert main(["train", recipe, "max_steps=3"]) == 0
    assert [row["step"] for row in read_metrics(old_run)] == [0, 1, 2, 3]
    said = capsys.readouterr()
    changed = [line for line in (said.out + said.err).splitlines() if " -> " in line]
    assert changed == [] or all("max_steps" in line for line in changed), changed
    assert "algorithm" not in (old_run / "config.yaml").read_text(encoding="utf-8")
