"""Compiled blocks: sampling and replay are two graphs, which round differently; what is rounding alone is not clipped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.tiny_updates import ADV, ONES, PROMPTS, make_policy, make_updater
from trainer.objectives import Scored
from trainer.policies import lora
from trainer.policies.base import SamplingPlan
from trainer.policies.lora import compile_blocks, is_compiled

PLAN = SamplingPlan(3, 4, "flow_sde", 0.7, (0, 1), (0, 1))


@pytest.mark.parametrize("compiled", [False, True])
def test_first_ratios_are_to_the_first_replay_where_blocks_are_compiled(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sampled differs by more than a clip range of 1e-5 from what is replayed, and nothing was learnt yet."""
    monkeypatch.setattr("trainer.policies.flow.policy.is_compiled", lambda _: compiled)
    policy = make_policy()
    rollouts = list(policy.sample(PROMPTS, 4, range(8), PLAN))
    assert all(rollout.rounds_apart == compiled for rollout in rollouts)
    apart = [replace(rollout, logp_BS=rollout.logp_BS * (1 + 1e-4)) for rollout in rollouts]
    row = make_updater(policy, clip_range=1e-5).step(Scored(apart, ADV, ONES), 0)
    assert (row["ratio/mean"] == 1.0) == compiled
    assert (row["clip_share"] == 0.0) == compiled
    assert row["ratio/replay_error"] > 0, "the difference is still told"


def test_an_older_torch_has_the_limit_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, object]] = []

    def older(model: object = None, *, fullgraph: bool = False) -> None:
        """torch.compile of 2.11 has no recompile_limit."""

    monkeypatch.setattr(torch, "compile", older)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **settings: given.append(settings))
    with torch._dynamo.config.patch(recompile_limit=8):
        compile_blocks(make_policy().trainable)
        assert given == [{}, {}] and torch._dynamo.config.recompile_limit == lora._GRAPHS


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch's compiler, when imported
def test_a_newer_torch_has_the_limit_for_each_block() -> None:
    network = make_policy().trainable
    assert not is_compiled(network)
    before = torch._dynamo.config.recompile_limit
    compile_blocks(network)
    assert is_compiled(network) and torch._dynamo.config.recompile_limit == before
