"""Three YAMLs in NanoVLM-Lab's shape, with local data and a small model, and a file of rewards in its signature, run unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

from tests.support.tiny_vlm import make_vlm, save_pictures
from tests.support.trainer_runs import read_metrics
from trainer.__main__ import main

COLORS = ("red", "blue", "green", "black")
REWARDS = '''
import re

THOUGHT = re.compile(r"<think>.*</think>")


def read_word(text):
    """No reward: it judges no completions."""
    return text.split()[-1] if text.split() else ""


def accuracy_reward(prompts, completions, completion_ids, answer, **kwargs):
    assert len(prompts) == len(completions) == len(completion_ids) == len(answer) == len(kwargs["level"])
    return [None if level == 3 else float(read_word(text) == right) for text, right, level in zip(completions, answer, kwargs["level"])]


def length_reward(completions, completion_ids, **kwargs):
    return [1.0 - len(ids) / 8 for ids in completion_ids]
'''
PREPROCESSING = """
def ask_for_a_thought(example):
    example["prompt"] = "say " + example["prompt"]
    return example
"""
COMMON: dict[str, Any] = {
    "model": {
        "model_name_or_path": "model",
        "use_lora": False,
        "model_type": "nanovlm",
        "initialize_from_config": False,
    },
    "training": {
        "num_train_epochs": 1,
        "max_steps": -1,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": "5e-4",
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "cosine",
        "bf16": False,
        "save_strategy": "steps",
        "save_steps": 500,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 5,
        "save_total_limit": 3,
        "seed": 42,
        "device": "cpu",
        "n_gpu": 1,
    },
    "save": {"save_tokenizer": True, "save_image_processor": True},
    "logging": {"use_wandb": False, "wandb_project": "lab", "wandb_entity": None, "report_to": []},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in their shape: data with pictures, a model, rewards and preprocessing, folders where they have them."""
    folder = tmp_path_factory.mktemp("lab")
    make_vlm(folder / "model")
    for name in ("configs", "rlvlm", "data"):
        (folder / name).mkdir()
    pictures = save_pictures(folder / "data")
    rows = [
        {
            "image": pictures[n % 4] if n % 3 else None,
            "question": f"what color is the disc ? {n}",
            "original_answer": COLORS[n % 4],
            "level": n % 4,
            "texts": [{"user": "what color is the disc ?", "assistant": f"{COLORS[n % 4]} ."}],
            "images": [pictures[n % 4]] if n % 3 else [],
        }
        for n in range(10)
    ]
    shapes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "sft": lambda row: {"images": row["images"], "texts": row["texts"]},
        "dpo": lambda row: {
            "image": row["image"],
            "question": row["question"],
            "chosen_answer": row["original_answer"],
            "rejected_answer": "nothing",
        },
        "grpo": lambda row: {key: row[key] for key in ("image", "question", "original_answer", "level")},
    }
    for name, shape in shapes.items():
        text = "".join(json.dumps(shape(row)) + "\n" for row in rows)
        (folder / "data" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "rlvlm" / "reward_functions.py").write_text(REWARDS)
    (folder / "rlvlm" / "preprocessing_grpo.py").write_text(PREPROCESSING)
    return folder


def write(lab: Path, training: str, own: dict[str, Any], dataset: dict[str, Any]) -> Path:
    tree = json.loads(json.dumps(COMMON)) | {"training_type": training, **own}
    tree["training"]["output_dir"] = f"./{training}_output"
    tree["dataset"] = {
        "train_data_path": f"data/{training}.jsonl",
        "train_split": "train",
        "eval_data_path": None,
        "eval_split": "test",
        "dataset_format": training,
        "max_samples": None,
        **dataset,
    }
    tree["save"]["save_model_path"] = f"./{training}_output/final_model"
    path = lab / "configs" / f"{training}_config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(str(folder / "model.safetensors"), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # a safetensors file is no mapping


def run(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], str]:
    """Exit 0, a final model that has moved, and what was said."""
    assert main(["train", str(path)]) == 0
    training = path.name.partition("_")[0]
    out = path.parent.parent / f"{training}_output"
    before, after = final_weights(path.parent.parent / "model"), final_weights(out / "final_model")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name].float(), after[name].float()) for name in before)
    return read_metrics(out), "".join(capsys.readouterr())


def test_sft_runs_unchanged(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight rows are trained on, four a step; two are held out, and the loss on them is measured."""
    rows, told = run(write(lab, "sft", {}, {}), capsys)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[2]["heldout/loss"] < rows[0]["heldout/loss"]
    assert "training.n_gpu does nothing here" in told and "dataset.dataset_format does nothing here" in told


def test_dpo_runs_unchanged(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first loss is ln 2."""
    own = {"dpo": {"beta": 0.1, "dpo_loss_type": "sigmoid", "label_smoothing": 0.0, "loss_type": "sigmoid"}}
    rows, told = run(write(lab, "dpo", own, {"rename_columns": {"question": "prompt"}}), capsys)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1]["loss/policy"] == pytest.approx(0.693147, abs=1e-5)
    assert "dpo.loss_type does nothing here" in told


def test_grpo_runs_unchanged(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their rewards over HTTP, with columns, ids, and None where one does not apply."""
    own = {
        "grpo": {
            "num_generations": 3,
            "max_prompt_length": 64,
            "max_completion_length": 8,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "loss_type": "grpo",
            "epsilon": 0.2,
            "epsilon_high": None,
            "beta": 0.1,
            "scale_rewards": "group",
            "log_completions": False,
        }
    }
    dataset = {
        "rename_columns": {"question": "prompt"},
        "preprocessing_fn": "preprocessing_grpo.py",
        "reward_functions_fn": "reward_functions.py",
    }
    path = write(lab, "grpo", own, dataset)
    rows, told = run(path, capsys)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["reward/length_reward/valid_share"] == 1 for row in rows[1:])
    assert not any(key.startswith("failed/") for row in rows for key in row)
    assert "eval/grpo/length_reward" in rows[0] or "eval/length_reward" in rows[0]
    samples = json.loads((lab / "grpo_output" / "samples" / "step_000000.json").read_text())
    assert samples and all(record["prompt"].startswith("say what color") for record in samples)
    assert main(["train", str(path)]) == 0, "a second start finds it finished and its model written"
    assert "was not written again" in capsys.readouterr().out and "images_per_s" not in told
