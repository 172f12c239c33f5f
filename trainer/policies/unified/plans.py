"""How a policy that reads and draws samples: what the configuration and a held-out set ask for together."""

from __future__ import annotations

from trainer.config import Config, ConfigError, GenerateConfig, TaskSamplingConfig, UnderstandConfig
from trainer.policies.registry import HeldOut, PlanNeeds
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.unified.draw import ImagePlan, Thinking
from trainer.policies.unified.policy import UnifiedPolicy

_COMPARED_TOKENS = 16
_WRITTEN_TOKENS = 256  # by a policy whose answers are evaluated and not trained


def training_plan(config: Config, step: int, needs: PlanNeeds, task: str) -> TokenPlan | ImagePlan:
    """The plan of a task's rollouts, the same in every step."""
    section = _sampling(config).tasks.given()[task]  # type: ignore[index]  # a name that the configuration gave
    if isinstance(section, GenerateConfig):
        return ImagePlan(
            micro_batch_size=section.micro_batch_size,
            guidance_scale=section.guidance_scale,
            temperature=section.temperature,
            score=section.score,
            think=_thinking(section, section.temperature if section.think is None else section.think.temperature),
        )
    return text_plan(config)


def evaluation_plan(config: Config, chosen: HeldOut) -> TokenPlan | ImagePlan:
    """The plan of a held-out set, by its task: its own temperature and guidance, else as in training."""
    tasks, size = _sampling(config).tasks, config.evaluation.batch_size
    if chosen.task == "generate":
        think = None if tasks.generate is None else _thinking(tasks.generate, chosen.temperature)
        return ImagePlan(size, chosen.guidance_scale, chosen.temperature, think=think)
    return text_plan(config, chosen)


def text_plan(config: Config, chosen: HeldOut | None = None) -> TokenPlan:
    """The plan of answers in training, or of a held-out set: its own temperature, else as in training."""
    section = _sampling(config).tasks.understand
    if chosen is None:
        assert section is not None, "a task that is trained has a section"
        return _text_plan(section, section.micro_batch_size, section.temperature)
    size = config.evaluation.batch_size
    if section is None:
        return TokenPlan(size, _WRITTEN_TOKENS, chosen.temperature)
    return _text_plan(section, size, chosen.temperature)


def comparison_plan(num_samples: int) -> TokenPlan:
    """The plan of a few samples that two sets of weights are compared by: the likeliest tokens."""
    return TokenPlan(micro_batch_size=num_samples, max_new_tokens=_COMPARED_TOKENS, temperature=0.0)


def check_plans(config: Config, policy: UnifiedPolicy) -> None:
    """Raises ConfigError where an id of `stop_ids` is none of the tokenizer's."""
    section = _sampling(config).tasks.understand
    known = len(policy.texts.model.tokenizer)
    for each in section.stop_ids if section is not None else ():
        if each >= known:
            raise ConfigError(
                f"sampling.tasks.understand.stop_ids has {each}, but the tokenizer has ids from 0 to {known - 1}"
            )


def _thinking(section: GenerateConfig, temperature: float) -> Thinking | None:
    """How plans are written, where images are drawn after one."""
    think = section.think
    if think is None:
        return None
    writing = TokenPlan(section.micro_batch_size, think.max_new_tokens, temperature, think.top_p, think.top_k)
    return Thinking(writing, think.instruction, think.plan_weight, think.image_weight)


def _text_plan(section: UnderstandConfig, micro_batch_size: int, temperature: float) -> TokenPlan:
    return TokenPlan(
        micro_batch_size=micro_batch_size,
        max_new_tokens=section.max_new_tokens,
        temperature=temperature,
        top_p=section.top_p,
        top_k=section.top_k,
        stop_ids=section.stop_ids,
    )


def _sampling(config: Config) -> TaskSamplingConfig:
    assert isinstance(config.sampling, TaskSamplingConfig), "the configuration has checked it"
    return config.sampling
