"""UniReason's first stage in a whole run: what is frozen stays as it was, bit for bit, whatever the optimizer and the average do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.support.packed_rows import ROWS, write_images, write_rows
from tests.support.tiny_bagel import make_bagel
from tests.support.trainer_runs import ROOT, read_metrics
from trainer.__main__ import main
from trainer.config import Config
from trainer.config.file import load_config
from trainer.policies.unified.mot.loading import COMPUTED


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bagel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bagel(tmp_path_factory.mktemp("stages") / "BAGEL")


def stage(folder: Path, bagel: Path, **policy: Any) -> Path:
    """Drawings and edits, a few steps with weight decay and an average that moves fast."""
    write_images(folder / "images")
    groups = []
    for kind in ("t2i", "edit_reason"):
        path = write_rows(folder / f"{kind}.json", [ROWS[kind]] * 4)
        groups.append(
            {"name": kind, "sets": [{"path": str(path), "format": kind, "image_folder": str(folder / "images")}]}
        )
    side = {"stride": 16, "longest": 32, "shortest": 32}
    seen = {"stride": 14, "longest": 28, "shortest": 28}
    tree = {
        "run_name": "stage",
        "output_dir": str(folder / "outputs"),
        "program": "supervised",
        "max_steps": 3,
        "policy": {"type": "mot", "pretrained": str(bagel), "max_latent_size": 8, **policy},
        "packed": {
            "groups": [{**each, "image_size": side, "seen_size": seen} for each in groups],
            "expected_tokens": 500,
            "max_tokens": 2000,
            "max_row_tokens": 1000,
            "dropout": {"text": 0.0, "clean": 0.0, "seen": 0.0},
        },
        "optim": {"lr": 1e-2, "weight_decay": 0.1, "ema_decay": 0.5, "schedule": "constant"},
        "checkpoint": {"save_every": 3, "export": str(folder / "exported")},
        "distributed": {"device": "cpu", "num_threads": 1},
        "logging": {"report_every": 1000, "report_to": [], "progress": False},
    }
    path = folder / "stage.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_stage_1_moves_the_generation_expert_and_nothing_else(bagel: Path, tmp_path: Path, dtype: str) -> None:
    """Its set, by the published names: the second expert with what leads to latents and back."""
    frozen = ["language", "vision", "connector"]
    path = stage(tmp_path, bagel, dtype=dtype, freeze=frozen, constant_words=True)
    assert main(["train", str(path)]) == 0
    losses = [row for row in read_metrics(Path(load_config(path, Config).run_dir)) if row.get("loss/mse") is not None]
    assert len(losses) == 3 and all(row["grad_norm"] > 0 for row in losses)
    before, after = (load_file(folder / "ema.safetensors") for folder in (bagel, tmp_path / "exported"))
    assert before.keys() == after.keys()
    generation = ("_moe_gen", "vae2llm.", "llm2vae.", "time_embedder.")
    moved = {
        name for name in before.keys() - set(COMPUTED) if not torch.equal(before[name].float(), after[name].float())
    }
    expected = {name for name in before if any(part in name for part in generation)}
    assert moved <= expected, sorted(moved - expected)[:3]
    assert {name for name in expected if before[name].dim() > 1} <= moved, "every matrix of it was trained"
