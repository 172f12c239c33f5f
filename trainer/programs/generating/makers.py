"""Who makes pictures and texts of prompts: a policy that does it by itself, or any other through its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.config import Config, ConfigError
from trainer.config.generation import GenerationConfig
from trainer.policies.base import Samples, SamplingPlan
from trainer.policies.generation import Generates, Instructions, Made, Written
from trainer.policies.registry import entry_of
from trainer.policies.tokens.draw import TokenPlan
from trainer.types import Prompt, Sample

# Settings by what they are about.
_ALWAYS = {"task", "samples", "seed", "batch_size", "think", "refine"}
_OF_TEXTS = {"temperature", "max_new_tokens"}
_OF_PICTURES = {"num_inference_steps", "shift", "text_guidance", "height", "width"}
_OF_TURNS = {"image_guidance", "refine_text_guidance", "guidance_interval", "renorm", "renorm_min"}


def maker(policy: Samples, config: Config, settings: GenerationConfig) -> Generates:
    """Raises ConfigError where the policy cannot do what the settings ask for."""
    made = policy if isinstance(policy, Generates) else _Sampler(policy, config)
    made.check_generation(settings)
    return made


def idle_settings(policy: Samples, config: Config, settings: GenerationConfig, *, edits: bool) -> list[str]:
    """A sentence for each setting that was given and does nothing here. `edits`: whether a prompt has a source image."""
    own: dict[str, str] = {}
    if settings.task == "answer":
        acts, reason = _OF_TEXTS, "an answer is a text"
    elif isinstance(policy, Generates):
        acts = _OF_PICTURES | _OF_TURNS | (_OF_TEXTS if settings.think or settings.refine else set())
        reason = "nothing is written without --think or --refine"
        if not settings.refine:
            own["refine_text_guidance"] = "there is no suggestion without --refine"
            own |= {} if edits else {"image_guidance": "no prompt has a source image"}
    else:
        acts = _OF_PICTURES if config.sampling.type == "flow" else {"text_guidance", "temperature"}
        reason = f"policy.type = {config.policy.type} draws by its own sampler, which has no such setting"
    return [
        f"--{name.replace('_', '-')} does nothing here: {own.get(name, reason)}"
        for name in GenerationConfig.model_fields
        if name in settings.model_fields_set and (name in own or name not in _ALWAYS | acts)
    ]


@dataclass(frozen=True)
class _Asked:
    """As a held-out set asks for samples (`trainer.policies.registry.HeldOut`)."""

    num_inference_steps: int
    guidance_scale: float
    temperature: float
    task: str


class _Sampler:
    """Implements `Generates` for a policy that draws samples and nothing more."""

    def __init__(self, policy: Samples, config: Config) -> None:
        self._policy, self._config = policy, config

    def check_generation(self, settings: GenerationConfig) -> None:
        section = self._config.policy
        if settings.think or settings.refine:
            name = "think" if settings.think else "refine"
            raise ConfigError(
                f"policy.type = {section.type} does not write and draw in turns, which --{name} asks for; leave it out"
            )
        kinds = {"flow": "draw", "tokens": "answer"}
        able = kinds.get(self._config.sampling.type, settings.task)
        if settings.task != able:
            raise ConfigError(f"--task {settings.task}: policy.type = {section.type} can {able}; give --task {able}")

    def generate(
        self,
        prompts_B: Sequence[Prompt],
        seeds_B: Sequence[int],
        settings: GenerationConfig,
        instructions: Instructions,
    ) -> list[Made]:
        plan = self._plan(settings)
        samples = [sample for rollout in self._policy.sample(prompts_B, 1, seeds_B, plan) for sample in rollout.samples]
        return [Made((*_texts(each), *each.images)) for each in samples]

    def _plan(self, settings: GenerationConfig) -> Any:
        """The family's plan of a held-out set, with what the command says in place of what the recipe says."""
        task = "generate" if settings.task == "draw" else "understand"
        asked = _Asked(settings.num_inference_steps, settings.text_guidance, settings.temperature, task)
        plan = entry_of(self._config.policy).family.evaluation_plan(self._config, asked)
        if isinstance(plan, SamplingPlan):
            plan = replace(plan, shift=settings.shift, micro_batch_size=settings.batch_size)
            return plan if settings.height is None else replace(plan, height=settings.height, width=settings.width)
        if isinstance(plan, TokenPlan):
            return replace(plan, max_new_tokens=settings.max_new_tokens, micro_batch_size=settings.batch_size)
        return plan


def _texts(sample: Sample) -> list[Written]:
    if sample.text is None:
        return []
    return [Written("thought" if sample.images else "answer", sample.text, sample.finished)]
