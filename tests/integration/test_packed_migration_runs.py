"""What users of UniReason and NEO have, trained on: their files and command lines, through to the last step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.packed_rows import ROWS, write_images, write_rows
from tests.support.small_mot import SIZES, WORDS
from tests.support.tiny_neo import make_qwen3
from tests.support.trainer_runs import read_metrics
from trainer.config import Config
from trainer.config.file import checked
from trainer.data.formats.unireason.registry import CLASSES
from trainer.loop import train
from trainer.migration.neo.command import from_neo
from trainer.migration.unireason.command import from_unireason

CLASS_OF = {kind: name for name, kind in CLASSES.items()}
QUIET = {"report_every": 1000, "report_to": [], "progress": False}


@pytest.fixture(autouse=True)
def _one_thread_again() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def unireason_files(folder: Path) -> None:
    """A table of six groups, the registry, and their rows, the second of each broken."""
    write_images(folder)
    (folder / "data").mkdir()
    groups, info = {}, {}
    for kind, row in ROWS.items():
        write_rows(
            folder / f"{kind}.json",
            [row, {**row, "image_path": "gone.png", "output_image": None, "prompt": ""}, row, row],
        )
        sizes = {"image_stride": 16, "max_image_size": 32, "min_image_size": 16}
        seen = {"image_stride": 8, "max_image_size": 32, "min_image_size": 16}
        groups[kind] = {
            "dataset_names": ["rows"],
            "num_used_data": "None",
            "weight": 1.0,
            "image_transform_args": sizes,
        }
        groups[kind] |= {"vit_image_transform_args": seen}
        info[kind] = {"rows": {"jsonl_path": f"{folder}/{kind}.json", "image_prefix_dir": str(folder)}}
    registry = ", ".join(f"{kind!r}: {CLASS_OF[kind]}" for kind in ROWS)
    (folder / "data/dataset_info.py").write_text(f"DATASET_REGISTRY = {{{registry}}}\nDATASET_INFO = {info!r}\n")
    (folder / "data/groups.yaml").write_text(yaml.safe_dump(groups))


def test_all_six_formats_are_trained_on_and_broken_rows_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    unireason_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = (
        "--finetune_from_hf True --model_path none --dataset_config_file data/groups.yaml --total_steps 4 --warmup_steps 1 --lr 1e-3 "
        "--expected_num_tokens 1500 --max_num_tokens 3000 --max_num_tokens_per_sample 3000 --prefer_buffer_before 0 --num_worker 0 "
        "--sharding_strategy NO_SHARD --checkpoint_dir out/run --ema 0.9"
    )
    tree = yaml.safe_load(from_unireason(command.split()))
    tree["policy"] = {
        "type": "mot",
        "initialize": {**SIZES, "words": list(WORDS)},
        "dtype": "float32",
        "max_latent_size": 8,
    }
    tree |= {"logging": QUIET, "distributed": {"device": "cpu", "num_threads": 1}}
    config = checked(tmp_path / "mine.yaml", Config, tree)
    assert train(config) == 0
    rows = [row for row in read_metrics(config.run_dir) if "loss/ce" in row]
    assert len(rows) == 4 and all(row["loss/mse"] > 0 for row in rows)
    assert rows[-1]["loss/ce"] < rows[0]["loss/ce"]
    told = set(re.findall(r"left out: (.*?\.json:\d+: [^:]+): ", "".join(capfd.readouterr())))
    fields = {"t2i": "image_path", "t2i_reason": "image_path", "edit": "output_image", "edit_reason": "output_image"}
    possible = {f"{tmp_path}/{kind}.json:2: {fields.get(kind, 'prompt')}" for kind in ROWS}
    assert told and told <= possible
    assert sum(row["packed/left_out"] for row in rows) >= len(told)


def test_a_grown_model_is_trained_by_its_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "pictures")
    make_qwen3(tmp_path / "qwen3")
    talk = [{"from": "human", "value": "what colour ?"}, {"from": "gpt", "value": "red"}]
    rows: list[Any] = [{"image": "red.png", "conversations": talk}, [{"conversations": talk}] * 2] * 4
    write_rows(tmp_path / "rows.jsonl", rows, array=False)
    (tmp_path / "sets.yaml").write_text("shapes: {annotation_path: rows.jsonl, data_path: pictures}\n")
    (tmp_path / "mine.sh").write_text(
        "python neo/train/train.py --llm_model_name_or_path qwen3 --dataset_registry sets.yaml --dataset_use shapes%50 \\\n"
        "  --extra_num_layers 1 --vision_hidden_size 16 --patch_size 8 --min_pixels 256 --max_pixels 1024 --train_buffer True \\\n"
        "  --max_seq_length 64 --per_device_train_batch_size 4 --max_steps 3 --learning_rate 1e-2 --output_dir out/pt\n"
    )
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load(from_neo(["mine.sh"]))
    tree |= {"logging": QUIET, "distributed": {"device": "cpu", "num_threads": 1}}
    config = checked(tmp_path / "mine.yaml", Config, tree)
    assert train(config) == 0
    losses = [row["loss/ce"] for row in read_metrics(config.run_dir) if "loss/ce" in row]
    assert len(losses) == 3 and losses[-1] < losses[0]
