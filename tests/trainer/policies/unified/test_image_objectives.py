"""Every loss of texts on the tokens of images and of plans before them: cut alike into any micro-batches, and clipped in a second update."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.losses.policy import REDUCTIONS, PolicyKind
from trainer.objectives.base import Scored
from trainer.objectives.base import total as loss_of
from trainer.objectives.tokens.policy import TokenLoss
from trainer.objectives.tokens.policy import TokenPolicy as TokenObjective
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.unified.draw import ImagePlan, Thinking
from trainer.policies.unified.family import UNIFIED
from trainer.policies.unified.janus.model import JanusModel
from trainer.policies.unified.policy import UnifiedPolicy
from trainer.types import Prompt, Rollout

PROMPTS = [Prompt(f"p{n}", text, task="generate") for n, text in enumerate(["draw red disc", "draw a bar left"])]
PLAN = ImagePlan(8, guidance_scale=2.0, think=Thinking(TokenPlan(8, 5), plan_weight=0.5))


@pytest.fixture(scope="module")
def policy(janus: JanusModel) -> UnifiedPolicy:
    found: UnifiedPolicy = UNIFIED.policy(janus, keep_reference=True)
    return found


@pytest.fixture(scope="module", params=["at_once", "thinking"])
def rollout(policy: UnifiedPolicy, request: pytest.FixtureRequest) -> Rollout:
    plan = PLAN if request.param == "thinking" else replace(PLAN, think=None)
    (found,) = policy.sample(PROMPTS, 4, range(8), plan)
    return found


def gradient(policy: UnifiedPolicy, rollout: Rollout, loss: TokenLoss, size: int | None) -> tuple[Tensor, Tensor]:
    """Of all trained weights in one vector, and the loss; every micro-batch divided by what counts in all."""
    fresh = replace(rollout, trace=replace(rollout.trace))  # type: ignore[type-var]  # an objective takes each trace once
    objective = TokenObjective(policy, loss, micro_batch_size=size)
    adv_B = torch.linspace(-1, 1, len(rollout))
    batches = objective.batches(Scored([fresh], adv_B, torch.ones(len(rollout))), 0)
    counts: dict[str, float] = {}
    for batch in batches:
        for name, count in objective.counts(batch).items():
            counts[name] = counts.get(name, 0.0) + count
    for batch in batches:  # the first replay is the old policy
        objective.terms(batch, 0)
    weights = [each for each in policy.trainable.parameters() if each.requires_grad]
    kept = moved(weights)
    try:
        values = [loss_of(objective.terms(batch, 0)[0], counts) for batch in batches]
        value = torch.stack(values).sum()
        grads = torch.autograd.grad(value, weights, allow_unused=True)
    finally:
        with torch.no_grad():
            for each, before in zip(weights, kept, strict=True):
                each.copy_(before)
    found: list[Any] = [each.flatten() for each in grads if each is not None]
    return torch.cat(found), value.detach()


def moved(weights: list[Any]) -> list[Tensor]:
    """Put the weights a little elsewhere, as a first update does; gives what they were."""
    kept, generator = [each.detach().clone() for each in weights], torch.Generator().manual_seed(2)
    with torch.no_grad():
        for each in weights:
            each.add_(torch.randn(each.shape, generator=generator), alpha=0.003)
    return kept


OF_BOTH_LEVELS = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
LOSSES = [(kind, "token") for kind in REDUCTIONS] + [(kind, "sequence") for kind in OF_BOTH_LEVELS]


@pytest.mark.parametrize(("kind", "level"), LOSSES)
def test_every_loss_is_the_same_in_any_micro_batches(
    policy: UnifiedPolicy, rollout: Rollout, kind: PolicyKind, level: Any
) -> None:
    loss = TokenLoss(kind, level, longest=21 if kind == "dr_grpo" else None, kl_beta=0.05)
    whole, told = gradient(policy, rollout, loss, None)
    cut, other = gradient(policy, rollout, loss, 3)
    assert torch.isfinite(whole).all() and whole.abs().max() > 0
    assert other.item() == pytest.approx(told.item(), rel=1e-4, abs=1e-5)
    scale = whole.abs().max()
    torch.testing.assert_close(cut / scale, whole / scale, atol=2e-4, rtol=0)


def test_a_second_update_is_clipped(policy: UnifiedPolicy, rollout: Rollout) -> None:
    """A clip of nearly nothing leaves the gradient of ratios that moved against their advantage alone."""
    wide, _ = gradient(policy, rollout, TokenLoss("dapo", clip_range=(0.9, 9.0)), None)
    narrow, _ = gradient(policy, rollout, TokenLoss("dapo", clip_range=(1e-6, 1e-6)), None)
    assert 0 < narrow.norm() < 0.9 * wide.norm()
