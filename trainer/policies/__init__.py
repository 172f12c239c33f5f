"""The policies, by the name that `policy.type` gives. Heavy modules are imported when one is built."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from trainer.config import PolicyConfig

if TYPE_CHECKING:
    from trainer.policies.flow.policy import FlowPolicy


def _tiny(config: Any, device: torch.device) -> Any:
    from trainer.policies.flow.tiny import TinyFlow

    return TinyFlow.build(config, device)


def _sd3(config: Any, device: torch.device) -> Any:
    _quieten()
    from trainer.policies.flow.sd3 import Sd3Flow

    return Sd3Flow(config, device)


def _flux(config: Any, device: torch.device) -> Any:
    _quieten()
    from trainer.policies.flow.flux import FluxFlow

    return FluxFlow(config, device)


def _qwen_image(config: Any, device: torch.device) -> Any:
    _quieten()
    from trainer.policies.flow.qwen_image import QwenImageFlow

    return QwenImageFlow(config, device)


def _deepgen(config: Any, device: torch.device) -> Any:
    _quieten()
    from trainer.policies.flow.deepgen.model import DeepGenFlow

    return DeepGenFlow(config, device)


# Rectified-flow generators: each builds a `trainer.policies.flow.policy.FlowModel` from its section of the configuration.
FLOW_MODELS: dict[str, Callable[[Any, torch.device], Any]] = {
    "tiny": _tiny,
    "sd3": _sd3,
    "flux": _flux,
    "qwen_image": _qwen_image,
    "deepgen": _deepgen,
}


def build_policy(config: PolicyConfig, device: torch.device, *, keep_reference: bool) -> FlowPolicy:
    """Build the policy that `config.type` names, on `device`; with its starting weights kept when a KL needs them."""
    from trainer.policies.flow.policy import FlowPolicy

    return FlowPolicy(FLOW_MODELS[config.type](config, device), keep_reference=keep_reference)


# What the libraries say and nobody needs: that they would rather have torchvision, at the import of every pipeline; and of
# every long prompt, among the lines of progress, what is cut off. trainer/programs/prompt_notes.py counts that once, at the start.
_UNWANTED = (
    "requires torchvision",
    "part of your input was truncated because",
    "sequence length is longer than the specified maximum",
)


def _quieten() -> None:
    """Leave these lines out of what transformers and diffusers log."""
    from diffusers.utils.logging import get_logger as of_diffusers
    from transformers.utils.logging import get_logger as of_transformers

    of_diffusers()  # makes the handler that the filter is put on
    of_transformers()
    for library in ("diffusers", "transformers"):
        for handler in logging.getLogger(library).handlers:
            handler.addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(each in message for each in _UNWANTED)
