"""On a pretended GPU nothing mixes devices, and what is waited for is known and bounded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tests.support.pretended_events import Event, lines
from tests.support.pretended_gpu import GPU, pretended_gpu
from tests.support.pretended_steps import UPDATE, WORLD, Steps, policy_on, rl_steps, update_stage, updater_on
from tests.support.tiny_updates import ADV, ONES, PROMPTS, objective_config
from trainer.advantages import ESTIMATORS, RunningSpread
from trainer.config import PreferencesConfig, SftLossConfig, TinyConfig
from trainer.config.advantage import GdpoConfig
from trainer.data.captions import Captioned
from trainer.data.preferences import PreferredPairs
from trainer.objectives import OBJECTIVES as ALL
from trainer.objectives import Scored, build_objective, needs_reference, plan_needs, with_supervised
from trainer.objectives.flow.preferences import DpoOnPairs
from trainer.objectives.tokens.policy import TOKENS
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.tiny import TinyFlow
from trainer.programs.early import EarlyUpdate
from trainer.programs.rollout import Drawn

SECTION = TinyConfig(num_layers=1, num_heads=2, head_dim=16)
SAMPLE = {"read policies/flow/policy.py": 1, "read records/phases.py": 1}  # the images, and the clock behind them
OWN = "tests.support.own_objectives"
# Of every objective of flows what makes it compute all that it can.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "flow_grpo": {"kl_beta": 0.1},
    "grpo_guard": {"guard_reweight": True},
    "diffusion_nft": {"kl_beta": 0.1, "old_decay": 0.5},
    "awm": {"old_kl_beta": 0.1, "old_decay": 0.5, "timestep_distribution": "logit_normal"},
    "diffusion_dpo": {"kl_beta": 0.1},
    "own": {"code": f"{OWN}:clipped", "kl_beta": 0.1},
    "own_forward": {"code": f"{OWN}:rwr"},
}


def plan_of(objective: str, **fields: Any) -> SamplingPlan:
    needs = plan_needs(objective)
    steps = () if needs.deterministic else (0, 1)
    keeps = {"keep_means": needs.keep_means, "keep_final": needs.keep_final}
    return SamplingPlan(4, 8, "flow_sde", 0.7, steps, steps, **keeps, **fields)


def tiny_policy(*, keep_reference: bool = False) -> Any:
    """Random weights, none of them 0."""
    policy = policy_on(SECTION, keep_reference=keep_reference)
    for parameter in policy.trainable.parameters():
        nn.init.normal_(parameter, std=0.05)
    return policy


@pytest.mark.parametrize("objective", ["flow_grpo", "diffusion_nft"])
def test_the_tiny_policy_waits_where_it_is_known_to(objective: str) -> None:
    """Sampling, replay, update, averages, evaluation, a checkpoint's tensors and their way back."""
    config, plan = objective_config(objective, **OBJECTIVES[objective]), plan_of(objective)
    with pretended_gpu() as gpu:
        policy = tiny_policy(keep_reference=needs_reference(config))
        steps = rl_steps(gpu, policy, config, PROMPTS, plan, replace(plan, stochastic_steps=(), trained_steps=()))
    assert gpu.kernels > 1000
    steps.check(sample=SAMPLE, update=UPDATE, evaluation=SAMPLE)


def test_no_objective_of_flows_waits_in_its_parts() -> None:
    assert OBJECTIVES.keys() == ALL.keys() - TOKENS.keys()
    for objective, fields in OBJECTIVES.items():
        config = objective_config(objective, **fields)
        with pretended_gpu() as gpu:
            policy = tiny_policy(keep_reference=needs_reference(config))
            update_stage(Steps(gpu), policy, config, PROMPTS, plan_of(objective)).check(update=UPDATE)


def test_the_supervised_loss_beside_it_and_given_pairs_wait_for_nothing_else() -> None:
    pixels = torch.randint(0, 256, (4, 24, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    texts = [prompt.text for prompt in PROMPTS]
    captions: Any = SimpleNamespace(texts=texts, draw=lambda update, places: Captioned(pixels[:2], texts, 0))
    pairs: Any = SimpleNamespace(texts=texts, draw=lambda step, places: PreferredPairs(pixels, texts, 0))
    config = objective_config("flow_grpo")
    with pretended_gpu() as gpu:
        policy, steps = tiny_policy(keep_reference=True), Steps(gpu)
        main = build_objective(policy, config, micro_batch_size=None, seed=1)
        sft = SftLossConfig(path="rows.json", batch_size=2, coef=0.5)
        both = with_supervised(main, policy, sft, captions, 1, share=(0, 1), updates=1)
        rollouts = list(policy.sample(PROMPTS, 4, range(8), plan_of("flow_grpo")))
        updater = updater_on(policy, both)
        steps.stage("beside", lambda: updater.step(Scored(rollouts, ADV, ONES), 0))
        given = PreferencesConfig(type="images", path="pairs.json", batch_size=2)
        dpo = DpoOnPairs(policy, cast(Any, objective_config("diffusion_dpo")), given, pairs, 1)
        steps.stage("pairs", lambda: updater_on(policy, dpo).step(None, 0))
    steps.check(beside=UPDATE, pairs=UPDATE)


@pytest.mark.parametrize(("clip", "kl_beta"), [(5.0, 0.0), (1.0, 0.1)])
def test_a_gradient_that_begins_while_scores_are_awaited_waits_no_more_often(clip: float, kl_beta: float) -> None:
    """Nor where a KL goes backward by itself."""
    scores = torch.linspace(0, 1, 8)[:, None] ** 2
    found: Any = SimpleNamespace(scores_BR=scores, valid_BR=scores >= 0, weights_BR=torch.ones(8, 1))
    half: Any = SimpleNamespace(**{name: value[:4] for name, value in vars(found).items()})
    groups, after = torch.tensor([0] * 4 + [1] * 4), RunningSpread(1).after(scores, scores >= 0)
    adv, weight = ESTIMATORS["gdpo"](found.scores_BR, found.valid_BR, groups, found.weights_BR)
    with pretended_gpu() as gpu:
        policy, steps = tiny_policy(keep_reference=kl_beta > 0), Steps(gpu)
        rollouts = list(policy.sample(PROMPTS, 4, range(8), replace(plan_of("flow_grpo"), micro_batch_size=4)))
        task: Any = SimpleNamespace(advantage=GdpoConfig(adv_clip=clip))
        batch: Any = SimpleNamespace(peek=lambda rows: half)
        drawn = Drawn(task, rollouts, batch, {}, [], cast(Any, None), 0, 0)
        objective = build_objective(policy, objective_config(kl_beta=kl_beta), micro_batch_size=None, seed=1)
        early = EarlyUpdate(updater_on(policy, objective), drawn, WORLD, 0, RunningSpread(1), apart=kl_beta > 0)
        assert steps.stage("begin", early.advance)
        steps.stage("finish", lambda: early.finish(found, Scored(rollouts, adv.clamp(-clip, clip), weight), after))
    assert bool((adv.abs() > clip).any()) == (clip == 1.0)
    over = {"read update/segments.py": 1} if clip == 1.0 else {}  # which advantages are above it
    steps.check(finish={**UPDATE, **over})


def test_samples_that_share_noise_are_repeated_without_a_wait() -> None:
    with pretended_gpu() as gpu:
        policy = tiny_policy()
        plan = SamplingPlan(4, 8, "flow_sde", 0.7, (2,), (2,), same_noise=True)
        list(policy.sample(PROMPTS, 4, range(8), plan))
        with gpu.during() as found:
            list(policy.sample(PROMPTS, 4, range(8), plan))
    assert gpu.kernels > 100
    assert [event.what for event in found] == ["cpu", "Event.synchronize"], lines(found)


def _mixed(x: Tensor) -> Tensor:
    return x + torch.ones(3)  # planted: mixing


def _read_in_a_loop(x: Tensor) -> float:
    total = 0.0
    for value in x:
        total += value.item()  # planted: item
    return total


def _copied_back(x: Tensor) -> Tensor:
    return (x * 2).cpu().sum()  # planted: cpu


@pytest.mark.parametrize(
    ("fault", "kind", "times"), [(_mixed, "mixing", 1), (_read_in_a_loop, "read", 3), (_copied_back, "read", 1)]
)
def test_a_planted_fault_is_found_at_its_line(fault: Callable[[Tensor], object], kind: str, times: int) -> None:
    with pretended_gpu() as gpu:
        x = torch.zeros(3, device="cuda")
        fault(x)
    source, start = inspect.getsourcelines(fault)
    line = start + next(n for n, text in enumerate(source) if "planted" in text)
    assert [(event.kind, event.where) for event in gpu.events] == [
        (kind, f"tests/trainer/test_pretended_gpu.py:{line}")
    ] * times


def test_a_fault_in_the_replay_is_found_at_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A velocity that comes back by the CPU waits once a part, twice with its gradient's way back."""
    velocity = TinyFlow.velocity

    def by_the_cpu(self: TinyFlow, network: nn.Module, x: Tensor, *rest: Tensor) -> Tensor:
        back = velocity(self, network, x, *rest).cpu()  # type: ignore[arg-type]  # planted
        return back.pin_memory().to(x.device, non_blocking=True)

    with pretended_gpu() as gpu:
        policy = tiny_policy()
        rollouts = list(policy.sample(PROMPTS, 4, range(8), plan_of("flow_grpo")))
        monkeypatch.setattr(TinyFlow, "velocity", by_the_cpu)
        with gpu.during() as found:
            policy.replay(rollouts[0], policy.parts(rollouts[0])[0])
    line = inspect.getsourcelines(by_the_cpu)[1] + 1
    assert [str(event) for event in found] == [f"read cpu at tests/trainer/test_pretended_gpu.py:{line}"]


def test_what_it_answers_and_what_it_sees() -> None:
    """Devices of results, of gradients and of copies; every kind of wait, one by one."""
    with pretended_gpu() as gpu:
        host, x = torch.arange(3.0), torch.arange(3.0, device="cuda").requires_grad_()
        assert host.device.type == "cpu" and x.device == GPU and x.is_cuda and (x * 2)[1:].device == GPU
        assert torch.zeros_like(x, device="cpu").device.type == "cpu"
        pinned = host.pin_memory()
        assert (
            pinned.to(x.device, non_blocking=True).device == GPU and pinned.device.type == "cpu" and pinned.is_pinned()
        )
        assert (x * torch.tensor(2.0)).device == GPU, "CUDA takes a number of the CPU"
        (x**2).sum().backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None and x.grad.device == GPU
        assert nn.Linear(3, 2).to(GPU).weight.device == GPU
        assert gpu.events == [Event("upload", "to", gpu.events[0].where)] * 2, "a linear layer's weight and bias"
        waits: dict[str, Callable[[], object]] = {
            "read": lambda: bool(x[0] > 0),
            "read tolist": x.tolist,
            "read nonzero": x.nonzero,
            "read mask": lambda: x[x > 1],
            "read repeats": lambda: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64)),
            "upload": lambda: torch.tensor([1.0], device=GPU),
            "upload list": lambda: x[[0, 1]],
            "upload indices": lambda: x[torch.tensor([0, 1])],
            "upload copy": lambda: torch.empty_like(x).detach().copy_(host),
            "upload from memory that is not pinned": lambda: host.to(GPU, non_blocking=True),
            "mixing numpy": lambda: x.detach().numpy(),
        }
        for name, ask in waits.items():
            with gpu.during() as found:
                ask()
            assert [event.kind for event in found] == [name.split()[0]], (name, lines(found))
        with gpu.during() as found:
            torch.empty_like(x).detach().copy_(pinned, non_blocking=True)
            padded = nn.utils.rnn.pad_sequence([x, x[:2]])  # makes its result of nothing
            assert padded.device == GPU and torch.vmap(lambda row: row[0])(padded).device == GPU
            torch.stack(padded.split(1))[0].sum().backward()  # type: ignore[no-untyped-call]  # with zeros for the other parts
            x.repeat_interleave(2)
            x.repeat_interleave(torch.ones_like(x, dtype=torch.int64), output_size=3)
            x.detach()[0] = 1.0
        assert found == []
