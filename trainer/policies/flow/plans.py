"""How images are denoised: what the configuration, the step and the objective ask for together."""

from __future__ import annotations

import torch

from trainer.config import Config, FlowSamplingConfig
from trainer.config.drawing import FlowDrawing
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.registry import HeldOut, PlanNeeds
from trainer.samplers.guidance import Guidance
from trainer.samplers.schedules import stochastic_steps, trained_steps, window_at
from trainer.seeds import sample_seed

_COMPARED_STEPS = 4


def training_plan(config: Config, step: int, needs: PlanNeeds, task: str) -> SamplingPlan:
    """The plan of the rollouts after `step` finished steps; what is random in it comes from the seed and the step.

    Args:
        needs: what the objective asks of it.
    """
    sampling = _sampling(config)
    return drawing_plan(sampling, sampling.micro_batch_size, config, step, needs)


def drawing_plan(
    sampling: FlowDrawing, micro_batch_size: int, config: Config, step: int, needs: PlanNeeds
) -> SamplingPlan:
    """The plan of rollouts that are denoised as `sampling` says, likewise."""
    window = _window(sampling, config, step)
    stochastic = [] if needs.deterministic else stochastic_steps(sampling.num_inference_steps, window)
    fraction, chosen = sampling.timestep_fraction, _generator(config, "trained_steps", step)
    height, width = resolution(sampling, step)
    return SamplingPlan(
        num_inference_steps=sampling.num_inference_steps,
        micro_batch_size=micro_batch_size,
        kind=sampling.kind,
        noise_level=sampling.noise_level,
        stochastic_steps=stochastic,
        trained_steps=trained_steps(stochastic, fraction, chosen) if stochastic else [],
        guidance_scale=sampling.guidance_scale,
        guidance_gradient=sampling.guidance_gradient,
        guidance=guidance_of(sampling, sampling.guidance_scale),
        shift=sampling.shift,
        height=height,
        width=width,
        solver=sampling.solver,
        same_noise=sampling.same_noise,
        keep_means=needs.keep_means,
        keep_final=needs.keep_final,
    )


def evaluation_plan(config: Config, chosen: HeldOut) -> SamplingPlan:
    """The plan of a held-out set: the ODE, with what the set and the evaluation say, else as in training."""
    evaluation, sampling = config.evaluation, _sampling(config)
    return SamplingPlan(
        num_inference_steps=chosen.num_inference_steps,
        micro_batch_size=evaluation.batch_size,
        guidance_scale=chosen.guidance_scale,
        guidance=guidance_of(sampling, chosen.guidance_scale),
        shift=sampling.shift,
        height=evaluation.height or sampling.height,
        width=evaluation.width or sampling.width,
        solver=sampling.solver,
    )


def guidance_of(drawing: FlowDrawing, text: float) -> Guidance | None:
    """Guidance by source images, too, and by so much by the text; None where it is by the text alone."""
    given = drawing.guidance
    return None if given is None else Guidance(text, given.image, given.interval, given.renorm, given.renorm_min)


def comparison_plan(num_samples: int) -> SamplingPlan:
    """The plan of a few samples that two sets of weights are compared by: few steps of the ODE on the model's own levels."""
    return SamplingPlan(num_inference_steps=_COMPARED_STEPS, micro_batch_size=num_samples, shift=None)


def check_plans(config: Config, policy: FlowPolicy) -> None:
    """Raises ConfigError where the policy cannot draw images of a size that the run will ask for."""
    for height, width in image_sizes(config):
        policy.check_size(height, width)


def resolution(sampling: FlowDrawing, step: int) -> tuple[int | None, int | None]:
    """Height and width of the images after `step` finished steps; None is the model's own."""
    reached = [(height, width) for start, height, width in sampling.resolution_schedule if start <= step]
    return reached[-1] if reached else (sampling.height, sampling.width)


def image_sizes(config: Config) -> list[tuple[int | None, int | None]]:
    """Height and width of all images that a run will draw, in training and evaluation."""
    sampling, evaluation = _sampling(config), config.evaluation
    sizes = [resolution(sampling, step) for step in (0, *(start for start, _, _ in sampling.resolution_schedule))]
    return list(dict.fromkeys([*sizes, (evaluation.height or sampling.height, evaluation.width or sampling.width)]))


def _sampling(config: Config) -> FlowSamplingConfig:
    assert isinstance(config.sampling, FlowSamplingConfig), "the configuration has checked it"
    return config.sampling


def _window(sampling: FlowDrawing, config: Config, step: int) -> tuple[int, int] | None:
    if sampling.sde_window_size is None:
        return sampling.sde_window
    return window_at(
        step,
        sampling.sde_window_size,
        sampling.sde_window_range or (0, sampling.num_inference_steps - 1),
        motion=sampling.sde_window_motion,
        every=sampling.sde_window_every,
        stride=sampling.sde_window_stride,
        generator=_generator(config, "window", step),
    )


def _generator(config: Config, purpose: str, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(sample_seed(config.seed, purpose, step))
