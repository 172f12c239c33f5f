"""What trains of a Janus, how large it is told to be, and what is written of it and read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.tiny_deepseek import make_deepseek
from trainer.config import ConfigError, JanusConfig
from trainer.export.comparison import compare_weights, settle
from trainer.policies.registry import entry_of
from trainer.policies.unified.janus import build
from trainer.policies.unified.janus.model import JanusModel, part_of
from trainer.policies.unified.janus.sizes import shapes_by_name

CPU = torch.device("cpu")
LORA = {"rank": 2, "alpha": 4.0}


@pytest.fixture(scope="module")
def deepseek_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepseek_export") / "Janus-tiny"
    make_deepseek(folder)
    return folder


def section(folder: Path, **fields: Any) -> JanusConfig:
    return JanusConfig.model_validate({"type": "janus", "pretrained": str(folder), "dtype": "float32", **fields})


def disturb(model: JanusModel) -> None:
    """What training would do to the weights that are trained."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({}, {"language"}),
        ({"freeze": []}, {"language", "vision", "aligner", "generation"}),
        ({"freeze": ["language", "vision"]}, {"aligner", "generation"}),
        ({"lora": LORA}, {"language"}),
        (
            {"lora": {**LORA, "target_modules": ["q_proj", "fc1"]}, "freeze": ["aligner"]},
            {"language", "vision", "generation"},
        ),
    ],
)
def test_named_parts_train_and_as_much_of_them_as_is_told(
    deepseek_folder: Path, fields: dict[str, Any], parts: set[str]
) -> None:
    config = section(deepseek_folder, **fields)
    told = entry_of(config).sizes(config)
    network = build(config, CPU).network
    trained = {name: each for name, each in network.named_parameters() if each.requires_grad}
    assert {part_of(name) for name in trained} == parts
    assert told.trained == sum(each.numel() for each in trained.values())
    frozen = sum(each.nbytes for name, each in network.named_parameters() if name not in trained)
    assert (told.network, told.others) == (frozen, 0)


def test_all_parts_frozen_is_refused(deepseek_folder: Path) -> None:
    with pytest.raises(ValueError, match="leaves nothing to train; leave a part out"):
        section(deepseek_folder, freeze=["language", "vision", "aligner", "generation"])
    with pytest.raises(
        ConfigError, match=r"policy\.freeze = .* leaves nothing to train: all adapters are in frozen parts"
    ):
        build(section(deepseek_folder, lora=LORA, freeze=["language"]), CPU)


def test_shapes_are_known_before_anything_is_converted(tmp_path: Path) -> None:
    make_deepseek(tmp_path / "m")
    before = shapes_by_name(section(tmp_path / "m"))
    assert not (tmp_path / "m" / "transformers").exists()
    state = build(section(tmp_path / "m"), CPU).network.state_dict()
    assert before == {name: tuple(each.shape) for name, each in state.items()}


@pytest.mark.parametrize("to", ["hf", "deepseek"])
def test_whole_weights_are_written_adapters_merged_and_read_back(
    deepseek_folder: Path, to: str, tmp_path: Path
) -> None:
    config = section(deepseek_folder, lora=LORA)
    model, exporter = build(config, CPU), entry_of(config).exporters[to]
    disturb(model)
    settle(model, torch.float32, merge=True)
    exporter.write(model, tmp_path, torch.float32)
    reloaded = exporter.reload(config, tmp_path, CPU)
    assert compare_weights(model, reloaded, adapters=False, dtype=torch.float32)
    kind = json.loads((tmp_path / "config.json").read_text())["model_type"]
    assert kind == {"hf": "janus", "deepseek": "multi_modality"}[to]
    assert not [each for each in tmp_path.iterdir() if each.is_dir()]
    ids = model.tokenizer("the red disc")["input_ids"]
    assert reloaded.tokenizer("the red disc")["input_ids"] == ids


def test_adapters_name_a_base_that_peft_can_load(deepseek_folder: Path, tmp_path: Path) -> None:
    config = section(deepseek_folder, lora=LORA)
    model, exporter = build(config, CPU), entry_of(config).exporters["lora"]
    disturb(model)
    exporter.write(model, tmp_path, torch.float32)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(deepseek_folder / "transformers")
    assert compare_weights(model, exporter.reload(config, tmp_path, CPU), adapters=True, dtype=torch.float32)
    # And a run goes on from them.
    again = build(section(deepseek_folder, lora={**LORA, "path": str(tmp_path)}), CPU)
    assert compare_weights(model, again, adapters=True, dtype=torch.float32)


def test_a_model_of_transformers_layout_is_written_in_deepseeks(janus_folder: Path, tmp_path: Path, capfd: Any) -> None:
    config = section(janus_folder)
    model, exporter = build(config, CPU), entry_of(config).exporters["deepseek"]
    exporter.write(model, tmp_path, torch.float32)
    assert "no name for the sizes of this model's vision tower" in capfd.readouterr().err
    assert load_file(tmp_path / "model.safetensors")["gen_vision_model.quantize.codebook_used"].shape == (65536,)
    reloaded = exporter.reload(config, tmp_path, CPU)
    assert compare_weights(model, reloaded, adapters=False, dtype=torch.float32)
    assert reloaded.pad_id == model.pad_id and reloaded.num_image_tokens == model.num_image_tokens


def test_a_head_of_its_own_stays_where_the_configuration_leaves_it_out(janus_folder: Path, tmp_path: Path) -> None:
    """transformers' class ties head and embedding unless its file says otherwise; others' files say nothing."""
    shutil.copytree(janus_folder, tmp_path / "model")
    fields = json.loads((tmp_path / "model" / "config.json").read_text())
    del fields["tie_word_embeddings"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(fields))
    stored = load_file(janus_folder / "model.safetensors")["lm_head.weight"]
    config = section(tmp_path / "model")
    model, exporter = build(config, CPU), entry_of(config).exporters["hf"]
    network: Any = model.network
    assert torch.equal(network.lm_head.weight, stored)
    network.tie_weights()  # as copies and loaders do
    assert torch.equal(network.lm_head.weight, stored)
    (tmp_path / "out").mkdir()
    exporter.write(model, tmp_path / "out", torch.float32)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(exporter.reload(config, tmp_path / "out", CPU).network.lm_head.weight, stored)
