"""Pre-training of the tiny policy: it writes a base that RL can start from, the same one for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.trainer_runs import ROOT
from trainer.config import Config, SftConfig, SftOptimConfig, TinyConfig
from trainer.config.file import load_config
from trainer.policies.registry import build_policy
from trainer.sft import train_base

CPU = torch.device("cpu")
SMALL = TinyConfig(num_layers=1, num_heads=2, head_dim=16)


def config(folder: Path, name: str, seed: int = 1) -> SftConfig:
    return SftConfig(
        run_name=name,
        output_dir=str(folder),
        output=str(folder / "bases" / f"{name}.safetensors"),
        seed=seed,
        max_steps=4,
        log_every=2,
        policy=SMALL,
        optim=SftOptimConfig(batch_size=8, warmup_steps=1),
    )


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.sft.PCA_PICTURES", 100)


def test_it_writes_a_base_that_a_policy_starts_from(tmp_path: Path) -> None:
    output = train_base(config(tmp_path, "base"))
    assert [path.name for path in output.parent.iterdir()] == ["base.safetensors"]
    policy = build_policy(SMALL.model_copy(update={"checkpoint": str(output)}), CPU, keep_reference=False)
    assert "4 steps" in policy.about
    rows = [json.loads(line) for line in (tmp_path / "base" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4] and all(row["loss/flow"] > 0 for row in rows)


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    first, again, other = (
        load_file(str(train_base(config(tmp_path, name, seed)))) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_the_base_of_the_quickstart_is_small_and_fits_its_config() -> None:
    base = ROOT / "assets" / "quickstart" / "base.safetensors"
    assert base.stat().st_size <= 8_000_000
    quickstart = load_config(ROOT / "configs" / "quickstart.yaml", Config).policy
    made = load_config(ROOT / "configs" / "quickstart_base.yaml", SftConfig)
    assert quickstart.checkpoint == made.output == base.relative_to(ROOT).as_posix()
    assert quickstart.model_copy(update={"checkpoint": None}) == made.policy
    policy = build_policy(quickstart.model_copy(update={"checkpoint": str(base)}), CPU, keep_reference=False)
    assert all(parameter.isfinite().all() for parameter in policy.trainable.parameters())
