"""Exports of policies that write, read back as their users read them: transformers, PEFT, nanoVLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support import nanovlm_reference as reference
from tests.support.finished_runs import make_run
from tests.support.tiny_families import qwen3_vl
from tests.support.tiny_vlm import make_vlm, picture
from tests.support.trainer_runs import ROOT
from trainer.__main__ import main
from trainer.checkpoint import Checkpoint, list_checkpoints
from trainer.config import ConfigError, VlmConfig
from trainer.config.nanovlm import NanoVlmConfig
from trainer.export import ExportError, export_run
from trainer.policies.registry import Exporter
from trainer.policies.tokens import exporting, vlm
from trainer.policies.tokens.nanovlm import files, layout
from trainer.policies.tokens.vlm import build
from trainer.types import Prompt

LORA = {"rank": 4, "alpha": 6.0}  # a scale of 1.5, so that a forgotten or doubled one shows


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vlm(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano")
    config = reference.settings(lm_tokenizer=str(folder))
    reference.save_folder(folder, config, reference.random_tensors(config, layout.key_table(config)))
    reference.save_tokenizer(folder)
    return folder


def run_of(folder: Path, pretrained: Path | None, **fields: Any) -> Path:
    policy = {"type": "vlm", "dtype": "float32", **fields}
    if pretrained is not None:
        policy["pretrained"] = str(pretrained)
    sampling = {"type": "tokens", "max_new_tokens": 8, "prompts_per_step": 2, "group_size": 2, "micro_batch_size": 4}
    return make_run(folder / "outputs", policy, sampling=sampling, objective={"type": "grpo"})


def averages(run: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint.open(list_checkpoints(run / "checkpoints")[-1])
    return {name: checkpoint.read(name)["average"] for name in checkpoint.names}


def merged_by_hand(weights: dict[str, Tensor], adapters: dict[str, Tensor]) -> dict[str, Tensor]:
    """W + (alpha / r) B A (arXiv 2106.09685, section 4.1)."""
    merged = dict(weights)
    for name, a in adapters.items():
        if ".lora_A." in name:
            layer = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            b = adapters[name.replace(".lora_A.", ".lora_B.")]
            merged[f"{layer}.weight"] = weights[f"{layer}.weight"] + LORA["alpha"] / LORA["rank"] * (b @ a)
    return merged


def trained_logits(base: Path, run: Path, prompt: Prompt, **fields: Any) -> Tensor:
    """Of the network as it was trained, by this trainer."""
    model = build(
        VlmConfig.model_validate({"type": "vlm", "pretrained": str(base), "dtype": "float32", **fields}),
        torch.device("cpu"),
    )
    weights = averages(run)
    network: Any = model.network
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
        logits: Tensor = network(**model.collate([model.read(prompt)])).logits
    return logits


@pytest.fixture
def prompt(tmp_path: Path) -> Prompt:
    picture((220, 40, 40)).save(tmp_path / "red.png")
    return Prompt("p", "what color is the disc ?", source_images=(str(tmp_path / "red.png"),))


@torch.no_grad()
@pytest.mark.parametrize("lora", [None, LORA])
def test_a_run_becomes_a_folder_of_transformers(tmp_path: Path, base: Path, prompt: Prompt, lora: Any) -> None:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    run = run_of(tmp_path, base, lora=lora)
    folder = export_run(run, tmp_path / "out", to="hf", dtype="float32", verify=True)
    network = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": prompt.text}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    made = processor(text=[text], images=[[Image.open(prompt.source_images[0])]], return_tensors="pt")
    expected = trained_logits(base, run, prompt, lora=lora)
    found = network(**made).logits
    if lora is None:
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        state = merged_by_hand(load_file(base / "model.safetensors"), averages(run))
        for name, tensor in load_file(folder / "model.safetensors").items():
            torch.testing.assert_close(tensor, state[name], atol=1e-6, rtol=1e-6)
    before, after = (json.loads((each / "config.json").read_text())["text_config"] for each in (base, folder))
    assert after == {**before, "dtype": "float32"}


def test_the_type_is_the_one_that_was_asked_for(tmp_path: Path, base: Path) -> None:
    run = run_of(tmp_path, base)
    folder = export_run(run, tmp_path / "out", to="hf", dtype="bfloat16")
    tensors = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    for name, tensor in averages(run).items():
        assert torch.equal(tensors[name], tensor.bfloat16()), name


@torch.no_grad()
def test_adapters_become_a_folder_of_peft(tmp_path: Path, base: Path, prompt: Prompt) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    run = run_of(tmp_path, base, lora=LORA)
    folder = export_run(run, tmp_path / "out", to="lora", dtype="float32", verify=True)
    assert {path.name for path in folder.iterdir()} >= {
        "SHA256SUMS",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base) and settings["r"] == 4 and settings["lora_alpha"] == 6
    network = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), folder).eval()
    model = build(VlmConfig(type="vlm", pretrained=str(base), dtype="float32"), torch.device("cpu"))
    found = network(**model.collate([model.read(prompt)])).logits
    torch.testing.assert_close(found, trained_logits(base, run, prompt, lora=LORA), atol=1e-5, rtol=1e-5)
    again = trained_logits(base, tmp_path / "outputs" / "run", prompt, lora=LORA)
    gone_on = build(
        VlmConfig.model_validate(
            {"type": "vlm", "pretrained": str(base), "dtype": "float32", "lora": {**LORA, "path": str(folder)}}
        ),
        torch.device("cpu"),
    )
    torch.testing.assert_close(
        gone_on.network(**gone_on.collate([gone_on.read(prompt)])).logits, again, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("lora", [None, LORA])
def test_a_run_of_nanovlm_becomes_a_folder_of_nanovlm(tmp_path: Path, nano: Path, prompt: Prompt, lora: Any) -> None:
    run = run_of(tmp_path, nano, lora=lora)
    folder = export_run(run, tmp_path / "out", to="nanovlm", dtype="float32", verify=True)
    config = files.read_settings(folder / "config.json")
    tensors = load_file(folder / "model.safetensors")
    assert config == files.read_settings(nano / "config.json")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == layout.key_table(config)
    model = build(VlmConfig(type="vlm", pretrained=str(nano), dtype="float32"), torch.device("cpu"))
    reading = model.read(prompt)
    found = reference.logits(
        tensors, config, reading.ids_T[None], reading.inputs["pixel_values"][0], model.processor.image_token_id
    )
    torch.testing.assert_close(found, trained_logits(nano, run, prompt, lora=lora), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_adapters_of_nanovlm_have_its_own_names(tmp_path: Path, nano: Path, prompt: Prompt) -> None:
    run = run_of(tmp_path, nano, lora=LORA)
    folder = export_run(run, tmp_path / "out", to="lora", dtype="float32", verify=True)
    config = NanoVlmConfig.model_validate_json((nano / "config.json").read_text())
    adapters, tensors = load_file(folder / "adapter_model.safetensors"), load_file(nano / "model.safetensors")
    assert "base_model.model.decoder.blocks.0.attn.out_proj.lora_A.weight" in adapters
    assert "decoder.blocks.1.mlp.up_proj" in json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    model = build(VlmConfig(type="vlm", pretrained=str(nano), dtype="float32"), torch.device("cpu"))
    reading = model.read(prompt)
    found = reference.logits(
        merged_by_hand(tensors, adapters),
        config,
        reading.ids_T[None],
        reading.inputs["pixel_values"][0],
        model.processor.image_token_id,
    )
    torch.testing.assert_close(found, trained_logits(nano, run, prompt, lora=LORA), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_run_of_nanovlm_becomes_a_folder_of_transformers_that_reads_images_the_same(
    tmp_path: Path, nano: Path, prompt: Prompt, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six patches a side are placed alike in float32, and otherwise in bfloat16."""
    from transformers import AutoModelForImageTextToText

    run = run_of(tmp_path, nano)
    export_run(run, tmp_path / "rounded", to="hf")
    assert "transformers places the 6 patches a side of an image otherwise than nanoVLM" in capsys.readouterr().err
    folder = export_run(run, tmp_path / "out", to="hf", dtype="float32", verify=True)
    assert "patches a side" not in capsys.readouterr().err
    model = build(VlmConfig(type="vlm", pretrained=str(folder), dtype="float32"), torch.device("cpu"))
    batch = model.collate([model.read(prompt)])
    expected = trained_logits(nano, run, prompt)
    assert torch.equal(model.network(**batch).logits, expected)
    assert torch.equal(AutoModelForImageTextToText.from_pretrained(folder).eval()(**batch).logits, expected)


def test_a_fresh_model_is_exported(tmp_path: Path) -> None:
    reference.save_tokenizer(tmp_path / "tokenizer")
    fields = reference.settings(lm_tokenizer=str(tmp_path / "tokenizer")).model_dump()
    run = run_of(tmp_path, None, initialize={"vlm_config": fields, "load_backbone": False}, freeze=("vision",))
    folder = export_run(run, tmp_path / "out", to="nanovlm", dtype="float32")
    assert layout.key_table(files.read_settings(folder / "config.json"))
    assert torch.equal(
        load_file(folder / "model.safetensors")["decoder.norm.weight"], averages(run)["model.text_model.norm.weight"]
    )


def test_another_family_is_exported_with_all_files_of_its_processor(tmp_path: Path) -> None:
    start = qwen3_vl(tmp_path / "qwen")
    folder = export_run(run_of(tmp_path, start), tmp_path / "out", to="hf", dtype="float32", verify=True)
    assert (folder / "video_preprocessor_config.json").read_bytes() == (
        start / "video_preprocessor_config.json"
    ).read_bytes()
    with pytest.raises(ConfigError, match=r"is no nanoVLM model: its images are read .* export with --to hf"):
        export_run(tmp_path / "outputs" / "run", tmp_path / "other", to="nanovlm")


def test_an_export_that_lost_a_bit_leaves_nothing(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, base)

    def wrong(*arguments: Any) -> Any:
        model = exporting.reload_folder(*arguments)
        with torch.no_grad():
            model.network.model.text_model.norm.weight[0] += 0.5
        return model

    monkeypatch.setitem(vlm.ENTRY.exporters, "hf", Exporter(exporting.write_hf, wrong))
    with pytest.raises(ExportError, match=r"model\.text_model\.norm\.weight differs by up to 0\.5"):
        export_run(run, tmp_path / "out", to="hf", dtype="float32")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_compared(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, base)
    assert main(["export", str(run), "--to", "hf", "--output", str(tmp_path / "out"), "--verify"]) == 0
    said = capsys.readouterr().out
    assert "the largest difference is 0\n" in said and "2 texts written twice, all 32 tokens are the same" in said
    assert main(["export", str(run), "--to", "lora", "--output", str(tmp_path / "no")]) == 2
    assert "this run trained all weights (policy.lora is null)" in capsys.readouterr().err
