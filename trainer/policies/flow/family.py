"""What all rectified-flow policies share, for their entries in the registry."""

from __future__ import annotations

from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.registry import Family

FLOW = Family(policy=FlowPolicy)
