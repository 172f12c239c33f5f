"""Diffusers folders whose weights are published in a variant alone, such as model.fp16.safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.finished_runs import make_run
from tests.support.tiny_deepgen import make_deepgen
from tests.support.tiny_pipelines import make_flux, make_qwen_image, make_sd3
from tests.support.trainer_runs import ROOT
from trainer.export import export_run
from trainer.policies.registry import build_model
from trainer.policies.sizes import shapes_of
from trainer.policies.weight_files import plain_name, variant_of
from trainer.types import Prompt

MAKERS: dict[str, Callable[[Path], Path]] = {"sd3": make_sd3, "flux": make_flux, "qwen_image": make_qwen_image}


def as_variant(folder: Path, name: str = "fp16", *, sharded: str | None = None) -> None:
    """Rename all weights of a model's folders to a variant; those of the part `sharded` into two files with an index."""
    for path in sorted(folder.rglob("*.safetensors")):
        if path.parent.name != sharded:
            path.rename(path.with_name(f"{path.stem}.{name}.safetensors"))
            continue
        tensors = load_file(str(path))
        names = sorted(tensors)
        shards = {f"{path.stem}.{name}-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
        for shard, part in shards.items():
            save_file({key: tensors[key] for key in part}, str(path.with_name(shard)), metadata={"format": "pt"})
        weight_map = {key: shard for shard, part in shards.items() for key in part}
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
        path.with_name(f"{path.stem}.safetensors.index.{name}.json").write_text(json.dumps(index))
        path.unlink()


def build(kind: str, folder: Path) -> Any:
    from trainer.config import Config

    policy = {"type": kind, "pretrained": str(folder), "dtype": "float32", "lora": None, "max_sequence_length": 32}
    config = {
        "run_name": "r",
        "max_steps": 1,
        "policy": policy,
        "data": {"train": [{"path": "a.txt", "rewards": {"c": 1}}]},
    }
    services = {"services": {"s": {"urls": ["http://127.0.0.1:9"]}}, "columns": {"c": {"service": "s"}}}
    return build_model(Config.model_validate({**config, "rewards": services}).policy, torch.device("cpu"))


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "sharded"), [("sd3", None), ("sd3", "text_encoder_3"), ("flux", "transformer"), ("qwen_image", None)]
)
def test_a_folder_of_a_variant_is_the_same_model(tmp_path: Path, kind: str, sharded: str | None) -> None:
    plain = MAKERS[kind](tmp_path / "plain")
    shutil.copytree(plain, tmp_path / "fp16")
    as_variant(tmp_path / "fp16", sharded=sharded)
    assert variant_of(tmp_path / "fp16" / "transformer") == "fp16" and variant_of(plain / "transformer") is None
    assert shapes_of(tmp_path / "fp16" / "transformer") == shapes_of(plain / "transformer")
    one, other = build(kind, plain), build(kind, tmp_path / "fp16")
    expected, found = one.network.state_dict(), other.network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for name, tensor in one.encode([Prompt("a", "a cat")]).items():
        assert torch.equal(other.encode([Prompt("a", "a cat")])[name], tensor), name
    latents = torch.randn(1, *one.latent_shape(None, None))
    assert torch.equal(one.decode(latents), other.decode(latents))


def test_weights_without_a_variant_come_first(tmp_path: Path) -> None:
    folder = make_sd3(tmp_path / "both")
    for path in sorted(folder.rglob("*.safetensors")):
        path.with_name(f"{path.stem}.fp16.safetensors").write_bytes(b"not read")
    assert variant_of(folder / "vae") is None
    build("sd3", folder)


@pytest.mark.parametrize("sharded", [None, "text_encoder_3"])
def test_an_export_is_read_without_naming_the_variant(
    tmp_path: Path, sharded: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusion3Pipeline

    monkeypatch.chdir(ROOT)
    base = make_sd3(tmp_path / "base")
    as_variant(base, sharded=sharded)
    policy = {"type": "sd3", "pretrained": str(base), "dtype": "float32", "max_sequence_length": 32}
    folder = export_run(make_run(tmp_path / "outputs", policy), tmp_path / "out", to="diffusers", verify=True)
    StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    assert [path.name for path in (folder / "vae").glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]


def test_deepgens_base_models_too(tmp_path: Path) -> None:
    tiny = make_deepgen(tmp_path)
    section = tiny.section()
    from trainer.config import DeepGenConfig

    plain = build_model(DeepGenConfig.model_validate(section), torch.device("cpu"))
    for field in ("sd3_path", "qwen_path"):
        as_variant(Path(section[field]))
    variant = build_model(DeepGenConfig.model_validate(section), torch.device("cpu"))
    expected, found = plain.network.state_dict(), variant.network.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_names(tmp_path: Path) -> None:
    for name in ("model.fp16.safetensors", "model.bf16.safetensors", "model-00001-of-00002.fp16.safetensors"):
        (tmp_path / name).touch()
    assert variant_of(tmp_path) == "fp16"
    assert plain_name(tmp_path / "model.fp16.safetensors") == "model.safetensors"
    assert plain_name(tmp_path / "model.bf16.safetensors") is None, "not read"
    assert plain_name(tmp_path / "model.safetensors.index.fp16.json") == "model.safetensors.index.json"
    assert plain_name(tmp_path / "model-00001-of-00002.fp16.safetensors") == "model-00001-of-00002.fp16.safetensors"
    assert plain_name(tmp_path / "tokenizer.v1.json") == "tokenizer.v1.json"
    assert variant_of(tmp_path / "nowhere") is None
