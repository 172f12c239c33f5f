"""A command line of PairUni becomes a recipe that trains: the published flags on a tiny model, its scorers replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import reward_servers
from tests.support.pair_rows import pair, side, write_pairs
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.tiny_janus import make_janus
from tests.support.trainer_runs import read_metrics
from trainer.config import Config
from trainer.config.file import checked
from trainer.loop import train
from trainer.migration.janus_grpo.command import from_command_line

scripted = reward_servers.scripted  # the fixture


def by_bytes(request: dict[str, Any]) -> Reply:
    """A reward that nearly every sample has another one of."""
    return good(request, lambda item: (sum(str(item.get("completion") or item["images"]).encode()) % 17) / 17)


def test_the_published_flags_train_both_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: Callable[..., ScriptedServer]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_janus(tmp_path / "model")
    rows = [pair(0.9 - n / 10, generate_ann={"prompt": f"draw a red disc {n}"}, understand_ann=side(f"images/{'abcd'[n]}.png", question="which is left ?\nA. red\nB. blue")) for n in range(4)]  # fmt: skip
    write_pairs(tmp_path / "images")
    write_pairs(tmp_path / "data", *rows, images=0)
    flags = (
        "open_r1/grpo.py --output_dir outputs/mine --model_name_or_path model --pair_data_path data/pairs.jsonl "
        "--num_generations_text 2 --num_generations_image 4 --per_device_train_batch_size 1 --gradient_accumulation_steps 2 "
        "--max_steps 1 --learning_rate 1e-4 --max_completion_length 4 --similarity_threshold 0.7 --save_steps 1"
    )
    tree = yaml.safe_load(from_command_line("pairuni", flags.split()))
    urls = {name: {"urls": [scripted(by_bytes).url]} for name in ("rules", "hps")}
    columns = {
        name: {"service": service, "canary": "none"} for name, service in (("accuracy", "rules"), ("hps", "hps"))
    }
    tree["rewards"] = {"services": urls, "columns": columns}
    config = checked(tmp_path / "recipe.yaml", Config, tree)
    assert train(config) == 0
    (row,) = [row for row in read_metrics(config.run_dir) if row["step"]]
    assert row["grad_norm"] > 0 and 0 < row["understand/loss_share"] < 1
    notes = (config.run_dir / "data_notes.txt").read_text()
    assert "3 pairs, 0 aligned, 3 retrieved" in notes and "1 of 4 pairs are left out" in notes
