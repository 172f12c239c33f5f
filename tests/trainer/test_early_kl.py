"""A KL beside an early gradient whose factor comes from the whole batch: the gradient is that of a step that waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.support.bigram import Bigram
from tests.support.bigram_ranks import LOSSES, draw
from tests.support.bigram_ranks import gradient as text_gradient
from tests.support.bigram_ranks import make_updater as text_updater
from tests.support.early_steps import (
    GROUPS,
    SCORES,
    SPREAD,
    VALID,
    all_scores,
    drawn_with,
    early_step,
    fed_by,
    of_batch,
    waiting_step,
)
from tests.support.tiny_updates import WORLD, gradient, policy_for, weights
from trainer.advantages import SCALED
from trainer.config import OptimConfig
from trainer.config.advantage import GdpoConfig, GrpoGlobalStdConfig
from trainer.engine.base import KeepsApart
from trainer.engine.local import LocalEngine
from trainer.policies.lora import allow_second_backward
from trainer.programs.early import EarlyUpdate
from trainer.types import Scores
from trainer.update.updater import Updater

PLAIN, CLAMPED = GdpoConfig(), GdpoConfig(adv_clip=1.0)
CONFIGS: dict[str, Any] = {
    "gdpo": PLAIN,
    "gdpo clamped": CLAMPED,
    "gdpo with a floor": GdpoConfig(std_floor=1.0, adv_clip=1.0),
    "grpo_global_std clamped": GrpoGlobalStdConfig(type="grpo_global_std", adv_clip=0.7),
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "flow_grpo": {"kl_beta": 0.5},
    "in latents, twice": {"kl_beta": 0.5, "kl_type": "latent", "updates_per_rollout": 2},
    "grpo_guard": {"objective": "grpo_guard", "guard_reweight": True, "kl_beta": 0.5},
    "awm": {"objective": "awm", "timestep_draws": 2, "kl_beta": 0.5},
}


def drifted(updater: Updater) -> None:
    """Away from the reference, so that the KL has a gradient."""
    with torch.no_grad():
        cast(Any, updater.objective).policy.trainable.proj_out.weight.add_(0.02)


def assert_same(
    found: tuple[Any, dict[str, float]], expected: tuple[Any, dict[str, float]], of: Callable[[Any], Tensor] = gradient
) -> None:
    """Gradients to 1e-6 of the largest of them, and rows."""
    (policy, row), (other, told) = found, expected
    size = of(other).abs().max().item()
    assert size > 0 and (of(policy) - of(other)).abs().max().item() <= 1e-6 * size
    assert row.keys() == told.keys()
    for key, value in told.items():
        assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize(
    ("objective", "config"),
    [
        ("flow_grpo", "gdpo clamped"),
        ("flow_grpo", "grpo_global_std clamped"),
        *(pytest.param("flow_grpo", config, marks=pytest.mark.slow) for config in ("gdpo", "gdpo with a floor")),
        *(
            pytest.param(objective, "gdpo clamped", marks=pytest.mark.slow)
            for objective in OBJECTIVES
            if objective != "flow_grpo"
        ),
    ],
)
def test_the_two_gradients_are_one(objective: str, config: str) -> None:
    """Samples 6 to 8 lack a score or both; clamping takes from advantages and leaves each sample's KL whole and once."""
    fields, given = OBJECTIVES[objective], CONFIGS[config]
    policy, row, added = early_step(8, None, given, SPREAD, apart=True, prepare=drifted, **fields)
    expected, told = waiting_step(given, SPREAD, prepare=drifted, **fields)
    assert added == 1 and told["loss/kl"] > 0
    if fields.get("updates_per_rollout", 1) == 1:
        assert_same((policy, row), (expected, told))
        return
    before = policy_for(**fields)
    with torch.no_grad():
        before.trainable.proj_out.weight.add_(0.02)
    moved = (weights(expected) - weights(before)).abs().max()
    assert (
        weights(policy) - weights(expected)
    ).abs().max() <= 1e-2 * moved  # Adam lifts rounding where a gradient is near 0


@pytest.mark.parametrize(("sampled", "micro"), [(2, 1), pytest.param(8, 2, marks=pytest.mark.slow)])
def test_micro_batches_of_any_size(sampled: int, micro: int) -> None:
    fields = {"kl_beta": 0.5, "sampled": sampled, "micro": micro, "prepare": drifted}
    policy, row, _ = early_step(8, None, CLAMPED, apart=True, **fields)
    assert_same((policy, row), waiting_step(CLAMPED, **fields))


def test_what_arrives_when_changes_no_bit() -> None:
    waited, row, none = early_step(0, apart=True, prepare=drifted, kl_beta=0.5)
    hidden, other, one = early_step(8, apart=True, prepare=drifted, kl_beta=0.5)
    assert (none, one) == (0, 1)
    assert torch.equal(weights(waited), weights(hidden)) and row == other


@pytest.mark.parametrize(
    "seen_first",
    [pytest.param(all_scores(SCORES.flip(0)), marks=pytest.mark.slow), all_scores(valid=torch.ones_like(VALID))],
)
def test_scores_that_change_and_groups_that_are_dropped_late(seen_first: Scores) -> None:
    """What was added with them is forgotten, the KL of samples without a score as well."""
    dropped = all_scores(valid=torch.where(GROUPS[:, None] == 0, False, torch.ones_like(VALID)))
    waited, row, _ = early_step(0, scores=dropped, apart=True, prepare=drifted, kl_beta=0.5)
    changed, other, added = early_step(8, seen_first, scores=dropped, apart=True, prepare=drifted, kl_beta=0.5)
    assert added == 1 and torch.equal(weights(waited), weights(changed)) and row == other
    assert_same((changed, other), waiting_step(CLAMPED, scores=dropped, prepare=drifted, kl_beta=0.5))


def test_where_no_score_tells_samples_apart_the_kl_is_left() -> None:
    same = all_scores(torch.full_like(SCORES, 0.5))
    policy, row, _ = early_step(8, None, PLAIN, scores=same, apart=True, prepare=drifted, kl_beta=0.5)
    assert row["grad_norm"] > 0 and row["loss/policy"] == pytest.approx(0.0, abs=1e-9)
    assert_same((policy, row), waiting_step(PLAIN, scores=same, prepare=drifted, kl_beta=0.5))


def test_where_no_sample_has_a_score_nothing_moves() -> None:
    none = all_scores(valid=torch.zeros_like(VALID))
    policy, row, _ = early_step(8, None, PLAIN, scores=none, apart=True, prepare=drifted, kl_beta=0.5)
    expected, told = waiting_step(PLAIN, scores=none, prepare=drifted, kl_beta=0.5)
    assert row["grad_norm"] == told["grad_norm"] == 0 and torch.equal(weights(policy), weights(expected))


def test_a_group_that_is_all_alike_goes_backward_once_and_so_does_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = list[str]()
    for name in ("backward", "backward_apart"):
        whole = getattr(LocalEngine, name)

        def counted(self: LocalEngine, loss: Tensor, *, whole: Any = whole, name: str = name, **how: bool) -> None:
            passes.append(name)
            whole(self, loss, **how)

        monkeypatch.setattr(LocalEngine, name, counted)
    flat = all_scores(torch.where(GROUPS[:, None] == 0, torch.tensor(0.5), SCORES))
    parts = 3 * 2  # trained steps, micro-batches of a group
    for scores, expected in (
        (flat, ["backward_apart"] * parts),
        (all_scores(), ["backward_apart", "backward"] * parts),
    ):
        passes.clear()
        policy, row, _ = early_step(8, None, PLAIN, scores=scores, apart=True, prepare=drifted, kl_beta=0.5)
        assert passes == expected + ["backward"] * parts
        assert_same((policy, row), waiting_step(PLAIN, scores=scores, prepare=drifted, kl_beta=0.5))


def test_the_norm_is_clipped_of_the_whole() -> None:
    def tight(updater: Updater) -> None:
        drifted(updater)
        engine = cast(LocalEngine, updater.engine)
        engine.config = engine.config.model_copy(update={"max_grad_norm": 1e-3})

    policy, row, _ = early_step(8, None, CLAMPED, apart=True, prepare=tight, kl_beta=0.5)
    assert row["grad_norm"] > 2e-3 and float(gradient(policy).norm()) == pytest.approx(1e-3, rel=1e-4)
    assert_same((policy, row), waiting_step(CLAMPED, prepare=tight, kl_beta=0.5))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CLAMPED, id="gdpo"),
        pytest.param(CONFIGS["grpo_global_std clamped"], id="grpo_global_std", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_on_tokens_with_and_without_a_kl(loss: str, config: Any) -> None:
    """Whatever a loss does with the sign of an advantage, clamping takes off what it adds: from losses, pulls and gradients."""
    found = []
    for early in (True, False):
        policy = Bigram()
        updater = text_updater(policy, loss)
        with torch.no_grad():
            policy.trainable[2].bias.add_(torch.linspace(-0.3, 0.3, 7))
        rollouts = draw(policy, micro_batch_size=4)
        fed = fed_by(config, SPREAD, rollouts, all_scores())
        if not early:
            found.append((policy, updater.step(fed, 0)))
            continue
        drawn = drawn_with(config, rollouts, all_scores(), 8)
        step = EarlyUpdate(updater, drawn, WORLD, 0, SPREAD, apart=bool(LOSSES[loss].get("kl_beta")))
        assert step.advance() and config.type in SCALED
        found.append((policy, step.finish(all_scores(), fed, SPREAD)))
    assert bool((of_batch(1e9, type=config.type)[0].abs() > config.adv_clip).any()), "something is clamped"
    assert_same(found[0], found[1], text_gradient)


def test_an_engine_keeps_a_second_gradient_until_it_is_joined() -> None:
    layer = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.ones(2)) for name in "abc"})
    engine = LocalEngine(layer, OptimConfig(), WORLD)
    assert isinstance(engine, KeepsApart)
    engine.zero_grad()
    x = layer["a"] * layer["b"]
    engine.backward_apart(x.sum() + layer["c"].sum(), again=True)
    assert all(p.grad is None for p in layer.values())
    engine.backward(x.sum() * 3, last=False)
    engine.join(0.5)
    assert [layer[name].grad.tolist() for name in "abc"] == [[2.5, 2.5], [2.5, 2.5], [1.0, 1.0]]
    engine.join(1.0)
    assert layer["a"].grad.tolist() == [2.5, 2.5], "it was forgotten"
    engine.backward_apart(layer["a"].sum(), again=False)
    engine.zero_grad()
    engine.join(2.0)
    assert all(p.grad is None for p in layer.values()), "forgotten with the step"


@pytest.mark.slow  # torch's compiler is imported
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize("allowed", [False, True])
def test_compiled_graphs_go_backward_twice(allowed: bool) -> None:
    """Also where the first pass that a graph makes is its only one, as of a group that is all alike."""

    def square(x: Tensor) -> Tensor:
        return torch.sin(x @ x)  # keeps the product, which is too dear to make again

    x = torch.ones(3, 3, requires_grad=True)
    torch._dynamo.reset()
    with torch._functorch.config.patch(donated_buffer=True):
        if allowed:
            allow_second_backward()
        compiled = torch.compile(square, backend="aot_eager")
        once = torch.autograd.grad(compiled(x).sum(), x)[0]
        y = compiled(x).sum()
        if not allowed:
            with pytest.raises(RuntimeError, match="donated"):
                torch.autograd.grad(y, x, retain_graph=True)
            return
        assert torch.equal(torch.autograd.grad(y, x, retain_graph=True)[0], once)
        assert torch.equal(torch.autograd.grad(y, x)[0], once)
