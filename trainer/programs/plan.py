"""How a training step's rollouts are denoised: what the configuration, the step and the objective ask for together."""

from __future__ import annotations

import torch

from trainer.config import Config, SamplingConfig
from trainer.objectives import plan_needs
from trainer.policies.base import SamplingPlan
from trainer.samplers.schedules import stochastic_steps, trained_steps, window_at
from trainer.seeds import sample_seed


def training_plan(config: Config, step: int) -> SamplingPlan:
    """The plan of the rollouts after `step` finished steps; what is random in it comes from the seed and the step."""
    sampling = config.sampling
    needs = plan_needs(config.objective.type)
    stochastic = [] if needs.deterministic else stochastic_steps(sampling.num_inference_steps, _window(config, step))
    fraction, chosen = sampling.timestep_fraction, _generator(config, "trained_steps", step)
    height, width = resolution(sampling, step)
    return SamplingPlan(
        num_inference_steps=sampling.num_inference_steps,
        micro_batch_size=sampling.micro_batch_size,
        kind=sampling.kind,
        noise_level=sampling.noise_level,
        stochastic_steps=stochastic,
        trained_steps=trained_steps(stochastic, fraction, chosen) if stochastic else [],
        guidance_scale=sampling.guidance_scale,
        shift=sampling.shift,
        height=height,
        width=width,
        solver=sampling.solver,
        same_noise=sampling.same_noise,
        keep_means=needs.keep_means,
        keep_final=needs.keep_final,
    )


def resolution(sampling: SamplingConfig, step: int) -> tuple[int | None, int | None]:
    """Height and width of the pictures after `step` finished steps; None is the model's own."""
    reached = [(height, width) for start, height, width in sampling.resolution_schedule if start <= step]
    return reached[-1] if reached else (sampling.height, sampling.width)


def picture_sizes(config: Config) -> list[tuple[int | None, int | None]]:
    """Height and width of all pictures that a run will draw, in training and evaluation."""
    sampling, evaluation = config.sampling, config.evaluation
    sizes = [resolution(sampling, step) for step in (0, *(start for start, _, _ in sampling.resolution_schedule))]
    return list(dict.fromkeys([*sizes, (evaluation.height or sampling.height, evaluation.width or sampling.width)]))


def _window(config: Config, step: int) -> tuple[int, int] | None:
    sampling = config.sampling
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
