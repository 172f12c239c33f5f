"""The policies, by the name that `policy.type` gives. Heavy modules are imported when one is built."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from trainer.config import PolicyConfig
from trainer.policies.base import Policy


def _tiny(config: Any, device: torch.device) -> Any:
    from trainer.policies.tiny import TinyFlow

    return TinyFlow.build(config, device)


def _sd3(config: Any, device: torch.device) -> Any:
    from trainer.policies.sd3 import Sd3Flow

    return Sd3Flow(config, device)


def _flux(config: Any, device: torch.device) -> Any:
    from trainer.policies.flux import FluxFlow

    return FluxFlow(config, device)


def _qwen_image(config: Any, device: torch.device) -> Any:
    from trainer.policies.qwen_image import QwenImageFlow

    return QwenImageFlow(config, device)


def _deepgen(config: Any, device: torch.device) -> Any:
    from trainer.policies.deepgen.model import DeepGenFlow

    return DeepGenFlow(config, device)


# Rectified-flow generators: each builds a `trainer.policies.flow.FlowModel` from its section of the configuration.
FLOW_MODELS: dict[str, Callable[[Any, torch.device], Any]] = {
    "tiny": _tiny,
    "sd3": _sd3,
    "flux": _flux,
    "qwen_image": _qwen_image,
    "deepgen": _deepgen,
}


def build_policy(config: PolicyConfig, device: torch.device, *, keep_reference: bool) -> Policy:
    """Build the policy that `config.type` names, on `device`; with its starting weights kept when a KL needs them."""
    from trainer.policies.flow import FlowPolicy

    if config.type != "tiny":
        _ignore_advice()
    return FlowPolicy(FLOW_MODELS[config.type](config, device), keep_reference=keep_reference)


def _ignore_advice() -> None:
    """Leave out that transformers would rather have torchvision, said at the import of every pipeline: nothing needs it."""
    from transformers.utils.logging import get_logger

    get_logger()  # makes the handler that the filter is put on
    for handler in logging.getLogger("transformers").handlers:
        handler.addFilter(lambda record: "requires torchvision" not in record.getMessage())
