"""How a Mixture-of-Transformers samples: images alone as every flow, or, of a run with tasks, images and answers."""

from __future__ import annotations

from trainer.config import Config, TaskSamplingConfig
from trainer.config.tasks import FlowTaskConfig
from trainer.policies.base import SamplingPlan
from trainer.policies.flow import plans as flow
from trainer.policies.registry import HeldOut, PlanNeeds
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.unified import plans as unified
from trainer.policies.unified.mot.policy import MotPolicy


def training_plan(config: Config, step: int, needs: PlanNeeds, task: str) -> SamplingPlan | TokenPlan:
    """The plan of a task's rollouts; of a run without tasks that of a flow."""
    if not isinstance(config.sampling, TaskSamplingConfig):
        return flow.training_plan(config, step, needs, task)
    drawn = config.sampling.tasks.generate
    if task != "generate" or drawn is None:
        return unified.text_plan(config)
    return flow.drawing_plan(_denoised(config), drawn.micro_batch_size, config, step, needs)


def evaluation_plan(config: Config, chosen: HeldOut) -> SamplingPlan | TokenPlan:
    """The plan of a held-out set, by its task: images by the ODE with the steps of training, answers at the set's temperature."""
    if not isinstance(config.sampling, TaskSamplingConfig):
        return flow.evaluation_plan(config, chosen)
    if chosen.task != "generate":
        return unified.text_plan(config, chosen)
    drawn = _denoised(config)
    return SamplingPlan(
        num_inference_steps=drawn.num_inference_steps,
        micro_batch_size=config.evaluation.batch_size,
        guidance_scale=chosen.guidance_scale,
        guidance=flow.guidance_of(drawn, chosen.guidance_scale),
        shift=drawn.shift,
        height=drawn.height,
        width=drawn.width,
        solver=drawn.solver,
    )


def check_plans(config: Config, policy: MotPolicy) -> None:
    """Raises ConfigError where images of a size cannot be drawn."""
    if not isinstance(config.sampling, TaskSamplingConfig):
        for height, width in flow.image_sizes(config):
            policy.check_size(height, width)
        return
    drawn = _denoised(config)
    for height, width in {(drawn.height, drawn.width), *((h, w) for _, h, w in drawn.resolution_schedule)}:
        policy.check_size(height, width)


def _denoised(config: Config) -> FlowTaskConfig:
    """How images are drawn; of a run that trains on answers alone as its held-out images would be by default."""
    assert isinstance(config.sampling, TaskSamplingConfig), "asked before"
    drawn = config.sampling.tasks.generate
    return FlowTaskConfig() if drawn is None or drawn.flow is None else drawn.flow
