"""What an objective and the sampling of its rollouts ask of each other."""

from __future__ import annotations

from trainer.config.drawing import FlowDrawing
from trainer.config.objective import AveragedSection, FlowGrpoConfig, ObjectiveConfig, OwnConfig, TimestepSection
from trainer.config.preference_objective import DpoConfig
from trainer.config.sampling import FlowSamplingConfig, SamplingConfig, TokenSamplingConfig
from trainer.config.tasks import TaskSamplingConfig
from trainer.config.token_objective import DrGrpoLossConfig, TokenSection

# Fields that shape stochastic steps; an objective that has none refuses them.
STOCHASTIC = ("kind", "noise_level", "sde_window", "sde_window_size", "timestep_fraction")


def check_objective(objective: ObjectiveConfig, sampling: SamplingConfig) -> None:
    """Raises ValueError naming both fields and the remedy."""
    if isinstance(objective, OwnConfig):
        _check_own(objective, sampling)
        return
    is_text = isinstance(objective, TokenSection | DpoConfig)
    if is_text != (sampling.type in ("tokens", "tasks")):
        what = "tokens" if is_text else "the denoising steps of images"
        raise ValueError(
            f"objective.type = {objective.type} trains on {what}, but sampling.type = {sampling.type}; choose two that fit"
        )
    if (
        isinstance(sampling, TaskSamplingConfig)
        and isinstance(objective, DrGrpoLossConfig)
        and objective.longest is None
    ):
        raise ValueError(
            "objective.longest is null, and the tasks of sampling.tasks have no longest length in common; set it, to 1 for the "
            "sum over the tokens of each sample"
        )
    if isinstance(sampling, TaskSamplingConfig) and sampling.tasks.generate is not None:
        flow = sampling.tasks.generate.flow
        if flow is not None:
            _check_images(flow.objective, flow, sampling.pipeline, "sampling.tasks.generate.flow.")
    if isinstance(sampling, FlowSamplingConfig):
        _check_images(objective, sampling, sampling.pipeline, "")


def _check_own(objective: OwnConfig, sampling: SamplingConfig) -> None:
    """An objective of the user's fits drawn steps and drawn tokens. It knows one distribution that its samples come from."""
    if sampling.pipeline == "one_step_off" or getattr(sampling, "engine", "") == "vllm":
        what = "pipeline = one_step_off" if sampling.pipeline == "one_step_off" else "engine = vllm"
        raise ValueError(
            f"sampling.{what} draws with other weights or another engine, which needs an importance weight, and objective.type = "
            "own has none; leave it out, or use an objective that has one"
        )
    if sampling.type == "tasks":
        raise ValueError(
            "objective.type = own is for samples of one kind, but sampling.type = tasks; choose an objective on tokens, such as grpo"
        )
    if objective.kl_beta and sampling.type != "flow":
        raise ValueError(
            f"objective.kl_beta = {objective.kl_beta:g} of objective.type = own acts on the denoising steps of images, but "
            f"sampling.type = {sampling.type}; set it to 0"
        )


def with_longest(objective: ObjectiveConfig, sampling: SamplingConfig) -> ObjectiveConfig:
    """The objective with the length that it divides by, where it has one and the recipe leaves it to the sampling."""
    if (
        isinstance(objective, DrGrpoLossConfig)
        and isinstance(sampling, TokenSamplingConfig)
        and objective.longest is None
    ):
        return objective.model_copy(update={"longest": sampling.max_new_tokens})
    return objective


def _check_images(objective: ObjectiveConfig, drawing: FlowDrawing, pipeline: str, where: str) -> None:
    """Args: where: what stands before `objective`, in the name of its section."""
    if isinstance(objective, TimestepSection):
        _check_forward(objective.type, drawing, where)
    _check_steps(objective, drawing.kind, pipeline, where)


def _check_forward(objective: str, drawing: FlowDrawing, where: str) -> None:
    named, section = f"{where}objective.type = {objective}", where or "sampling."
    for name in STOCHASTIC:
        value = getattr(drawing, name)
        if value != FlowDrawing.model_fields[name].default:
            value = list(value) if isinstance(value, tuple) else value
            raise ValueError(
                f"{section}{name} = {value} shapes stochastic steps, but {named} samples without noise; leave it out"
            )
    if drawing.same_noise:
        raise ValueError(
            f"{section}same_noise = true with {named}, which samples without noise: all images of a group would be "
            "one; set same_noise to false"
        )
    if drawing.guidance_scale != 1 and objective != "diffusion_dpo":
        raise ValueError(
            f"{section}guidance_scale = {drawing.guidance_scale:g}, but {named} trains the velocity without guidance "
            "that drew the samples; set guidance_scale to 1"
        )
    if drawing.guidance_gradient != "both":
        raise ValueError(
            f"{section}guidance_gradient = {drawing.guidance_gradient} is about the gradient of a guided velocity, but {named} trains that "
            "without guidance; leave it out"
        )
    if drawing.guidance is not None and objective != "diffusion_dpo":
        raise ValueError(
            f"{section}guidance draws the samples, but {named} trains the velocity without guidance; leave it out"
        )


def _check_steps(objective: ObjectiveConfig, kind: str, pipeline: str, where: str) -> None:
    if objective.type == "grpo_guard" and kind == "cps":
        raise ValueError(
            f"{where}objective.type = grpo_guard normalises ratios of Gaussian densities, and the log-probability of "
            f"{where or 'sampling.'}kind = cps is none; use kind = flow_sde or dance_sde"
        )
    if pipeline == "on_policy":
        cap = objective.importance_cap if isinstance(objective, FlowGrpoConfig) else None
        if cap not in (None, FlowGrpoConfig.model_fields["importance_cap"].default):
            raise ValueError(
                f"{where}objective.importance_cap = {cap:g} acts only on rollouts of older weights, with "
                "sampling.pipeline = one_step_off; leave it out"
            )
        return
    if objective.type == "grpo_guard":
        raise ValueError(
            f"sampling.pipeline = one_step_off needs an importance weight, which {where}objective.type = grpo_guard does not "
            "have; use type = flow_grpo or pipeline = on_policy"
        )
    if isinstance(objective, AveragedSection) and objective.old_decay:
        raise ValueError(
            f"{where}objective.old_decay = {objective.old_decay:g} compares with the weights that drew the samples, which with "
            "sampling.pipeline = one_step_off are gone by then; set old_decay to 0 or pipeline to on_policy"
        )
