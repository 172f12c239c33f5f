"""RL that goes on from adapters: the start draws as the file does, is the reference, and is exported again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.finished_runs import make_run
from tests.support.tiny_deepgen import make_deepgen
from tests.support.tiny_pipelines import make_flux, make_qwen_image, make_sd3
from tests.support.trainer_runs import ROOT, read_metrics
from trainer.config import Config, ConfigError
from trainer.config.file import load_config
from trainer.doctor.prompts import check_base
from trainer.export import export_run
from trainer.loop import train
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.diffusers_export import LORA_FILE
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.lora import merged_state
from trainer.policies.registry import build_model
from trainer.types import Prompt

MAKERS: dict[str, Callable[[Path], Path]] = {"sd3": make_sd3, "flux": make_flux, "qwen_image": make_qwen_image}
FIRST = {"rank": 4, "alpha": 6.0}


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


def section(kind: str, base: Path, **lora: Any) -> dict[str, Any]:
    return {"type": kind, "pretrained": str(base), "dtype": "float32", "lora": lora, "max_sequence_length": 32}


def build(policy: dict[str, Any]) -> Any:
    services = {"services": {"s": {"urls": ["http://127.0.0.1:9"]}}, "columns": {"c": {"service": "s"}}}
    data = {"train": [{"path": "a.txt", "rewards": {"c": 1}}]}
    config = Config.model_validate(
        {"run_name": "r", "max_steps": 1, "policy": policy, "data": data, "rewards": services}
    )
    return build_model(config.policy, torch.device("cpu"))


def weights(policy: dict[str, Any]) -> dict[str, Tensor]:
    return merged_state(build(policy).network)


def expect_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def first_export(bases: dict[str, Path], kind: str) -> tuple[Path, dict[str, Tensor]]:
    """Adapters that another run trained, as a file, and the whole weights they make; written once for all tests."""
    folder = bases[kind].with_name(f"{kind}_first")
    if not folder.exists():
        run = make_run(folder, section(kind, bases[kind], **FIRST))
        export_run(run, folder / "whole", to="diffusers", dtype="float32")
        export_run(run, folder / "adapters", to="lora", dtype="float32")
    whole = load_file(str(folder / "whole" / "transformer" / "diffusion_pytorch_model.safetensors"))
    return folder / "adapters" / LORA_FILE, whole


@pytest.mark.parametrize("kind", list(MAKERS))
@pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 6.0}, {"rank": 8, "alpha": 8.0}])
def test_the_start_draws_as_the_file_whatever_rank_and_scale(
    tmp_path: Path, bases: dict[str, Path], kind: str, lora: dict[str, Any]
) -> None:
    file, whole = first_export(bases, kind)
    expect_same(weights(section(kind, bases[kind], path=str(file), **lora)), whole)
    assert not all(torch.equal(t, whole[n]) for n, t in weights(section(kind, bases[kind], **lora)).items())
    folder = section(kind, bases[kind], path=str(file.parent), **lora)
    expect_same(weights(folder), whole)
    assert f"with the adapters of {file.parent}" in build(folder).about


def test_they_are_exported_again(tmp_path: Path, bases: dict[str, Path]) -> None:
    """A second run that moved them: its export is of the base, not of what it started from."""
    file, _ = first_export(bases, "sd3")
    run = make_run(tmp_path / "second", section("sd3", bases["sd3"], path=str(file), rank=8, alpha=8.0), step=4)
    whole = export_run(run, tmp_path / "whole2", to="diffusers", dtype="float32", verify=True)
    again = export_run(run, tmp_path / "adapters2", to="lora", dtype="float32")
    expected = load_file(str(whole / "transformer" / "diffusion_pytorch_model.safetensors"))
    expect_same(weights(section("sd3", bases["sd3"], path=str(again), rank=8, alpha=8.0)), expected)


def as_peft(tensors: dict[str, Tensor], folder: Path) -> Path:
    """As flow_grpo and PEFT save: a folder `lora` with settings beside; the scale is 3 / 4."""
    (folder / "lora").mkdir(parents=True)
    named = {name.replace("transformer.", "base_model.model.", 1): tensor for name, tensor in tensors.items()}
    save_file(named, str(folder / "lora" / "adapter_model.safetensors"))
    (folder / "lora" / "adapter_config.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 3, "target_modules": ["to_q"]})
    )
    return folder


def as_metadata(tensors: dict[str, Tensor], folder: Path) -> Path:
    """As diffusers saves with the adapter's settings in the file's header."""
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 3, "transformer.r": 4})}
    folder.mkdir()
    save_file(tensors, str(folder / "mine.safetensors"), metadata=metadata)
    return folder / "mine.safetensors"


def as_alphas(tensors: dict[str, Tensor], folder: Path) -> Path:
    """As older diffusers: up and down, and an alpha for each layer."""
    folder.mkdir()
    named = {n.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): t for n, t in tensors.items()}
    layers = {name.partition(".lora_A")[0] for name in tensors if ".lora_A" in name}
    save_file({**named, **{f"{layer}.alpha": torch.tensor(3.0) for layer in layers}}, str(folder / "old.safetensors"))
    return folder


@pytest.mark.parametrize("write", [as_peft, as_metadata, as_alphas])
def test_other_programs_files_with_their_scales(
    tmp_path: Path, bases: dict[str, Path], write: Callable[[dict[str, Tensor], Path], Path]
) -> None:
    file, whole = first_export(bases, "sd3")
    base = load_file(str(bases["sd3"] / "transformer" / "diffusion_pytorch_model.safetensors"))
    path = write(load_file(str(file)), tmp_path / "other")
    found = weights(section("sd3", bases["sd3"], path=str(path), rank=4, alpha=4.0))
    expect_same(found, {name: base[name] + 0.75 * (tensor - base[name]) for name, tensor in whole.items()})


def test_names_of_comfyui_are_translated(tmp_path: Path, bases: dict[str, Path]) -> None:
    file, whole = first_export(bases, "qwen_image")
    named = {n.replace("transformer.", "diffusion_model.", 1): t for n, t in load_file(str(file)).items()}
    save_file(named, str(tmp_path / "comfy.safetensors"))
    path = str(tmp_path / "comfy.safetensors")
    expect_same(weights(section("qwen_image", bases["qwen_image"], path=path, **FIRST)), whole)


def test_deepgen_takes_adapters_of_its_transformer(tmp_path: Path, bases: dict[str, Path]) -> None:
    tiny = make_deepgen(tmp_path / "deepgen")
    network = build(tiny.section(lora=FIRST)).network
    tensors = {
        name.replace(".default", ""): torch.full_like(p, 0.01)
        for name, p in network.named_parameters()
        if p.requires_grad
    }
    save_file(tensors, str(tmp_path / "adapter_model.safetensors"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "r": 4}))
    started = build(tiny.section(lora={**FIRST, "path": str(tmp_path / "adapter_model.safetensors")}))
    layer = next(m for m in started.network.modules() if hasattr(m, "get_delta_weight"))
    torch.testing.assert_close(layer.get_delta_weight("default"), torch.full_like(layer.weight, 4 * 0.01**2))


def test_the_reference_is_the_start_and_stays(tmp_path: Path, bases: dict[str, Path]) -> None:
    file, _ = first_export(bases, "sd3")
    model = build(section("sd3", bases["sd3"], path=str(file), **FIRST))
    before = {name for name, p in model.network.named_parameters() if p.requires_grad}
    policy = FlowPolicy(model, keep_reference=True)
    assert {name for name, p in model.network.named_parameters() if p.requires_grad} == before
    plan = SamplingPlan(3, 2, noise_level=0.7, stochastic_steps=(0, 1), trained_steps=(0, 1), height=16, width=16)
    (rollout,) = policy.sample([Prompt("a", "a cat")], 2, [1, 2], plan)
    replay = policy.replay(rollout, slice(0, 2), reference=True)
    assert torch.equal(replay.logp_BS.detach(), rollout.logp_BS)
    assert torch.equal(replay.kl_BS["velocity"].detach(), torch.zeros(2, 2))
    x, sigma_B = rollout.trace.x_BT[:, 0], torch.full((2,), 0.8)
    start = policy.predict(rollout.prompts, x, sigma_B, reference=True)
    assert torch.equal(start, policy.predict(rollout.prompts, x, sigma_B).detach())
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if name in before:
                parameter.add_(0.05)
    assert torch.equal(policy.predict(rollout.prompts, x, sigma_B, reference=True), start)
    moved = policy.predict(rollout.prompts, x, sigma_B)
    assert not torch.equal(moved.detach(), start)
    moved.sum().backward()
    grads = {name for name, p in model.network.named_parameters() if p.grad is not None}
    assert grads == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 2}, "has the rank 4, more than policy.lora.rank = 2: set it to 4"),
        ({"target_modules": ("attn.to_q",)}, "get none here, first transformer_blocks"),
        ({"path": "nowhere"}, "give a .safetensors file, or a folder with one of"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, bases: dict[str, Path], change: dict[str, Any], words: str
) -> None:
    file, _ = first_export(bases, "sd3")
    with pytest.raises(ConfigError, match=words):
        build(section("sd3", bases["sd3"], **{**FIRST, "path": str(file), **change}))


def test_files_that_are_none_are_refused(tmp_path: Path, bases: dict[str, Path]) -> None:
    path = tmp_path / "a.safetensors"
    name = "transformer.transformer_blocks.0.attn.to_q"
    a, b = torch.zeros(4, 32), torch.zeros(32, 4)
    files: list[tuple[dict[str, Tensor], str]] = [
        ({f"{name}.lora_A.weight": a}, "is not whole"),
        ({f"{name}.lora_A.weight": a[:, :8].contiguous(), f"{name}.lora_B.weight": b}, "is for a layer of 8 inputs"),
        ({"text_encoder.x.lora_A.weight": a, "text_encoder.x.lora_B.weight": b}, "without text encoders and DoRA"),
        ({f"{name}.lora_magnitude_vector": a[0]}, "are no low-rank adapters"),
    ]
    for tensors, words in files:
        save_file(tensors, str(path))
        with pytest.raises(ConfigError, match=words):
            build(section("sd3", bases["sd3"], path=str(path), **FIRST))
    path.write_bytes(b"no file of tensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        build(section("sd3", bases["sd3"], path=str(path), **FIRST))


def test_a_run_goes_on_from_a_file_and_the_doctor_looks_at_it(
    tmp_path: Path, bases: dict[str, Path], recipe: Callable[..., Path]
) -> None:
    file, _ = first_export(bases, "sd3")
    policy = section("sd3", bases["sd3"], path=str(file), **FIRST)
    sampling = {"prompts_per_step": 2, "group_size": 2, "micro_batch_size": 4, "num_inference_steps": 2, "shift": None}
    settings = {
        "policy": policy,
        "sampling": {**sampling, "height": 16, "width": 16},
        "objective": {"kl_beta": 0.01},
        "evaluation": {},
        "max_steps": 2,
    }
    config = load_config(recipe("on", **settings), Config)
    assert train(config) == 0
    rows = read_metrics(tmp_path / "outputs" / "on")
    assert rows[-2]["kl"] == 0.0 < rows[-1]["kl"], "the reference is what the run started from"
    export_run(tmp_path / "outputs" / "on", tmp_path / "out", to="lora", dtype="float32")
    with safe_open(str(tmp_path / "out" / LORA_FILE), framework="pt") as opened:
        assert not any("start" in name for name in opened.keys())  # noqa: SIM118
    told = [(f.status, f.message) for f in check_base(config)]
    assert any(status == "OK" and "adapters of rank 4" in message for status, message in told)
