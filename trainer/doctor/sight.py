"""Whether a policy that reads images sees them, as the run will prove it before its first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from trainer.config import AnswersConfig, Config, ConfigError, JanusConfig, VlmConfig
from trainer.config.neo import NeoConfig
from trainer.config.preference_objective import DpoConfig
from trainer.data.datasets import DataError
from trainer.data.sampler import PromptSampler
from trainer.doctor.findings import Finding
from trainer.objectives import plan_needs
from trainer.objectives.tokens.preference import TokenDpo
from trainer.objectives.tokens.supervised import SupervisedTokens
from trainer.policies.base import Policy
from trainer.policies.registry import build_policy
from trainer.policies.tokens.sight import Sight, look
from trainer.processes.distributed import World, pick_device
from trainer.programs.assemble import kind_of
from trainer.programs.sight import SHOWN_ROWS, given_cases, look_by_task, texts_of


def check_sight(config: Config, sampler: PromptSampler | None) -> Iterator[Finding]:
    """Loads the model and looks at a few rows of the first step. Nothing for policies that read no images."""
    section = config.policy
    if not isinstance(section, VlmConfig | JanusConfig | NeoConfig) or not Path(str(section.pretrained)).exists():
        return  # what is missing is said elsewhere
    if not section.check_sight:
        yield Finding(
            "sight", "WARN", "policy.check_sight is false: nothing shows that images are seen", "set it to true"
        )
        return
    try:
        device = pick_device(config.distributed.device)
        found = _look(config, device, sampler)
    except (ConfigError, DataError) as error:
        yield Finding("sight", "FAIL", str(error))
        return
    for each in found:
        yield Finding("sight", each.status, f"{each.check}: {each.sentence}", each.remedy)


def _look(config: Config, device: torch.device, sampler: PromptSampler | None) -> Sequence[Sight]:
    built: Policy = build_policy(config.policy, device, keep_reference=False)
    if config.program == "rl":
        if sampler is None:
            return []  # its data cannot be used, which is said with the data
        position = sampler.state_dict()
        prompts = sampler.draw()
        sampler.load_state_dict(position)
        needs = plan_needs(config.objective.type)
        return look_by_task(config, built, prompts, needs, min(SHOWN_ROWS, len(prompts)))
    policy = texts_of(built)
    assert policy is not None, "policies with check_sight write"
    if config.packed is not None:
        return []  # packs are read otherwise; nothing is proven on them
    kind = kind_of(config.program)
    rows = kind.deal(config, kind.read(config), World(rank=0, size=1, device=device))
    if isinstance(config.preferences, AnswersConfig):
        assert isinstance(config.objective, DpoConfig), "the configuration has checked it"
        pairs = TokenDpo(policy, config.objective, config.preferences, rows).batches(None, 0)
        return look(policy, given_cases(pairs)[:SHOWN_ROWS])
    assert config.conversations is not None, "the configuration has checked it"
    return look(policy, given_cases(SupervisedTokens(policy, config.conversations, rows).batches(None, 0))[:SHOWN_ROWS])
