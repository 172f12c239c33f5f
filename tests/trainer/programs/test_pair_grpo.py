"""Pair-GRPO's numbers (PairUni, section 3.3): two groups a pair, normalised apart, weighed together by the pair's similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.tiny_janus import make_janus
from trainer.advantages import RunningSpread
from trainer.config import Config, DistributedConfig, OptimConfig
from trainer.engine import build_engine
from trainer.objectives import Scored
from trainer.objectives.tasks import Tasks
from trainer.policies.registry import build_policy, entry_of
from trainer.processes.distributed import World
from trainer.programs.rl import RlProgram, _objective
from trainer.programs.rollout import Collected, Drawn
from trainer.types import Prompt, Rollout, Sample, Scores
from trainer.update.updater import Updater

CPU = torch.device("cpu")
WORLD = World(rank=0, size=1, device=CPU)
Groups = Sequence[tuple[float, Sequence[float | None]]]  # each pair's similarity and the rewards of its group


def config(folder: Path | str = "model", *, understand: int = 4, generate: int = 4, **sampling: Any) -> Config:
    tasks = {
        "understand": {
            "group_size": understand,
            "micro_batch_size": understand,
            "rewards": {"letter": 1.0},
            "max_new_tokens": 4,
        },
        "generate": {
            "group_size": generate,
            "micro_batch_size": generate,
            "rewards": {"hps": 1.0},
            "guidance_scale": 2.0,
        },
    }
    raw = {
        "run_name": "run",
        "max_steps": 4,
        "policy": {"type": "janus", "pretrained": str(folder), "dtype": "float32"},
        "sampling": {"prompts_per_step": 2, "tasks": tasks, **sampling},
        "objective": {"type": "dr_grpo", "longest": 1},
        "advantage": {"type": "grpo"},
        "rewards": {
            "services": {"s": {"urls": ("http://127.0.0.1:1",)}},
            "columns": {name: {"service": "s"} for name in ("letter", "hps")},
        },
        "data": {"train": ({"path": "pairs.jsonl", "format": "pairs"},)},
    }  # fmt: skip
    return Config.model_validate(raw)


def scores_of(prompts: Sequence[Prompt], column: int, values: Sequence[float | None]) -> Scores:
    """Of two columns, of which these samples ask for one."""
    scores = torch.zeros(len(values), 2)
    asked = torch.zeros(len(values), 2, dtype=torch.bool)
    asked[:, column] = True
    for row, value in enumerate(values):
        scores[row, column] = value or 0.0
    valid = asked & torch.tensor([[value is not None] for value in values])
    ids = [f"{prompt.id}/{row}" for row, prompt in enumerate(prompts)]
    return Scores(["letter", "hps"], ids, scores, valid, asked, asked.float(), [{}] * len(ids))


def collected(made: Config, task: str, groups: Groups, rollouts: Sequence[Rollout] | None = None) -> Collected:
    """A task's rollouts with these rewards; of samples that say nothing where none are given."""
    each = next(one for one in made.tasks if one.name == task)
    prompts = [
        Prompt(f"p{n}/{task}", "x", task=task, similarity=s) for n, (s, rewards) in enumerate(groups) for _ in rewards
    ]
    values = [value for _, rewards in groups for value in rewards]
    numbers = torch.tensor([n for n, (_, rewards) in enumerate(groups) for _ in rewards])
    if rollouts is None:
        samples = [Sample(f"{p.id}/{row}", p.id, p) for row, p in enumerate(prompts)]
        trace: Any = None
        rollouts = [Rollout(samples, numbers, torch.zeros(len(samples), 1), None, trace)]
    nothing: Any = None
    drawn = Drawn(each, rollouts, nothing, {}, [0] * len(values), nothing, 0.0, 0.0)
    scores = scores_of(prompts, 0 if task == "understand" else 1, values)
    return Collected(drawn, scores, scores)


def fed(made: Config, **groups: Groups) -> dict[str, Scored]:
    """What the program feeds the update with, by task."""
    return advantages(made, [collected(made, task, each) for task, each in groups.items()])


def advantages(made: Config, found: Sequence[Collected]) -> dict[str, Scored]:
    program = RlProgram.__new__(RlProgram)
    flight = SimpleNamespace(add_advantages=lambda *_: None)
    program.session = SimpleNamespace(config=made, world=WORLD, flight=flight)  # type: ignore[assignment]
    program.spreads = {task.name: RunningSpread(2) for task in made.tasks}
    return program.advantages(found)[0]


def of(made: Config, similarity: float, rewards: Sequence[float | None]) -> list[float]:
    """The advantages of one group, the same for both tasks."""
    both = fed(made, understand=[(similarity, rewards)], generate=[(similarity, rewards)])
    assert both["understand"].adv_B.tolist() == both["generate"].adv_B.tolist()
    return both["understand"].adv_B.tolist()


def test_the_published_numbers() -> None:
    """(r - mean) / (std + 1e-4) with the unbiased std, times w: written out here, and as the facts give them."""
    half = 0.5 / ((1 / 3) ** 0.5 + 1e-4)
    assert half == pytest.approx(0.865875, abs=1e-6)
    assert of(config(), 1.0, [1, 0, 0, 1]) == pytest.approx([half, -half, -half, half], abs=1e-6)
    assert pytest.approx(0.938083, abs=1e-6) == 0.88**0.5
    expected = [0.812263, -0.812263, -0.812263, 0.812263]
    assert of(config(), 0.88, [1, 0, 0, 1]) == pytest.approx(expected, abs=1e-6)
    expected = [0.92593, 0.30864, -0.30864, -0.92593]
    assert of(config(), 0.64, [0.30, 0.28, 0.26, 0.24]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("rule", "weight"), [("sqrt", 0.8), ("linear", 0.64), ("none", 1.0)])
def test_a_pairs_weight_by_each_rule(rule: str, weight: float) -> None:
    whole = np.array(of(config(pair_weight=rule), 1.0, [1, 0, 0, 1]))
    assert of(config(pair_weight=rule), 0.64, [1, 0, 0, 1]) == pytest.approx(list(weight * whole), rel=1e-6)


@pytest.mark.parametrize("rule", ["sqrt", "linear"])
def test_unlike_pairs_and_flat_groups_have_advantage_0(rule: str) -> None:
    assert of(config(pair_weight=rule), 0.0, [1, 0, 0, 1]) == [0.0] * 4
    assert of(config(pair_weight=rule), 1.0, [0.5] * 4) == [0.0] * 4
    assert of(config(pair_weight=rule), 1.0, [0.1] * 4) == pytest.approx([0.0] * 4, abs=1e-3), "0.1 has no exact mean"


def test_weights_come_after_the_clamp_and_of_each_pair_its_own() -> None:
    made = config()
    rewards = [1, 0, 0, 1]
    found = fed(made, understand=[(1.0, rewards), (0.25, rewards)], generate=[(1.0, rewards), (0.25, rewards)])
    first, second = found["generate"].adv_B.split(4)
    assert second.tolist() == pytest.approx((0.5 * first).tolist(), rel=1e-6)


def test_groups_of_the_tasks_never_mix() -> None:
    """Other drawings leave the answers' advantages as they are to the last bit, and group sizes may differ."""
    made = config(understand=4, generate=6)
    asked: Groups = [(0.9, [1, 0, 0, 1]), (0.3, [0, 0, 0, 1])]
    seen = []
    for drawn in (
        [(0.9, [0.1, 0.2, 0.3, 0.1, 0.5, 0.9]), (0.3, [0.1] * 6)],
        [(0.9, [9.0, -9.0, 3e6, 0.0, 1.0, 2.0]), (0.3, [None] * 6)],
    ):
        found = fed(made, understand=asked, generate=drawn)
        assert len(found["understand"].adv_B) == 8 and len(found["generate"].adv_B) == 12
        seen.append(found["understand"])
    assert torch.equal(seen[0].adv_B, seen[1].adv_B) and torch.equal(seen[0].weight_B, seen[1].weight_B)
    alone = fed(made, understand=asked)["understand"]
    assert torch.equal(alone.adv_B, seen[0].adv_B)


def test_a_failed_reward_is_no_number() -> None:
    """What is left of the group is compared; the failed sample trains nothing."""
    found = fed(config(), understand=[(1.0, [1, 0, None, 1])], generate=[(1.0, [1, 0, 0, 1])])
    asked = found["understand"]
    three = torch.tensor([1.0, 0.0, 1.0])
    expected = (three - three.mean()) / (three.std() + 1e-4)
    assert asked.adv_B[[0, 1, 3]].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert asked.weight_B.tolist() == [1, 1, 0, 1]
    assert found["generate"].weight_B.tolist() == [1, 1, 1, 1]


class Learner:
    """A tiny Janus with the rollouts of two pairs, drawn once; each gradient is of its starting weights."""

    def __init__(self, folder: Path) -> None:
        self.config = config(folder, understand=4, generate=4)
        self.policy = build_policy(self.config.policy, CPU, keep_reference=False)
        self.rollouts: dict[str, list[Rollout]] = {}
        for task in self.config.tasks:
            asked = task.name == "understand"
            prompts = [Prompt(f"p{n}/{task.name}", "which is left ?" if asked else f"draw a red disc {n}", task=task.name) for n in range(2)]  # fmt: skip
            plan = entry_of(self.config.policy).family.training_plan(self.config, 0, None, task.name)  # type: ignore[arg-type]
            self.rollouts[task.name] = list(self.policy.sample(prompts, 4, list(range(8)), plan))
        self.start = {name: value.clone() for name, value in self.policy.trainable.state_dict().items()}

    def gradient(self, made: Mapping[str, Scored]) -> dict[str, Tensor]:
        """By parameter, the gradient of both tasks' losses."""
        self.policy.trainable.load_state_dict(self.start)
        optim = OptimConfig(lr=1e-4, max_grad_norm=1e9)
        engine = build_engine(self.policy.trainable, optim, DistributedConfig(device="cpu"), WORLD)
        objective = Tasks({task.name: (1.0, _objective(task, self.config, self.policy)) for task in self.config.tasks})
        Updater(objective, engine, optim, WORLD, 4).step(made, 0)
        named = self.policy.trainable.named_parameters()
        return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named if p.requires_grad}

    def scored(self, similarities: Sequence[float], asked: Groups, drawn: Groups) -> dict[str, Scored]:
        found = []
        for task, groups in (("understand", asked), ("generate", drawn)):
            rollouts = [self.of_pairs(rollout, similarities) for rollout in self.rollouts[task]]
            found.append(collected(self.config, task, groups, rollouts))
        return advantages(self.config, found)

    def of_pairs(self, rollout: Rollout, similarities: Sequence[float]) -> Rollout:
        samples = [
            replace(s, prompt=replace(s.prompt, similarity=similarities[int(s.prompt.id[1])])) for s in rollout.samples
        ]
        return replace(rollout, samples=samples)


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    return Learner(make_janus(tmp_path_factory.mktemp("pair_grpo")))


UP, DOWN = [1, 0, 0, 1], [0, 1, 1, 0]


def norm(gradient: Mapping[str, Tensor]) -> float:
    return float(sum(each.square().sum() for each in gradient.values()) ** 0.5)


def test_the_gradient_of_a_pair_of_similarity_0_is_exactly_0(learner: Learner) -> None:
    """Whatever its rewards are, for both tasks; and with such pairs alone nothing has a gradient at all."""
    one = learner.gradient(learner.scored([0.64, 0.0], [(0.64, UP), (0, UP)], [(0.64, UP), (0, UP)]))
    other = learner.gradient(learner.scored([0.64, 0.0], [(0.64, UP), (0, DOWN)], [(0.64, UP), (0, [0.1, 7, 3, 2])]))
    assert norm(one) > 1e-3 and all(torch.equal(one[name], other[name]) for name in one)
    none = learner.gradient(learner.scored([0.0, 0.0], [(0, UP), (0, DOWN)], [(0, UP), (0, DOWN)]))
    assert norm(none) == 0.0


def test_the_gradient_is_linear_in_a_pairs_weight(learner: Learner) -> None:
    """Of one pair that teaches: w = 0.5 gives half the gradient of w = 1, for both tasks together."""
    flat = [0.5] * 4
    whole = learner.gradient(learner.scored([1.0, 1.0], [(1, UP), (1, flat)], [(1, DOWN), (1, flat)]))
    half = learner.gradient(learner.scored([0.25, 1.0], [(0.25, UP), (1, flat)], [(0.25, DOWN), (1, flat)]))
    assert norm(whole) > 1e-3
    for name, each in whole.items():
        torch.testing.assert_close(half[name], 0.5 * each, rtol=1e-4, atol=1e-6)


def test_a_task_that_teaches_nothing_adds_nothing_to_the_others_gradient(learner: Learner) -> None:
    flat = [0.5] * 4
    alone = learner.gradient(learner.scored([1, 1], [(1, UP), (1, DOWN)], [(1, flat), (1, flat)]))
    drawn = learner.gradient(learner.scored([1, 1], [(1, flat), (1, flat)], [(1, UP), (1, DOWN)]))
    both = learner.gradient(learner.scored([1, 1], [(1, UP), (1, DOWN)], [(1, UP), (1, DOWN)]))
    assert norm(alone) > 1e-3 and norm(drawn) > 1e-3
    for name, each in both.items():
        torch.testing.assert_close(each, alone[name] + drawn[name], rtol=1e-4, atol=1e-6)
