"""Groups of parameters in the engine of one process: optimizers, rates, what is refused, and a resume with Muon."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from tests.support.tiny_updates import make_policy
from trainer.config import ConfigError, DistributedConfig, OptimConfig, VlmConfig
from trainer.config.policy import TinyConfig
from trainer.config.programs import check_groups
from trainer.doctor import examine
from trainer.engine import Engine, build_engine
from trainer.processes.distributed import World

WORLD = World(0, 1, torch.device("cpu"))
GROUP_OF = {"0.weight": "matrices", "2.weight": "matrices", "0.bias": "biases", "2.bias": "biases"}


def build(groups: dict[str, Any], **optim: Any) -> tuple[nn.Module, Engine]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 3))
    config = OptimConfig(lr=1e-2, groups=groups, max_grad_norm=1e9, **optim)
    return module, build_engine(module, config, DistributedConfig(), WORLD, GROUP_OF)


def take_step(module: nn.Module, engine: Engine, number: int, lr: float = 1e-2) -> None:
    engine.zero_grad()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
    engine.backward(module(x).pow(2).sum(), last=True)
    engine.step(lr)


def test_muon_for_one_group_is_torchs_muon_beside_adamw() -> None:
    """Three steps equal those of the two optimizers made by hand, at half of every peak rate in the last step."""
    groups = {"matrices": {"lr": 0.02, "optimizer": "muon", "weight_decay": 0.1}}
    module, engine = build(groups, weight_decay=0.01)
    by_hand, _ = build({})
    matrices = [p for p in by_hand.parameters() if p.dim() == 2]
    biases = [p for p in by_hand.parameters() if p.dim() == 1]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1),
        torch.optim.AdamW(biases, lr=0.01, weight_decay=0.01),
    ]
    for number, share in enumerate((1.0, 1.0, 0.5)):
        take_step(module, engine, number, lr=1e-2 * share)
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        by_hand.zero_grad()
        by_hand(x).pow(2).sum().backward()
        for optimizer, peak in zip(optimizers, (0.02, 0.01), strict=True):
            optimizer.param_groups[0]["lr"] = peak * share
            optimizer.step()
    for ours, theirs in zip(module.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    assert engine.read("0.weight").keys() == {"weight", "momentum_buffer"}
    assert engine.read("0.bias").keys() == {"weight", "exp_avg", "exp_avg_sq", "step"}


def test_a_resume_with_muon_is_bit_for_bit() -> None:
    groups = {"matrices": {"lr": 0.02, "optimizer": "muon"}}
    module, engine = build(groups)
    for number in range(2):
        take_step(module, engine, number)
    fresh_module, fresh = build(groups)
    for name in engine.names:
        fresh.write(name, engine.read(name))
    take_step(module, engine, 2)
    take_step(fresh_module, fresh, 2)
    for ours, theirs in zip(module.parameters(), fresh_module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_another_optimizer_than_the_one_that_wrote_the_checkpoint_is_refused() -> None:
    module, engine = build({})
    take_step(module, engine, 0)
    _, muon = build({"matrices": {"lr": 0.02, "optimizer": "muon"}})
    with pytest.raises(ValueError, match=r"0\.weight: the saved state .* exp_avg, .*muon has momentum_buffer"):
        muon.write("0.weight", engine.read("0.weight"))


def test_groups_that_all_have_the_common_rate_change_no_bit() -> None:
    module, engine = build({})
    grouped_module, grouped = build({"biases": {"lr": 1e-2}})
    for number in range(3):
        take_step(module, engine, number, lr=3.7e-3)
        take_step(grouped_module, grouped, number, lr=3.7e-3)
    for ours, theirs in zip(module.parameters(), grouped_module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert engine.names == grouped.names


def test_a_group_of_rate_zero_is_frozen() -> None:
    module, engine = build({"matrices": {"lr": 0}})
    weight = module.get_parameter("0.weight")
    before = weight.clone()
    take_step(module, engine, 0)
    assert engine.names == ["0.bias", "2.bias"]
    assert torch.equal(before, weight)
    assert weight.grad is None


def test_a_flow_policy_names_its_groups() -> None:
    """Matrices of the transformer's blocks, which Muon takes, and the rest; together they are all that is trained."""
    policy = make_policy()
    groups: Any = {"matrices": {"lr": 1e-2, "optimizer": "muon"}, "rest": {"lr": 0}}
    trained = {name: p for name, p in policy.trainable.named_parameters() if p.requires_grad}
    assert policy.group_of.keys() == trained.keys()
    assert set(policy.group_of.values()) == set(TinyConfig.groups)
    engine = build_engine(policy.trainable, OptimConfig(groups=groups), DistributedConfig(), WORLD, policy.group_of)
    assert engine.names
    assert all("transformer_blocks" in name and trained[name].dim() == 2 for name in engine.names)
    assert [name for name in trained if name not in engine.names] == [
        n for n, p in trained.items() if not p.requires_grad
    ]


def test_what_does_not_fit_the_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.groups\.matrixes: .*did you mean matrices"):
        build({"matrixes": {"lr": 1e-3}})
    with pytest.raises(ConfigError, match=r"biases\.optimizer = muon .* 0\.bias has shape \(6,\)"):
        build({"biases": {"lr": 1e-3, "optimizer": "muon"}})
    with pytest.raises(ConfigError, match="freezes every parameter"):
        build({"biases": {"lr": 0}, "matrices": {"lr": 0}})


def test_muon_under_deepspeed_is_refused(tmp_path: Any) -> None:
    """Before DeepSpeed starts."""
    settings = tmp_path / "zero.json"
    settings.write_text('{"zero_optimization": {"stage": 2}}')
    config = OptimConfig(groups={"matrices": {"lr": 0.02, "optimizer": "muon"}})
    module = nn.Sequential(nn.Linear(4, 6))
    with pytest.raises(ConfigError, match=r"muon.*distributed\.deepspeed cuts them"):
        build_engine(module, config, DistributedConfig(deepspeed=str(settings)), WORLD, {"0.weight": "matrices"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"optim": {"groups": {"matrixes": {"lr": 1e-3}}}},
            "optim.groups.matrixes: policy.type = tiny has no .*; did you mean matrices",
        ),
        ({"optim": {"groups": {"blocks": {"lr": 1e-3}}}}, "optim.groups.blocks: .*; known are: matrices, rest"),
        (
            {
                "optim": {"groups": {"matrices": {"lr": 0.02, "optimizer": "muon"}}},
                "distributed": {"deepspeed": "configs/deepspeed/zero2.json"},
            },
            r"optim\.groups\.matrices\.optimizer = muon needs whole matrices, but distributed\.deepspeed",
        ),
    ],
    ids=["nearest", "all", "muon"],
)
def test_a_recipe_that_names_no_group_of_its_policy_is_refused_before_anything_starts(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """By the doctor, too."""
    raw = {"run_name": "a", "max_steps": 2, "data": {"train": [{"path": "a.txt", "rewards": {"ocr": 1.0}}]}, **changes}
    raw["rewards"] = {"services": {"ocr": {"urls": ["http://127.0.0.1:1"]}}, "columns": {"ocr": {"service": "ocr"}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))
    (finding,) = examine(tmp_path / "recipe.yaml")
    assert finding.status == "FAIL" and re.search(said, finding.message), finding.message


def test_a_group_that_is_frozen_or_of_a_base_is_known_before_the_start() -> None:
    vlm = VlmConfig(type="vlm", pretrained="a", freeze=("vision",))
    check_groups("rl", vlm, ["language"])
    check_groups("vlm_base", vlm, ["matrices"])
    with pytest.raises(
        ValueError, match=r"optim\.groups\.vision gives a rate to what policy\.freeze does not let train"
    ):
        check_groups("rl", vlm, ["vision"])
    with pytest.raises(ValueError, match=r"optim\.groups\.language: program: vlm_base has no parameters of that name"):
        check_groups("vlm_base", vlm, ["language"])
