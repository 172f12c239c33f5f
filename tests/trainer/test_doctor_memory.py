"""What the doctor says a process holds is what a built policy, its engine and its averages hold, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.scaling_plan import PARAMETERS, Plan
from tests.support.tiny_deepgen import make_deepgen
from tests.support.tiny_pipelines import make_flux, make_qwen_image, make_sd3
from trainer.config import Config
from trainer.config.file import load_config
from trainer.doctor.machine import GIB, check_memory, check_ports
from trainer.doctor.weights import Sizes, held_bytes, planned_ranks, saved_bytes, sizes
from trainer.engine import build_engine
from trainer.objectives import needs_reference
from trainer.policies.registry import build_policy
from trainer.processes.distributed import World
from trainer.update.ema import Ema

LORA = {"rank": 4, "alpha": 8.0}
MAKERS: dict[str, Callable[[Path], Path]] = {"sd3": make_sd3, "flux": make_flux, "qwen_image": make_qwen_image}
RECIPE = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    def make(kind: str, *overrides: str, **policy: Any) -> Config:
        if kind == "deepgen":
            section = make_deepgen(tmp_path / kind).section(**policy)
        else:
            section = {"type": kind, "pretrained": str(MAKERS[kind](tmp_path / kind)), "dtype": "float32", **policy}
        return load_config(RECIPE, Config, [f"policy={json.dumps(section)}", *overrides])

    return make


def num_bytes(*modules: torch.nn.Module) -> int:
    return sum(t.nbytes for module in modules for t in (*module.parameters(), *stored_buffers(module)))


def stored_buffers(module: torch.nn.Module) -> list[torch.Tensor]:
    """Tensors that are in a file with the weights, and no weights."""
    return [t for t in module.state_dict(keep_vars=True).values() if not isinstance(t, torch.nn.Parameter)]


CASES = [("sd3", None), ("sd3", LORA), ("flux", LORA), ("qwen_image", LORA), ("deepgen", None), ("deepgen", LORA)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "lora"), CASES)
def test_what_is_held_is_what_is_told(
    config: Callable[..., Config], kind: str, lora: dict[str, Any] | None, dtype: str
) -> None:
    loaded = config(kind, "objective.kl_beta=0.1", lora=lora, dtype=dtype)
    found = sizes(loaded)
    assert found is not None
    told = held_bytes(loaded, found, ranks=1)

    policy: Any = build_policy(loaded.policy, torch.device("cpu"), keep_reference=needs_reference(loaded.objective))
    network = policy.trainable
    engine: Any = build_engine(network, loaded.optim, loaded.distributed, World(0, 1, torch.device("cpu")))
    for parameter in engine._parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    engine.step(1e-3)
    moments = [m for state in engine.optimizers["adamw"].state.values() for m in state.values() if m.ndim]
    trained = [p for p in network.parameters() if p.requires_grad]
    model = policy.model
    if kind == "deepgen":
        own = {id(p) for p in network.parameters()}
        others = sum(p.nbytes for p in model.networks.parameters() if id(p) not in own)
    else:
        others = num_bytes(*model.texts.encoders.modules, model.vae.vae)
    held = {
        "weights": sum(p.nbytes for p in trained),
        "gradients": sum(p.grad.nbytes for p in trained),
        "optimizer": sum(m.nbytes for m in moments if m.numel() > 1),
        "average": sum(t.nbytes for t in Ema(network, 0.9).shadow.values()),
        "frozen weights": num_bytes(network) - sum(p.nbytes for p in trained) + others,
    }
    if lora is None:
        held["reference"] = num_bytes(policy.copy)
    assert told.device == held and told.host == 0


def test_a_gradient_of_the_kl_is_held_where_it_is_kept_apart(config: Callable[..., Config]) -> None:
    """As the engine keeps it: of the trained parameters alone, and no larger than the gradient."""
    always, kl = "optim.early_gradient=always", "objective.kl_beta=0.1"
    for overrides, held in (
        ((always, kl), True),
        ((kl,), False),
        ((always,), False),
        ((always, kl, "advantage.type=grpo"), False),
        ((always, kl, "distributed.deepspeed=configs/deepspeed/zero2.json"), False),
    ):
        loaded = config("sd3", *overrides, lora=LORA)
        found = sizes(loaded)
        assert found is not None
        told = held_bytes(loaded, found, ranks=1).device
        assert ("gradients of the KL" in told) == held, overrides
        assert told.get("gradients of the KL", told["gradients"]) == told["gradients"] == 4 * found.trained


def test_the_stages_of_zero_are_those_of_the_scaling_plan(config: Callable[..., Config], tmp_path: Path) -> None:
    sd3 = Sizes(trained=PARAMETERS, network=0, others=0)
    for stage in range(4):
        path = tmp_path / f"{stage}.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        loaded = config("sd3", f"distributed.deepspeed={path}")
        for ranks in (1, 8):
            told = sum(held_bytes(loaded, sd3, ranks).device.values())
            assert told == pytest.approx(Plan(gpus=ranks).resident_bytes(stage))


def test_a_reference_is_shared_out_with_the_weights(config: Callable[..., Config]) -> None:
    """In bfloat16 where the policy computes in it, and cut into parts by ZeRO-3 alone."""
    sd3 = Sizes(trained=800, network=0, others=0, positions=40, reference=1600)
    for stage, told in ((2, 1640.0), (3, 240.0)):
        loaded = config("sd3", "objective.kl_beta=0.1", f"distributed.deepspeed=configs/deepspeed/zero{stage}.json")
        assert held_bytes(loaded, sd3, ranks=8).device["reference"] == told


def test_what_is_offloaded_is_in_the_machines_memory(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    sd3 = Sizes(trained=PARAMETERS, network=0, others=0)
    loaded = config("sd3", "distributed.deepspeed=configs/deepspeed/zero3_offload.json")
    for ranks in (1, 8):
        told = held_bytes(loaded, sd3, ranks)
        assert sum(told.device.values()) == 0 and told.host == pytest.approx(Plan(gpus=ranks).resident_bytes(3))
    monkeypatch.setattr("trainer.doctor.machine.pick_device", lambda asked: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (0, 80 * GIB))
    monkeypatch.setattr("trainer.doctor.machine.sizes", lambda config: sd3)
    monkeypatch.setattr("trainer.doctor.machine._memory", lambda: (50 * GIB, 128 * GIB))
    on_device, on_host = check_memory(loaded)
    assert (on_device.status, on_host.status) == (
        "OK",
        "WARN",
    )  # 50.1 GiB, 1 for the trainer itself, 2.5 for its services, and 16 bytes a parameter to save
    assert "50.0 GiB of the machine's memory are free, about 87.1 needed (33.4 while a" in on_host.message
    assert "offloads" in on_host.remedy


def test_what_a_save_copies_is_shared_out(config: Callable[..., Config]) -> None:
    """Weight, two moments and the average of each parameter; a moving sampling policy too."""
    sd3 = Sizes(trained=100, network=7, others=7)
    assert saved_bytes(config("sd3"), sd3, ranks=1) == 1600
    assert saved_bytes(config("sd3"), sd3, ranks=8) == 200
    moving = config("sd3", "objective.type=diffusion_nft", "objective.old_decay=0.5")
    assert saved_bytes(moving, sd3, ranks=1) == 2000


def test_encoders_that_are_kept_away_and_a_sampling_policy_count(config: Callable[..., Config]) -> None:
    here, away = (sizes(config("sd3", offload_encoders=keep)) for keep in (False, True))
    assert here is not None and away is not None and here.others > away.others > 0, "the autoencoder stays"
    loaded = config("sd3", "objective.type=diffusion_nft", "objective.old_decay=0.5")
    told = held_bytes(loaded, here, ranks=1).device
    assert told["sampling policy"] == told["weights"]


@pytest.mark.parametrize(("share", "status"), [(0.5, "OK"), (0.9, "WARN"), (1.1, "FAIL")])
def test_a_device_that_is_too_small_fails_before_the_run(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, share: float, status: str
) -> None:
    loaded = config("sd3")
    found = sizes(loaded)
    assert found is not None
    held = sum(held_bytes(loaded, found, ranks=1).device.values())
    monkeypatch.setattr("trainer.doctor.machine.pick_device", lambda asked: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (0, held / share))
    finding, _ = check_memory(loaded)
    assert (finding.area, finding.status) == ("memory", status)
    assert f"before activations each of 1 process holds {held / GIB:.1f} GiB" in finding.message
    assert ("zero2.json" in finding.remedy) == (status != "OK")


def test_without_the_files_nothing_is_guessed(config: Callable[..., Config], tmp_path: Path) -> None:
    loaded = config("sd3")
    (tmp_path / "sd3" / "vae" / "config.json").unlink()
    assert sizes(loaded) is None
    deepgen = config("deepgen")
    Path(str(deepgen.policy.model_dump()["checkpoint"])).write_bytes(b"damaged")
    assert sizes(deepgen) is None


def test_a_variant_of_the_same_weights_is_not_counted_twice(config: Callable[..., Config], tmp_path: Path) -> None:
    loaded = config("sd3")
    before = sizes(loaded)
    folder = tmp_path / "sd3" / "vae"
    (file,) = folder.glob("*.safetensors")
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_bytes(file.read_bytes())
    assert sizes(loaded) == before


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, 1),
        ({"NGPUS": "8", "NNODES": "4"}, 32),
        ({"WORLD_SIZE": "2", "NGPUS": "8"}, 2),
        ({"NGPUS": "", "NNODES": "4"}, 4),  # empty is not set, as in train.sh
        ({"NGPUS": "08", "NNODES": ""}, 8),
        ({"WORLD_SIZE": "", "NGPUS": "8"}, 8),
        ({"NGPUS": "eight", "NNODES": "2"}, 2),
        ({"NGPUS": "0", "NNODES": "-1"}, 1),
    ],
)
def test_the_number_of_processes(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], ranks: int) -> None:
    for name in ("WORLD_SIZE", "NGPUS", "NNODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert planned_ranks() == ranks


@pytest.mark.parametrize("name", ["NGPUS", "NNODES"])
@pytest.mark.parametrize(("value", "fails"), [("", False), ("2", False), ("two", True), ("0", True), ("²", True)])
def test_a_number_of_processes_that_is_none_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, fails: bool
) -> None:
    monkeypatch.setenv(name, value)
    failed = [f for f in check_memory(load_config(RECIPE, Config)) if f.status == "FAIL"]
    assert [f.message for f in failed] == ([f"{name}={value} is no number of processes"] if fails else [])
    assert all("whole number from 1" in f.remedy for f in failed)


@pytest.mark.parametrize(
    ("nodes", "port", "checked"), [("", "1", 0), ("two", "1", 0), ("2", "²", 0), ("2", "65535", 1)]
)
def test_the_port_of_several_nodes_alone_is_tried(
    monkeypatch: pytest.MonkeyPatch, nodes: str, port: str, checked: int
) -> None:
    monkeypatch.setenv("NNODES", nodes)
    monkeypatch.setenv("MASTER_PORT", port)
    monkeypatch.delenv("NODE_RANK", raising=False)
    found = [f for f in check_ports(load_config(RECIPE, Config)) if "MASTER_PORT" in f.message]
    assert len(found) == checked
