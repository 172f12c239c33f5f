"""A run on another project's data: images inside Parquet, a preprocessing file, held-out rows; and its mistakes before a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.text_rows import png, write_parquet
from tests.support.tiny_vlm import make_vlm
from tests.support.trainer_runs import read_metrics
from trainer.config import Config, ConfigError
from trainer.config.file import load_config
from trainer.loop import train

PREPROCESSING = """
def convert_to_rgb(example):
    example["image"] = example["image"].convert("RGB")
    return example

def convert_fn(batch):
    texts = []
    for question, answer in zip(batch["problem"], batch["solution"]):
        texts.append({"user": question + " say a or b", "assistant": answer})
    return {"texts": texts}

def ask(example):
    return {"prompt": example["texts"][0]["user"]}
"""


@pytest.fixture
def written(recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A recipe of one step on 10 rows of a folder as the hub has them."""
    make_vlm(tmp_path / "model")
    rows = [
        {
            "image": {"bytes": png((n * 20, 0, 0), (32, 32)), "path": None},
            "problem": f"which color is {n} ?",
            "solution": "a",
        }
        for n in range(10)
    ]
    write_parquet(tmp_path / "data/data/train-00000-of-00001.parquet", rows)
    (tmp_path / "pre.py").write_text(PREPROCESSING)

    def write(**policy: Any) -> Path:
        entry = {
            "path": str(tmp_path / "data"),
            "preprocessing": str(tmp_path / "pre.py"),
            "image_cache": str(tmp_path / "cache"),
            "rewards": {"letter": 1.0},
        }
        return recipe(
            "run",
            max_steps=1,
            policy={"type": "vlm", "pretrained": str(tmp_path / "model"), "dtype": "float32", **policy},
            sampling={"prompts_per_step": 2, "group_size": 2, "micro_batch_size": 4, "max_new_tokens": 4},
            rewards__columns={"letter": {"service": "rules", "reward": "option_letter"}},
            data__train=[entry],
            evaluation={"hold_out": 0.2, "batch_size": 4, "temperature": 0.0},
        )

    return write


def test_their_data_is_trained_on_and_held_out(written: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    config = load_config(written(), Config)
    assert train(config) == 0
    rows = read_metrics(config.run_dir)
    assert [row["step"] for row in rows] == [0, 1]
    assert rows[1]["reward/letter/valid_share"] == 1 and rows[0]["eval/letter"] is not None
    notes = (config.run_dir / "data_notes.txt").read_text(encoding="utf-8")
    for words in (
        "(sha256 ",
        "convert_fn (goes through a text letter by letter",
        "prompt = 'which color is 0 ? say a or b'",
    ):
        assert words in notes and words in capfd.readouterr().out + notes


def test_rows_that_are_too_long_are_named_before_a_step(written: Callable[..., Path]) -> None:
    config = load_config(written(max_prompt_tokens=8), Config)
    with pytest.raises(
        ConfigError, match=r"10 of 10 prompts cannot be read\. The first:\n.*train-00000-of-00001\.parquet:1\)"
    ):
        train(config)
