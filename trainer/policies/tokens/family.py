"""What all policies that write share, for their entries in the registry."""

from __future__ import annotations

from trainer.policies.registry import Family
from trainer.policies.tokens.plans import check_plans, comparison_plan, evaluation_plan, training_plan
from trainer.policies.tokens.policy import TokenPolicy

TOKENS = Family(
    policy=TokenPolicy,
    check_plans=check_plans,
    training_plan=training_plan,
    evaluation_plan=evaluation_plan,
    comparison_plan=comparison_plan,
)
