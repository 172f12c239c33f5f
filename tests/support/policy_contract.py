"""What every policy that samples and replays must keep, checked on its section of the configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support.repeated_indexes import adds_in_order
from trainer.config.network import PolicySection
from trainer.policies.base import SamplingPlan
from trainer.policies.registry import entry_of, exporter_of
from trainer.types import Prompt, Rollout

CPU = torch.device("cpu")
GROUP = 3
STEPS = (0, 1, 2)


def check_policy(section: PolicySection, prompts: Sequence[Prompt], folder: Path) -> None:
    """Build the policy that `section` configures, with two prompts or more, and check it. Writes exports into `folder`.

    - Log-probabilities that are replayed before an update are the sampled ones, bit for bit, and have a gradient, which is the same whatever number of threads adds it up
      and whichever comes first.
    - A sample depends on its own seed and prompt, not on its neighbours.
    - What the entry tells of its size and of its formats is true.
    """
    entry = entry_of(section)
    torch.manual_seed(0)
    policy: Any = entry.family.policy(entry.build(section, CPU), keep_reference=False)
    policy.check_prompts(prompts)
    (whole,) = drawn(policy, prompts, GROUP * len(prompts))
    for part in policy.parts(whole):
        replayed = policy.replay(whole, part).logp_BS
        assert torch.equal(replayed.detach(), whole.logp_BS[:, part]), "a replay repeats the sampled log-probabilities"
        with adds_in_order():
            replayed.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.trainable.parameters()), "a replay has a gradient"

    alone = drawn(policy, prompts, 1)
    torch.testing.assert_close(torch.cat([each.logp_BS for each in alone]), whole.logp_BS)

    trained = sum(p.numel() for p in policy.trainable.parameters() if p.requires_grad)
    assert entry.sizes(section).trained == trained, "the doctor is told how much is trained"
    named = {policy.group_of.get(name) for name, p in policy.trainable.named_parameters() if p.requires_grad}
    assert named <= {None, *section.groups}, "the configuration knows the groups that optim.groups may name"

    for name in section.formats:
        exporter, target = exporter_of(section, name), folder / name
        target.mkdir()
        exporter.write(policy.model, target, torch.float32)
        other = exporter.reload(section, target, CPU)
        again: Any = entry.family.policy(other, keep_reference=False)
        (reloaded,) = drawn(again, prompts, GROUP * len(prompts))
        torch.testing.assert_close(reloaded.logp_BS, whole.logp_BS, msg=f"{name} read back draws something else")


def drawn(policy: Any, prompts: Sequence[Prompt], micro_batch_size: int) -> list[Rollout]:
    """A group of samples for each prompt, from the same seeds each time."""
    plan = SamplingPlan(
        num_inference_steps=4,
        micro_batch_size=micro_batch_size,
        noise_level=0.7,
        stochastic_steps=STEPS,
        trained_steps=STEPS,
    )
    return list(policy.sample(prompts, GROUP, list(range(GROUP * len(prompts))), plan))
