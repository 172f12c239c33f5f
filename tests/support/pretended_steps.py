"""A training step of any policy on a pretended GPU, stage by stage: what each stage waits for, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.support.pack_rows import lanes_of
from tests.support.pretended_events import Event, lines
from tests.support.pretended_gpu import GPU, PretendedGpu
from tests.support.tiny_updates import ADV, ONES
from trainer.checkpoint.saver import share
from trainer.config import DistributedConfig, ObjectiveConfig, OptimConfig, PackedConfig
from trainer.config.network import PolicySection
from trainer.data.sequences import Plans
from trainer.engine import build_engine
from trainer.objectives import Objective, Scored, build_objective
from trainer.objectives.packed import SupervisedPacks
from trainer.policies.registry import build_policy
from trainer.policies.unified import attention
from trainer.processes.distributed import World
from trainer.types import Prompt
from trainer.update.ema import Ema
from trainer.update.old import old_policy
from trainer.update.updater import Updater

# Whether the losses are finite, the gradient's norm, and all metrics.
UPDATE = {"read update/tally.py": 2, "read engine/local.py": 1}
# Stages that copy every tensor of a checkpoint.
COPIES = ("save", "restore")
WORLD = World(rank=0, size=1, device=GPU)


def policy_on(section: PolicySection, *, keep_reference: bool = False) -> Any:
    torch.manual_seed(0)
    return build_policy(section, GPU, keep_reference=keep_reference)


@dataclass
class Steps:
    """The events of each stage of a step, in order.

    Attributes:
        tensors: weights, moments and averages that a checkpoint has.
    """

    gpu: PretendedGpu
    stages: dict[str, list[Event]] = field(default_factory=dict)
    tensors: int = 0

    def check(self, **known: Mapping[str, int]) -> None:
        """Nothing mixes devices, and each stage waits only where it is known to, and as often at most.

        Args:
            known: by stage how often each file waits, `{"read update/tally.py": 2}`; a stage that is left out never waits. A checkpoint
                copies each of its tensors, and nothing else.
        """
        assert lines(self.gpu.events, "mixing") == {}
        for stage, events in self.stages.items():
            if stage in COPIES:
                assert len(events) <= self.tensors, (stage, self.tensors, lines(events))
                continue
            found = Counter(
                f"{event.kind} {event.where.partition(':')[0].removeprefix('trainer/')}" for event in events
            )
            allowed = known.get(stage, {})
            more = {place: times for place, times in found.items() if times > allowed.get(place, 0)}
            assert not more, (stage, more, lines(events))

    def stage(self, name: str, act: Callable[[], Any]) -> Any:
        with self.gpu.during() as found:
            done = act()
        self.stages[name] = found
        return done


def updater_on(policy: Any, objective: Objective, old: Any = None, **fields: Any) -> Updater:
    optim = OptimConfig(lr=1e-4, schedule="constant", max_grad_norm=1.0, **fields)
    engine = build_engine(policy.trainable, optim, DistributedConfig(), WORLD)
    return Updater(objective, engine, optim, WORLD, max_steps=10, old=old)


def packed_updater(policy: Any, config: PackedConfig, sets: dict[str, Plans]) -> Updater:
    """Steps on packs of these rows by the name of their set."""
    objective = SupervisedPacks(policy, config, lanes_of(config, sets, policy), [group.name for group in config.groups])
    return updater_on(policy, objective)


def rl_steps(
    gpu: PretendedGpu,
    policy: Any,
    config: ObjectiveConfig,
    prompts: Sequence[Prompt],
    plan: Any,
    evaluation: Any,
) -> Steps:
    """Two steps; the second one's events: prompts are read and encoded by then. Eight samples, four to each of two prompts."""
    steps = Steps(gpu)
    objective = build_objective(policy, config, micro_batch_size=None, seed=1)
    updater = updater_on(policy, objective, old_policy(policy.trainable, config))
    ema = Ema(policy.trainable, 0.9)

    def draw() -> list[Any]:
        with updater.sampling_policy():
            return list(policy.sample(prompts, 4, list(range(8)), plan))

    updater.step(Scored(draw(), ADV, ONES), 0)
    rollouts = steps.stage("sample", draw)
    steps.stage("update", lambda: updater.step(Scored(rollouts, ADV, ONES), 1))
    steps.stage("ema", ema.update)
    with ema.applied():
        steps.stage("evaluation", lambda: list(policy.sample(prompts, 1, [0, 1], evaluation)))
    checkpoint_stages(steps, updater, ema)
    return steps


def update_stage(
    steps: Steps, policy: Any, config: ObjectiveConfig, prompts: Sequence[Prompt], plan: Any, name: str = "update"
) -> Steps:
    """One step; the events of its update."""
    objective = build_objective(policy, config, micro_batch_size=None, seed=1)
    updater = updater_on(policy, objective, old_policy(policy.trainable, config))
    rollouts = list(policy.sample(prompts, 4, list(range(8)), plan))
    steps.stage(name, lambda: updater.step(Scored(rollouts, ADV, ONES), 0))
    return steps


def checkpoint_stages(steps: Steps, updater: Updater, ema: Ema) -> None:
    """What a checkpoint copies from the device, and back."""
    owners: list[Any] = [updater.engine, ema, *([updater.old] if updater.old else [])]
    kept = steps.stage("save", lambda: share(updater.engine, owners, WORLD))

    def restore() -> None:
        for name, tensors in kept.items():
            for owner in owners:
                owner.write(name, tensors)

    steps.stage("restore", restore)
    steps.tensors = sum(len(each) for each in kept.values())


@contextmanager
def plain_flex() -> Iterator[None]:
    """Flex attention by its mask alone: no kernel can be compiled for a device that is not there. Masks are made as they are on a GPU."""

    def all_pairs(q: Tensor, k: Tensor, v: Tensor, *, block_mask: Any, scale: float | None, enable_gqa: bool) -> Tensor:
        places = torch.arange(q.shape[2], device=q.device)
        mask = block_mask.mask_mod(0, 0, places[:, None], places[None, :])
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_compiled_flex", lambda: all_pairs)
        yield
