"""nanoVLM models from end to end: a run of RL on adapters, a fresh model trained on conversations, both exported again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import nanovlm_reference as reference
from tests.support.tiny_vlm import save_pictures
from tests.support.trainer_runs import read_metrics, saved_weights
from tests.support.vlm_runs import write_recipe, write_texts
from trainer.__main__ import main
from trainer.checkpoint import list_checkpoints
from trainer.config import Config, VlmConfig
from trainer.config.file import load_config
from trainer.export import export_run
from trainer.loop import train
from trainer.policies.tokens.nanovlm import files, layout
from trainer.policies.tokens.vlm import build

USUAL = ["down_proj", "o_proj", "k_proj", "q_proj", "gate_proj", "up_proj", "v_proj"]  # NanoVLM-Lab's list


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("nanovlm")
    config = reference.settings(lm_tokenizer=str(place / "tokenizer"))
    reference.save_folder(place / "model", config, reference.random_tensors(config, layout.key_table(config)))
    reference.save_tokenizer(place / "tokenizer")
    pictures = save_pictures(place / "pictures")
    rows = [
        {"id": f"q{n}", "prompt": f"what is this a {n}", "targets": ["A"], "source_images": pictures[: n % 3] or None}
        for n in range(6)
    ]
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return place


def test_adapters_of_a_nanovlm_model_are_trained_by_rewards(
    recipe: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    policy = {
        "type": "vlm",
        "pretrained": str(folder / "model"),
        "dtype": "float32",
        "lora": {"rank": 2, "alpha": 3.0, "target_modules": USUAL},
    }
    path = recipe(
        "run",
        max_steps=2,
        policy=policy,
        sampling={"prompts_per_step": 2, "group_size": 4, "micro_batch_size": 4, "max_new_tokens": 6},
        rewards__columns={"short": {"service": "rules", "reward": "length"}},
        data__train=[{"path": str(folder / "train.jsonl"), "rewards": {"short": 1.0}}],
        evaluation={"path": None},
        optim={"lr": 0.05, "groups": {"language": {"lr": 0.02}}},
    )
    config = load_config(path, Config)
    assert train(config) == 0
    rows = read_metrics(config.run_dir)
    assert all(row["ratio/replay_error"] < 1e-4 for row in rows[1:])
    names = saved_weights(list_checkpoints(config.run_dir / "checkpoints")[-1])
    assert len(names) == 2 * 6 * 2 and all("text_model" in name for name in names)
    adapters = export_run(config.run_dir, tmp_path / "adapters", to="lora", dtype="float32", verify=True)
    merged = export_run(config.run_dir, tmp_path / "merged", to="nanovlm", dtype="float32", verify=True)
    lora = policy["lora"] | {"path": str(adapters)}
    gone_on = build(VlmConfig.model_validate(policy | {"lora": lora}, strict=False), torch.device("cpu"))
    network, _ = files.read_folder(merged)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(gone_on.network(input_ids=ids).logits, network(input_ids=ids).logits)


def test_a_fresh_model_learns_given_texts_at_a_rate_for_each_part(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path)
    fields = reference.settings(lm_tokenizer=str(folder / "tokenizer")).model_dump()
    policy = {
        "type": "vlm",
        "initialize": {"vlm_config": fields, "load_backbone": False},
        "dtype": "float32",
        "freeze": ["vision"],
    }
    path = write_recipe(
        tmp_path,
        "supervised",
        max_steps=2,
        policy=policy,
        optim={"lr": 1e-3, "schedule": "constant", "groups": {"projector": {"lr": 5e-3}}},
    )
    config = load_config(path, Config)
    assert train(config) == 0
    assert not any(
        "vision_model" in name for name in saved_weights(list_checkpoints(config.run_dir / "checkpoints")[-1])
    )
    output = tmp_path / "out"
    assert (
        main(
            [
                "export",
                str(config.run_dir),
                "--to",
                "nanovlm",
                "--output",
                str(output),
                "--dtype",
                "float32",
                "--verify",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "the largest difference is 0\n" in said and "1 texts written twice, all" in said
    table = layout.key_table(files.read_settings(output / "config.json"))
    found: dict[str, Any] = load_file(output / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == table
    # The frozen part is random and in no checkpoint: the export draws it as the run did.
    torch.manual_seed(config.seed)
    drawn = build(VlmConfig.model_validate(policy, strict=False), torch.device("cpu")).network.state_dict()
    assert torch.equal(
        found["vision_encoder.blocks.1.mlp.fc1.weight"], drawn["model.vision_model.encoder.layers.1.mlp.fc1.weight"]
    )
