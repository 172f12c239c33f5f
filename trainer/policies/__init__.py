"""The policies, by the name that `policy.type` gives. Heavy modules are imported when one is built."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainer.config import PolicyConfig
from trainer.policies.base import Policy


def _tiny(config: PolicyConfig, device: torch.device, keep_reference: bool) -> Policy:
    from trainer.policies.tiny import TinyPolicy

    return TinyPolicy.build(config, device, keep_reference=keep_reference)


POLICIES: dict[str, Callable[[PolicyConfig, torch.device, bool], Policy]] = {"tiny": _tiny}


def build_policy(config: PolicyConfig, device: torch.device, *, keep_reference: bool) -> Policy:
    """Build the policy that `config.type` names, on `device`; with a frozen copy when a KL needs one."""
    return POLICIES[config.type](config, device, keep_reference)
