"""A loss for each task in one update: neither task changes the other's part of the gradient, nor its numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.bigram import Bigram
from tests.support.bigram_ranks import ADV, LOSSES, draw, gradient, make_updater
from trainer.config import Task
from trainer.config.advantage import GdpoConfig
from trainer.objectives import Scored
from trainer.objectives.tasks import Tasks
from trainer.objectives.tokens.policy import TokenLoss, TokenPolicy
from trainer.programs.step_row import loss_shares

HALVES = {"understand": slice(0, 2), "generate": slice(2, 8)}  # of unequal numbers of samples
WEIGHTS = {"understand": 1.0, "generate": 0.25}


def one(rows: slice, adv_B: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Gradient and metrics of a task alone."""
    policy = Bigram()
    rollouts = draw(policy, micro_batch_size=2)[rows.start // 2 : rows.stop // 2]
    row = make_updater(policy, "dapo").step(Scored(rollouts, adv_B[rows], torch.ones(8)[rows]), 0)
    return gradient(policy), row


def both(adv_B: Tensor) -> tuple[Tensor, dict[str, float]]:
    policy = Bigram()
    updater = make_updater(policy, "dapo")
    updater.objective = Tasks(
        {
            name: (weight, TokenPolicy(policy, TokenLoss(**{"kind": "dapo", **LOSSES["dapo"]}), micro_batch_size=None))
            for name, weight in WEIGHTS.items()
        }
    )
    rollouts = draw(policy, micro_batch_size=2)
    fed = {
        name: Scored(rollouts[rows.start // 2 : rows.stop // 2], adv_B[rows], torch.ones(8)[rows])
        for name, rows in HALVES.items()
    }
    row = updater.step(fed, 0)
    return gradient(policy), row


def test_each_task_is_divided_by_its_own_counts_and_weighs_what_is_said() -> None:
    """d(sum of w L) = sum of w dL, each L as if the other task were not there: tokens of one never dilute the other."""
    alone = {name: one(rows, ADV)[0] for name, rows in HALVES.items()}
    together, _ = both(ADV)
    assert all(each.norm() > 1e-3 for each in alone.values())
    expected = sum(WEIGHTS[name] * each for name, each in alone.items())
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-7)


def test_metrics_of_a_task_are_those_of_the_task_alone() -> None:
    _, together = both(ADV)
    for name, rows in HALVES.items():
        _, alone = one(rows, ADV)
        for metric in ("loss/policy", "loss/pull", "ratio/mean", "ratio/std", "ratio/max", "clip_share"):
            assert together[f"{name}/{metric}"] == pytest.approx(alone[metric], rel=1e-5, abs=1e-7), metric


def test_other_advantages_of_one_task_leave_the_other_as_it_was() -> None:
    changed = ADV.clone()
    changed[HALVES["generate"]] *= -3
    _, before = both(ADV)
    _, after = both(changed)
    assert after["understand/loss/policy"] == before["understand/loss/policy"]
    assert after["generate/loss/pull"] == pytest.approx(3 * before["generate/loss/pull"])


def test_a_task_without_any_advantage_leaves_the_other_to_train() -> None:
    silent = ADV.clone()
    silent[HALVES["understand"]] = 0
    gradient_of_both, row = both(silent)
    torch.testing.assert_close(gradient_of_both, 0.25 * one(HALVES["generate"], ADV)[0], rtol=1e-5, atol=1e-7)
    tasks = [Task(name, 2, 2, GdpoConfig(), weight) for name, weight in WEIGHTS.items()]
    assert loss_shares(tasks, row) == {"understand/loss_share": 0.0, "generate/loss_share": 1.0}


def test_shares_are_by_what_moves_the_weights() -> None:
    tasks = [Task(name, 2, 2, GdpoConfig(), weight) for name, weight in WEIGHTS.items()]
    row = {"understand/loss/pull": 0.6, "generate/loss/pull": 0.8}
    assert loss_shares(tasks, row) == pytest.approx({"understand/loss_share": 0.75, "generate/loss_share": 0.25})
    assert loss_shares([Task("", 2, 2, GdpoConfig())], {"loss/pull": 1.0}) == {}
