"""What all rectified-flow policies share, for their entries in the registry."""

from __future__ import annotations

from trainer.policies.flow.plans import check_plans, comparison_plan, evaluation_plan, training_plan
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.registry import Family

FLOW = Family(
    policy=FlowPolicy,
    check_plans=check_plans,
    training_plan=training_plan,
    evaluation_plan=evaluation_plan,
    comparison_plan=comparison_plan,
)
