"""How answers are written: what the configuration and a held-out set ask for together."""

from __future__ import annotations

from trainer.config import Config, ConfigError, TokenSamplingConfig
from trainer.policies.registry import HeldOut, PlanNeeds
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.tokens.policy import TokenPolicy

_COMPARED_TOKENS = 16


def training_plan(config: Config, step: int, needs: PlanNeeds, task: str) -> TokenPlan:
    """The plan of the rollouts, the same in every step."""
    sampling = _sampling(config)
    return TokenPlan(
        micro_batch_size=sampling.micro_batch_size,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop_ids=sampling.stop_ids,
    )


def evaluation_plan(config: Config, chosen: HeldOut) -> TokenPlan:
    """The plan of a held-out set: its own temperature, else as in training."""
    sampling = _sampling(config)
    return TokenPlan(
        micro_batch_size=config.evaluation.batch_size,
        max_new_tokens=sampling.max_new_tokens,
        temperature=chosen.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop_ids=sampling.stop_ids,
    )


def comparison_plan(num_samples: int) -> TokenPlan:
    """The plan of a few samples that two sets of weights are compared by: the likeliest tokens."""
    return TokenPlan(micro_batch_size=num_samples, max_new_tokens=_COMPARED_TOKENS, temperature=0.0)


def check_plans(config: Config, policy: TokenPolicy) -> None:
    """Raises ConfigError where an id of `sampling.stop_ids` is none of the tokenizer's, or where an answer would leave the positions
    of the model, so that the run would end at the step that draws that prompt."""
    known = len(policy.model.tokenizer)
    for each in _sampling(config).stop_ids:
        if each >= known:
            raise ConfigError(f"sampling.stop_ids has {each}, but the tokenizer has ids from 0 to {known - 1}")
    if config.program == "rl":
        policy.check_room(_sampling(config).max_new_tokens)


def _sampling(config: Config) -> TokenSamplingConfig:
    assert isinstance(config.sampling, TokenSamplingConfig), "the configuration has checked it"
    return config.sampling
