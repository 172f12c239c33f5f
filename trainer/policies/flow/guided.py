"""What classifier-free guidance makes of two velocities (arXiv 2207.12598, equation 6), and what it leads away from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from trainer.policies.base import SamplingPlan
from trainer.samplers.guidance import Guidance
from trainer.types import Prompt


@runtime_checkable
class OwnGuidance(Protocol):
    """A FlowModel that combines the two velocities of classifier-free guidance in its own way."""

    def guide(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """The velocity that is followed."""
        ...


@runtime_checkable
class GuidedByImages(Protocol):
    """A FlowModel that is guided by the text and by the source images of a prompt, each by itself."""

    def guided_velocity(
        self, network: nn.Module, x: Tensor, sigma: float, prompts_B: Sequence[Prompt], guidance: Guidance
    ) -> Tensor:
        """The velocity that is followed at a noise level, float32, the shape of x. No image depends on its neighbours."""
        ...


def followed(model: object, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """The velocity u + w (c - u), or what the model makes of the two itself."""
    if isinstance(model, OwnGuidance):
        return model.guide(conditional, unconditional, scale)
    return unconditional + scale * (conditional - unconditional)


def conditioned_on(prompts_B: Sequence[Prompt], plan: SamplingPlan) -> tuple[Sequence[Prompt], ...]:
    """The batches of prompts that a velocity is computed from: one, or with guidance both halves, together or one after the other."""
    if plan.guidance is not None or plan.guidance_scale == 1.0:
        return (prompts_B,)
    away_B = [away_from(prompt) for prompt in prompts_B]
    return (prompts_B, away_B) if plan.guidance_gradient == "conditional" else ([*prompts_B, *away_B],)


def away_from(prompt: Prompt) -> Prompt:
    """What guidance leads away from: the prompt's negative one, or no text, with the same source images."""
    return replace(prompt, text=prompt.negative_prompt or "")
