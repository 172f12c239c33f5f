"""Stages of a native model in whole runs: stage 1 leaves the language model as it was, bit for bit; three stages learn to see."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.support.tiny_neo import make_qwen3
from tests.support.tiny_vlm import save_pictures
from tests.support.trainer_runs import read_metrics
from trainer.__main__ import main
from trainer.config.neo import NeoConfig
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.unified.neo import build
from trainer.policies.unified.neo.growth import read_language
from trainer.policies.unified.neo.policy import NeoPolicy
from trainer.quickstart.native_rows import captions, conversation, held_out_questions, questions, talks, without_images
from trainer.types import Prompt

ROOT = Path(__file__).resolve().parents[2]
SCENES = ROOT / "assets/unified_quickstart/scenes"
LAYERS = "language_model.model.layers."


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_recipe(
    folder: Path, name: str, policy: dict[str, Any], sets: dict[str, float], images: Path, **changes: Any
) -> Path:
    """A stage: `sets` are files of conversations with their weights."""
    groups = [
        {
            "name": Path(path).stem,
            "weight": weight,
            "sets": [{"path": path, "format": "conversations", "image_folder": str(images)}],
        }
        for path, weight in sets.items()
    ]
    packed = {"groups": groups, "fill": "rows", "rows_per_pack": 4, "expected_tokens": 2048, "max_tokens": 2048}
    tree: dict[str, Any] = {
        "run_name": name,
        "output_dir": str(folder / "outputs"),
        "program": "supervised",
        "max_steps": 20,
        "policy": {"type": "neo", "dtype": "float32", "min_pixels": 1024, "max_pixels": 1024, **policy},
        "optim": {"lr": 3e-3, "betas": [0.9, 0.95], "ema_decay": 0.0},
        "checkpoint": {"save_every": 100, "export": str(folder / name)},
        "distributed": {"device": "cpu", "num_threads": 1},
        "logging": {"report_to": [], "progress": False, "report_every": 1000},
    }
    tree |= {key: value for key, value in changes.items() if key != "packed"}
    tree["packed"] = {**packed, **changes.get("packed", {})}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_stage_1_leaves_the_language_model_bit_for_bit(tmp_path: Path, no_drawings: None) -> None:
    """Twenty steps; then a stage that trains all of it starts from the folder and moves what was frozen."""
    language = make_qwen3(tmp_path / "language", tie_word_embeddings=False)
    pictures = [Path(path).name for path in save_pictures(tmp_path)]
    rows = [conversation(name, "what color is the disc", "red") for name in pictures]
    rows.append({"conversations": [{"from": "human", "value": "how many"}, {"from": "gpt", "value": "two"}]})
    talks_path = write_rows(tmp_path / "talks.jsonl", rows)
    grow = {"language": str(language), "extra_layers": 1, "vision_hidden_size": 32, "patch_size": 8}
    first = write_recipe(tmp_path, "one", {"grow": grow, "train": "stage_1"}, {talks_path: 1.0}, tmp_path)
    second = write_recipe(
        tmp_path,
        "two",
        {"pretrained": str(tmp_path / "one")},
        {talks_path: 1.0},
        tmp_path,
        after=str(first),
        max_steps=2,
    )
    assert main(["train", str(second)]) == 0

    base, one, two = (
        read_language(language),
        load_file(tmp_path / "one" / "model.safetensors"),
        load_file(tmp_path / "two" / "model.safetensors"),
    )
    assert one.keys() == two.keys()
    for name, tensor in base.items():
        pieces = name.split(".")
        if pieces[:2] == ["model", "layers"]:
            pieces[2] = str(int(pieces[2]) + 1)
        kept = one[".".join(["language_model", *pieces])]
        assert torch.equal(kept[: len(tensor)], tensor), name
        if tensor.dim() > 1:
            assert not torch.equal(two[".".join(["language_model", *pieces])], kept), name
    for name in (f"{LAYERS}0.mlp.up_proj", f"{LAYERS}1.self_attn.k_proj_hw", "vision_model.embeddings.patch_embedding"):
        assert one[f"{name}.weight"].abs().max() > 0
    assert one[f"{LAYERS}1.self_attn.k_proj_hw.weight"].any(), "the keys of rows and columns were zero and are trained"
    losses = [row["loss/ce"] for row in read_metrics(tmp_path / "outputs" / "one") if row.get("loss/ce") is not None]
    assert len(losses) == 20 and losses[-1] < losses[0]


def answered(folder: Path, rows: Sequence[dict[str, Any]], images: dict[str, str] | None) -> float:
    """Share of questions that are answered word for word, greedily."""
    config = NeoConfig(type="neo", pretrained=str(folder), dtype="float32", min_pixels=1024, max_pixels=1024)
    policy = NeoPolicy(build(config, torch.device("cpu")), keep_reference=False)
    prompts = [
        Prompt(str(n), row["question"], source_images=() if images is None else (images[row["image"]],))
        for n, row in enumerate(rows)
    ]
    plan = TokenPlan(len(prompts), 4, temperature=0.0)
    told = [
        sample.text for rollout in policy.sample(prompts, 1, [0] * len(prompts), plan) for sample in rollout.samples
    ]
    return sum(text == row["answer"] for text, row in zip(told, rows, strict=True)) / len(rows)


@pytest.mark.slow
def test_three_stages_learn_to_see(tmp_path: Path, no_drawings: None) -> None:
    """Questions with three words, of which one is right, about scenes that were held out: 1 in 3 by chance. A control with the same
    rows but no images stays there."""
    captioned = write_rows(tmp_path / "captions.jsonl", captions())
    asked = questions(0)
    questioned = write_rows(tmp_path / "questions.jsonl", asked)
    blind = [
        {"conversations": [{**human, "value": human["value"].removeprefix("<image>")}, gpt]}
        for human, gpt in (row["conversations"] for row in asked)
    ]
    unseen = write_rows(tmp_path / "unseen.jsonl", blind)
    text = write_rows(tmp_path / "text.jsonl", talks(2))
    grow = {
        "language": str(ROOT / "assets/neo_quickstart/language"),
        "extra_layers": 1,
        "vision_hidden_size": 64,
        "patch_size": 8,
    }
    optim = {"lr": 2e-3, "betas": [0.9, 0.95], "warmup_steps": 10, "decay_share": 0.5, "ema_decay": 0.0}
    more = {"packed": {"rows_per_pack": 32}, "optim": optim}
    one = write_recipe(
        tmp_path,
        "one",
        {"grow": grow, "train": "stage_1"},
        {captioned: 0.7, text: 0.3},
        SCENES,
        max_steps=70,
        **{**more, "optim": {**optim, "lr": 3e-3}},
    )
    start = {"pretrained": str(tmp_path / "one")}
    two = write_recipe(
        tmp_path,
        "two",
        start,
        {captioned: 0.4, questioned: 0.5, text: 0.1},
        SCENES,
        after=str(one),
        max_steps=100,
        **more,
    )
    sft = {"pretrained": str(tmp_path / "two")}
    three = write_recipe(
        tmp_path, "three", sft, {questioned: 0.9, text: 0.1}, SCENES, after=str(two), max_steps=80, **more
    )
    control = write_recipe(tmp_path, "control", start, {unseen: 1.0}, SCENES, after=str(one), max_steps=60, **more)
    assert main(["train", str(three)]) == 0 and main(["train", str(control)]) == 0

    held_out = held_out_questions(1)
    paths = {row["image"]: str(tmp_path / f"held{n}.png") for n, row in enumerate(held_out)}
    for url, path in paths.items():
        Path(path).write_bytes(base64.b64decode(url.partition(",")[2]))
    seen = answered(tmp_path / "three", held_out, paths)
    guessed = answered(tmp_path / "control", without_images(held_out), None)
    losses = [row["loss/ce"] for row in read_metrics(tmp_path / "outputs" / "two") if row.get("loss/ce") is not None]
    print(f"held out {seen:.3f}, control {guessed:.3f}, loss of stage 2 {losses[0]:.3f} to {losses[-1]:.3f}")
    assert seen >= 0.8 and guessed <= 0.45
    assert losses[-1] <= 0.5 * losses[0]
