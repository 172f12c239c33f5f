"""Exports of policies that start from a diffusers folder, read back by diffusers itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.finished_runs import make_run
from tests.support.tiny_pipelines import make_flux, make_qwen_image, make_sd3
from tests.support.trainer_runs import ROOT
from trainer.checkpoint import Checkpoint, list_checkpoints
from trainer.config import ConfigError, Sd3Config
from trainer.export import DTYPES, export_run
from trainer.export.comparison import ExportError, compare_weights, settle
from trainer.policies.flow.diffusers_export import LORA_FILE, reload_lora, write_lora
from trainer.policies.registry import build_model

MAKERS: dict[str, Callable[[Path], Path]] = {"sd3": make_sd3, "flux": make_flux, "qwen_image": make_qwen_image}
# Each on its own text encoders and transformer; the same code writes all, so one is enough in the default run.
EACH = ["sd3", *(pytest.param(name, marks=pytest.mark.slow) for name in MAKERS if name != "sd3")]
LORA = {"rank": 4, "alpha": 6.0}  # a scale of 1.5, so that a forgotten or doubled one shows


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    yield


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


def section(name: str, base: Path, lora: dict[str, Any] | None) -> dict[str, Any]:
    return {"type": name, "pretrained": str(base), "dtype": "float32", "lora": lora, "max_sequence_length": 32}


def averages(run: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint.open(list_checkpoints(run / "checkpoints")[-1])
    return {name: checkpoint.read(name)["average"] for name in checkpoint.names}


def merged_by_hand(base: dict[str, Tensor], adapters: dict[str, Tensor]) -> dict[str, Tensor]:
    """W + (alpha / r) B A (arXiv 2106.09685, section 4.1), on the files' own tensors."""
    merged = dict(base)
    for name, a in adapters.items():
        if ".lora_A." in name:
            layer = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            b = adapters[name.replace(".lora_A.", ".lora_B.")]
            merged[f"{layer}.weight"] = base[f"{layer}.weight"] + LORA["alpha"] / LORA["rank"] * (b @ a)
    return merged


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(str(folder / "transformer" / "diffusion_pytorch_model.safetensors"))


def test_a_full_run_becomes_a_pipeline_folder(tmp_path: Path, bases: dict[str, Path]) -> None:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    run = make_run(tmp_path / "outputs", section("sd3", bases["sd3"], None))
    (bases["sd3"] / "single_file_copy.safetensors").write_bytes(b"large")
    folder = export_run(run, tmp_path / "out", to="diffusers", dtype="float32", verify=True)
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True)
    assert type(pipeline.transformer) is SD3Transformer2DModel
    state = pipeline.transformer.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in averages(run).items())
    assert not (folder / "single_file_copy.safetensors").exists()
    other = bases["sd3"] / "vae" / "diffusion_pytorch_model.safetensors"
    assert (folder / "vae" / other.name).read_bytes() == other.read_bytes()
    sums = (folder / "SHA256SUMS").read_text()
    assert "model_index.json" in sums and "transformer/diffusion_pytorch_model.safetensors" in sums


@pytest.mark.parametrize("name", EACH)
def test_adapters_are_merged_into_a_pipeline_folder(tmp_path: Path, bases: dict[str, Path], name: str) -> None:
    run = make_run(tmp_path / "outputs", section(name, bases[name], LORA))
    folder = export_run(run, tmp_path / "out", to="diffusers", dtype="float32", verify=True)
    expected, found = merged_by_hand(weights_of(bases[name]), averages(run)), weights_of(folder)
    assert found.keys() == expected.keys()
    changed = 0
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-6)
        changed += not torch.equal(tensor, weights_of(bases[name])[key])
    assert changed > 0
    assert (
        json.loads((folder / "model_index.json").read_text())["_class_name"]
        .lower()
        .startswith({"sd3": "stablediffusion3"}.get(name, name.replace("_", "")))
    )


@pytest.mark.parametrize("name", EACH)
def test_adapters_become_a_file_that_diffusers_loads(tmp_path: Path, bases: dict[str, Path], name: str) -> None:
    """The whole way a user goes: base pipeline, load_lora_weights, fuse; compared with W + (alpha / r) B A."""
    from diffusers import DiffusionPipeline

    run = make_run(tmp_path / "outputs", section(name, bases[name], LORA))
    folder = export_run(run, tmp_path / "out", to="lora", dtype="float32", verify=True)
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", LORA_FILE]
    assert all(key.startswith("transformer.") for key in load_file(str(folder / LORA_FILE)))
    pipeline = DiffusionPipeline.from_pretrained(bases[name], local_files_only=True)
    pipeline.load_lora_weights(str(folder), weight_name=LORA_FILE)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    found = pipeline.transformer.state_dict()
    for key, tensor in merged_by_hand(weights_of(bases[name]), averages(run)).items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 0.0, -1.0, 0.5])
def test_small_adapters_that_were_written_wrong_are_found(
    tmp_path: Path, bases: dict[str, Path], factor: float
) -> None:
    """They change their weights by less than bfloat16 tells apart beside them: what they add is compared alone."""
    config = Sd3Config.model_validate(section("sd3", bases["sd3"], {"rank": 32, "alpha": 64.0}) | {"dtype": "bfloat16"})
    torch.manual_seed(0)
    model = build_model(config, torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.002)
    settle(model, torch.bfloat16, merge=False)
    write_lora(model, tmp_path, torch.bfloat16)
    tensors = load_file(str(tmp_path / LORA_FILE))
    changed = {name: tensor * factor if ".lora_B." in name else tensor for name, tensor in tensors.items()}
    save_file(changed, str(tmp_path / LORA_FILE), metadata={"format": "pt"})
    reloaded = reload_lora(config, tmp_path, torch.device("cpu"))
    if factor == 1.0:
        compare_weights(model, reloaded, adapters=True, dtype=torch.bfloat16)
        return
    with pytest.raises(ExportError, match=r"the adapter of transformer_blocks\..* adds up to"):
        compare_weights(model, reloaded, adapters=True, dtype=torch.bfloat16)


def test_a_full_run_has_no_adapters(tmp_path: Path, bases: dict[str, Path]) -> None:
    run = make_run(tmp_path / "outputs", section("sd3", bases["sd3"], None))
    with pytest.raises(ConfigError, match=r"policy\.lora is null.*use --to diffusers"):
        export_run(run, tmp_path / "out", to="lora")


def test_sixteen_bits_are_rounded_once(tmp_path: Path, bases: dict[str, Path]) -> None:
    run = make_run(tmp_path / "outputs", section("sd3", bases["sd3"], None))
    found = weights_of(export_run(run, tmp_path / "out", to="diffusers", verify=True))
    assert all(torch.equal(found[name], tensor.to(torch.bfloat16)) for name, tensor in averages(run).items())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", EACH)
def test_adapters_of_a_bfloat16_run_are_written_in_any_type(
    tmp_path: Path, bases: dict[str, Path], name: str, dtype: str
) -> None:
    """They are compared as they are in the file; the base's type would round them."""
    run = make_run(tmp_path / "outputs", section(name, bases[name], LORA) | {"dtype": "bfloat16"})
    folder = export_run(run, tmp_path / "out", to="lora", dtype=dtype, verify=name == "sd3")
    found = load_file(str(folder / LORA_FILE))
    assert {tensor.dtype for tensor in found.values()} == {DTYPES[dtype]}
    for key, tensor in averages(run).items():
        plain = key.replace("base_model.model.", "transformer.").replace(".default", "")
        rounded = tensor.to(DTYPES[dtype]).float() * (LORA["alpha"] / LORA["rank"] if ".lora_B." in key else 1.0)
        assert torch.equal(found[plain], rounded.to(DTYPES[dtype])), key


def test_tiny_adapters_are_written_in_float16(tmp_path: Path, bases: dict[str, Path]) -> None:
    """After few steps B is about 1e-7, where float16 has but multiples of 2^-24."""
    model = build_model(Sd3Config.model_validate(section("sd3", bases["sd3"], LORA)), torch.device("cpu"))
    with torch.no_grad():
        for key, parameter in model.network.named_parameters():
            if ".lora_B." in key:
                parameter.normal_(std=2e-7)
    settle(model, torch.float16, merge=False)
    write_lora(model, tmp_path, torch.float16)
    reloaded = reload_lora(model.config, tmp_path, torch.device("cpu"))
    told = compare_weights(model, reloaded, adapters=True, dtype=torch.float16)
    assert 0 < float(told.rpartition(" ")[2]) < 1e-6, "they were rounded, and not to nothing"


def test_a_number_too_large_for_the_type_is_named(tmp_path: Path, bases: dict[str, Path]) -> None:
    model = build_model(Sd3Config.model_validate(section("sd3", bases["sd3"], LORA)), torch.device("cpu"))
    with torch.no_grad():
        next(p for p in model.network.parameters() if p.requires_grad).fill_(70_000)
    with pytest.raises(
        ExportError, match=r"holds 70000, more than the 65504 that float16 can hold: .*--dtype bfloat16"
    ):
        settle(model, torch.float16, merge=False)


@pytest.mark.parametrize("reflinks", [True, False])
def test_no_file_of_an_export_is_one_of_the_base(
    tmp_path: Path, bases: dict[str, Path], reflinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is edited or written in place in the export, the base model stays as it was."""
    if not reflinks:

        def refuse(*_: Any) -> int:
            raise OSError(18, "another disk")

        monkeypatch.setattr("os.copy_file_range", refuse)
    base = make_sd3(tmp_path / "base")
    before = {path.relative_to(base): path.read_bytes() for path in base.rglob("*") if path.is_file()}
    folder = export_run(make_run(tmp_path / "outputs", section("sd3", base, None)), tmp_path / "out", to="diffusers")
    copies = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    for part, data in before.items():
        if part.parts[0] != "transformer":
            assert copies[part].read_bytes() == data, part
    for path in copies.values():
        assert not path.is_symlink() and path.stat().st_nlink == 1
        with path.open("r+b") as file:  # as json.dump and safetensors write: in place
            file.write(b"edited")
    assert {part: (base / part).read_bytes() for part in before} == before
