"""FlowPolicy beyond the plain rollout: shared noise and prefixes, solvers, kept means and clean latents."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.config import Config, ConfigError, TinyConfig
from trainer.objectives import plan_needs
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.plans import evaluation_plan, training_plan
from trainer.policies.flow.policy import Conditioning, FlowPolicy
from trainer.policies.flow.tiny import TinyFlow
from trainer.policies.flow.tiny_model import TinyModel
from trainer.samplers.flow_sde import sde_step, step_std
from trainer.samplers.schedules import sigmas
from trainer.types import Prompt, Rollout

PROMPTS = [Prompt("a", 'the word "K7QX" in red'), Prompt("b", 'the word "CAT" in blue')]


class CountingFlow(TinyFlow):
    """Counts the rows that went through the network, those of them that a graph was kept of, and the calls."""

    rows = 0
    rows_with_grad = 0
    calls = 0

    def velocity(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        self.rows += len(x)
        self.rows_with_grad += len(x) * torch.is_grad_enabled()
        self.calls += 1
        return super().velocity(network, x, sigma_B, conditioning)


def make_policy(*, keep_reference: bool = False) -> FlowPolicy:
    torch.manual_seed(0)
    model = TinyModel(TinyConfig(num_layers=2, num_heads=2, head_dim=16))
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    flow = CountingFlow(model, torch.device("cpu"), about="random")
    return FlowPolicy(flow, keep_reference=keep_reference)


def sample(policy: FlowPolicy, size: int = 6, **changes: object) -> list[Rollout]:
    fields: dict[str, object] = {"noise_level": 0.7, "stochastic_steps": (2, 3), "trained_steps": (2, 3), **changes}
    plan = SamplingPlan(num_inference_steps=5, micro_batch_size=size, kind="cps", **fields)  # type: ignore[arg-type]
    return list(policy.sample(PROMPTS, 3, list(range(6)), plan))


def test_a_group_with_one_noise_shares_its_prefix_and_pays_for_it_once() -> None:
    policy = make_policy()
    (shared,) = sample(policy, same_noise=True)
    assert policy.model.rows == 2 * 2 + 3 * 6, "two ODE steps for two prompts, three steps for six samples"  # type: ignore[attr-defined]
    before = shared.trace.x_BT[:, 0]
    assert torch.equal(before[0], before[1]) and torch.equal(before[3], before[5])
    assert not torch.equal(before[0], before[3]), "another prompt, another noise"
    after = shared.trace.x_BT[:, 1]
    assert not torch.equal(after[0], after[1]), "the SDE step's noise is each sample's own"
    assert torch.equal(policy.replay(shared, slice(0, 2)).logp_BS.detach(), shared.logp_BS)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_shared_prefix_does_not_depend_on_the_micro_batch(size: int) -> None:
    policy = make_policy()
    (whole,) = sample(policy, same_noise=True)
    parts = sample(policy, size, same_noise=True)
    torch.testing.assert_close(torch.cat([part.trace.x_BT for part in parts]), whole.trace.x_BT)


def test_without_shared_noise_every_sample_starts_from_its_own() -> None:
    policy = make_policy()
    (own,) = sample(policy)
    assert policy.model.rows == 5 * 6  # type: ignore[attr-defined]
    assert not torch.equal(own.trace.x_BT[0, 0], own.trace.x_BT[1, 0])


def test_latents_between_two_trained_steps_are_kept_once() -> None:
    (rollout,) = sample(make_policy())
    assert rollout.trace.x_BT.shape[1] == 3, "before 2, between 2 and 3, after 3"
    (gap,) = sample(make_policy(), stochastic_steps=(0, 1, 2, 3), trained_steps=(0, 3))
    assert gap.trace.x_BT.shape[1] == 4


def test_a_window_leaves_the_replay_exact_whatever_the_solver() -> None:
    policy = make_policy()
    (euler,) = sample(policy)
    (dpm,) = sample(policy, solver="dpm2m")
    assert torch.equal(policy.replay(dpm, slice(0, 2)).logp_BS.detach(), dpm.logp_BS)
    # The second of two first ODE steps is of second order, so the window starts elsewhere.
    assert not torch.equal(euler.trace.x_BT[:, 0], dpm.trace.x_BT[:, 0])
    torch.testing.assert_close(euler.trace.x_BT[:, 0], dpm.trace.x_BT[:, 0], rtol=0, atol=0.5)


def test_means_and_clean_latents_are_kept_when_asked_for() -> None:
    policy = make_policy(keep_reference=True)
    (plain,) = sample(policy)
    assert plain.trace.mean_BS is None and plain.trace.x0 is None
    assert policy.replay(plain, slice(0, 1)).mean_shift_BS is None
    (rollout,) = sample(policy, keep_means=True, keep_final=True)
    assert policy.clean(rollout).shape == rollout.trace.x_BT[:, 0].shape
    replay = policy.replay(rollout, slice(0, 2))
    assert replay.mean_shift_BS is not None
    assert torch.equal(replay.mean_shift_BS.detach(), torch.zeros(6, 2)), "the weights have not changed"
    levels = sigmas(5).tolist()
    assert list(replay.std_S) == [step_std(levels[s], levels[s + 1], "cps", 0.7, levels[1]) for s in (2, 3)]
    assert list(replay.sigma_S) == [(levels[2], levels[3]), (levels[3], levels[4])]
    with torch.no_grad():
        policy.trainable.proj_out.weight.add_(0.01)  # type: ignore[union-attr, operator]
    moved = policy.replay(rollout, slice(0, 1)).mean_shift_BS
    assert moved is not None and (moved > 0).all()


def test_velocity_and_latent_kl_differ_by_the_square_of_the_means_factor() -> None:
    """cps: mean = a x + b v, so the latent KL is b^2 times the velocity KL, b = sigma' cos(eta pi/2)(1-sigma) - (1-sigma') sigma."""
    policy = make_policy(keep_reference=True)
    (rollout,) = sample(policy)
    with torch.no_grad():
        policy.trainable.proj_out.weight.add_(0.01)  # type: ignore[union-attr, operator]
    kl_BS = policy.replay(rollout, slice(0, 1), reference=True).kl_BS
    velocity, latent = kl_BS["velocity"], kl_BS["latent"]
    sigma, sigma_next = sigmas(5).tolist()[2:4]
    b = sigma_next * torch.cos(torch.tensor(0.7 * torch.pi / 2)) * (1 - sigma) - (1 - sigma_next) * sigma
    torch.testing.assert_close(latent, velocity * b**2, rtol=1e-4, atol=0)


def test_predict_is_the_networks_velocity_and_the_reference_stays() -> None:
    policy = make_policy(keep_reference=True)
    (rollout,) = sample(policy, keep_final=True)
    x, sigma_B = policy.clean(rollout), torch.linspace(0.1, 0.9, 6)
    v = policy.predict(rollout.prompts, x, sigma_B)
    assert v.requires_grad and v.shape == x.shape
    before = policy.predict(rollout.prompts, x, sigma_B, reference=True)
    assert not before.requires_grad and torch.equal(before, v.detach())
    with torch.no_grad():
        policy.trainable.proj_out.weight.add_(0.01)  # type: ignore[union-attr, operator]
    assert torch.equal(policy.predict(rollout.prompts, x, sigma_B, reference=True), before)
    assert not torch.equal(policy.predict(rollout.prompts, x, sigma_B).detach(), before)


@torch.no_grad()
def test_guidance_leads_away_from_each_prompts_own_negative_one() -> None:
    """v = v(negative) + w (v(prompt) - v(negative)) (arXiv 2207.12598, equation 6); without one it is the empty text."""
    policy = make_policy()
    prompts = [replace(PROMPTS[0], negative_prompt=PROMPTS[1].text), PROMPTS[1]]
    plan = SamplingPlan(num_inference_steps=1, micro_batch_size=2, guidance_scale=3.0, keep_final=True)
    (rollout,) = policy.sample(prompts, 1, [5, 6], plan)
    x = torch.stack(
        [torch.randn(rollout.trace.x0.shape[1:], generator=torch.Generator().manual_seed(s)) for s in (5, 6)]
    )
    model, ones = policy.model, torch.ones(2)
    away = [replace(PROMPTS[1]), Prompt("", "")]
    conditional, unconditional = (
        model.velocity(model.network, x, ones, model.encode(each)) for each in (PROMPTS, away)
    )
    torch.testing.assert_close(policy.clean(rollout), x - (unconditional + 3.0 * (conditional - unconditional)))


def test_a_negative_prompt_must_be_drawable_too() -> None:
    with pytest.raises(ConfigError, match="prompt 'a'"):
        make_policy().check_prompts([replace(PROMPTS[0], negative_prompt="Ω")])


def gradient(policy: FlowPolicy) -> Tensor:
    """That of all trained weights, flat; it is then taken away."""
    found = [p.grad.flatten() for p in policy.trainable.parameters() if p.grad is not None]
    policy.trainable.zero_grad(set_to_none=True)
    return torch.cat(found)


def written_out(policy: FlowPolicy, rollout: Rollout, *, detach: bool) -> Tensor:
    """The gradient of the sum of the replayed log-probabilities, from two passes of the network and equation 6 of arXiv 2207.12598."""
    model, plan, levels = policy.model, rollout.trace.plan, sigmas(5).tolist()
    away = [Prompt("", "") for _ in rollout.prompts]
    for column, step in enumerate(plan.trained_steps):
        x, x_next = rollout.trace.around(step)
        sigma_B = torch.full((len(x),), levels[step])
        c, u = (model.velocity(model.network, x, sigma_B, model.encode(each)) for each in (rollout.prompts, away))
        u = u.detach() if detach else u
        _, logp_B, _ = sde_step(
            x,
            u + 3.0 * (c - u),
            levels[step],
            levels[step + 1],
            kind="cps",
            noise_level=0.7,
            sigma_max=levels[1],
            x_next=x_next,
        )
        torch.testing.assert_close(logp_B.detach(), rollout.logp_BS[:, column])
        (logp_B * WEIGHTS).sum().backward()
    return gradient(policy)


WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0, 0.3])  # as advantages weigh samples


@pytest.mark.parametrize("through", ["both", "conditional"])
def test_the_gradient_of_guidance_goes_where_the_plan_says_and_ratios_start_at_one(through: str) -> None:
    """Equal to autograd through the guided velocity written out, without or with the unconditional half detached."""
    policy = make_policy(keep_reference=True)
    (rollout,) = sample(policy, guidance_scale=3.0, guidance_gradient=through)
    counted: Any = policy.model
    assert counted.calls == 5 * (1 if through == "both" else 2)
    counted.rows = counted.rows_with_grad = counted.calls = 0
    replay = policy.replay(rollout, slice(0, 2))
    assert torch.equal(replay.logp_BS.detach(), rollout.logp_BS), "replay repeats sampling to the bit"
    assert (counted.rows, counted.rows_with_grad) == (2 * 12, 2 * (12 if through == "both" else 6))
    (replay.logp_BS.sum(1) * WEIGHTS).sum().backward()
    found = gradient(policy)
    expected = written_out(policy, rollout, detach=through == "conditional")
    other = written_out(policy, rollout, detach=through == "both")
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert (found - other).norm() > 0.05 * expected.norm(), "the two are different gradients"
    kl = policy.replay(rollout, slice(0, 2), reference=True).kl_BS["velocity"]
    assert torch.equal(kl.detach(), torch.zeros(6, 2)), "the reference is guided in the same way"


@pytest.mark.parametrize("size", [1, 6])
def test_a_replay_with_a_conditional_gradient_calls_the_network_twice_a_step_whatever_the_prompts(size: int) -> None:
    """Sharded weights are gathered at each call: with another number of calls a rank would wait for the others for ever."""
    policy = make_policy()
    prompts = [replace(PROMPTS[0], negative_prompt=PROMPTS[1].text), PROMPTS[1]]
    plan = SamplingPlan(
        num_inference_steps=5, micro_batch_size=size, noise_level=0.7, stochastic_steps=(2, 3), trained_steps=(2, 3),
        guidance_scale=3.0, guidance_gradient="conditional",
    )  # fmt: skip
    rollout = next(iter(policy.sample(prompts, 3, list(range(6)), plan)))
    counted: Any = policy.model
    counted.calls = 0
    assert torch.equal(policy.replay(rollout, slice(0, 2)).logp_BS.detach(), rollout.logp_BS)
    assert counted.calls == 2 * 2


def test_the_recipe_chooses_and_evaluation_draws_in_one_pass() -> None:
    tree = {
        "run_name": "least",
        "max_steps": 1,
        "rewards": {"services": {"ocr": {"urls": ["http://127.0.0.1:1"]}}, "columns": {"ocr": {"service": "ocr"}}},
        "data": {"train": [{"path": "train.jsonl", "rewards": {"ocr": 1.0}}]},
        "sampling": {"guidance_scale": 3.0, "guidance_gradient": "conditional"},
    }
    config = Config.model_validate(tree)
    plan = training_plan(config, 0, plan_needs("flow_grpo"), "")
    assert (plan.guidance_scale, plan.guidance_gradient) == (3.0, "conditional")
    chosen: Any = SimpleNamespace(num_inference_steps=4, guidance_scale=3.0)
    assert evaluation_plan(config, chosen).guidance_gradient == "both"
