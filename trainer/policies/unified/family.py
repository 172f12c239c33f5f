"""What all policies that read and draw share, for their entries in the registry."""

from __future__ import annotations

from typing import Any

from trainer.policies.registry import Family
from trainer.policies.tokens.policy import TokenPolicy
from trainer.policies.unified.images import ImagePolicy, Planner
from trainer.policies.unified.plans import check_plans, comparison_plan, evaluation_plan, training_plan
from trainer.policies.unified.policy import UnifiedPolicy


def _policy(model: Any, *, keep_reference: bool) -> UnifiedPolicy:
    """`model` is both a `TokenModel` and an `ImageModel`, and names the `part_of` a parameter."""
    texts = TokenPolicy(model, keep_reference=keep_reference)
    group_of = {name: model.part_of(name) for name, _ in model.network.named_parameters()}
    return UnifiedPolicy(texts, ImagePolicy(model, Planner(texts, model)), group_of)


UNIFIED = Family(
    policy=_policy,
    check_plans=check_plans,
    training_plan=training_plan,
    evaluation_plan=evaluation_plan,
    comparison_plan=comparison_plan,
)
