"""Groups that teach nothing are exchanged for those of other prompts, and all that was drawn is counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from tests.support.bigram import Bigram
from trainer.config import Task
from trainer.config.advantage import GdpoConfig
from trainer.policies.base import SamplingPlan
from trainer.programs.resampling import exchanged, flat_groups, joined
from trainer.programs.rollout import Drawn
from trainer.types import Prompt, Scores

GROUP = 2

TASK = Task("", 2, 2, GdpoConfig())


def scores_of(rows: list[list[float | None]], weights: tuple[float, ...] = (1.0,), first: int = 0) -> Scores:
    valid = torch.tensor([[value is not None for value in row] for row in rows])
    return Scores(
        names=[f"r{r}" for r in range(len(weights))],
        ids=[f"s{first + n}" for n in range(len(rows))],
        scores_BR=torch.tensor([[value or 0.0 for value in row] for row in rows]),
        valid_BR=valid,
        asked_BR=torch.ones_like(valid),
        weights_BR=torch.tensor([weights] * len(rows)),
        details=[{"n": {"row": first + n}} for n in range(len(rows))],
        failures={"r0": Counter(timeout=int((~valid).sum()))},
        datasets=["d"] * len(rows),
    )


def drawn_of(texts: str, seed: int) -> Drawn:
    prompts = [Prompt(text, text) for text in texts]
    rollouts = list(
        Bigram().sample(prompts, GROUP, range(seed, seed + GROUP * len(texts)), SamplingPlan(4, micro_batch_size=4))
    )
    batch: Any = None
    seeds = list(range(seed, seed + GROUP * len(texts)))
    return Drawn(TASK, rollouts, batch, {"at": seed}, seeds, SamplingPlan(4, 4), sampling_s=1.0, flops=0.0)


def test_a_group_is_flat_where_no_reward_with_a_weight_tells_its_samples_apart() -> None:
    group_B = torch.tensor([0, 0, 3, 3, 5, 5, 7, 7])
    rows = [[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [None, 1.0], [1.0, 1.0], [0.5, 2.0], [0.5, 2.0]]
    assert flat_groups(scores_of(rows, (1.0, 1.0)), group_B, min_valid=2) == [2, 3]
    assert flat_groups(scores_of(rows, (1.0, 0.0)), group_B, min_valid=2) == [1, 2, 3]


def test_flat_groups_are_exchanged_in_order() -> None:
    first, second = drawn_of("abcd", 0), drawn_of("wxyz", 100)
    scores = scores_of([[0.0], [0.0], [0.0], [1.0], [1.0], [1.0], [0.5], [0.5]])
    others = scores_of([[1.0], [1.0], [0.0], [1.0], [0.2], [0.2], [1.0], [0.0]], first=8)
    drawn, kept = exchanged((first, scores), (second, others), group_size=GROUP, micro_batch_size=4, min_valid=2)
    assert [sample.prompt.text for sample in drawn.samples] == list("xxbbzzdd")
    assert kept.ids == ["s10", "s11", "s2", "s3", "s14", "s15", "s6", "s7"]
    assert kept.scores_BR[:, 0].tolist() == [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.5, 0.5]
    assert drawn.group_B.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert list(drawn.seeds_B) == [102, 103, 2, 3, 106, 107, 6, 7]
    assert [len(rollout) for rollout in drawn.rollouts] == [4, 4]
    assert (drawn.position, drawn.sampling_s) == ({"at": 100}, 2.0)
    assert flat_groups(kept, drawn.group_B, min_valid=2) == [3]  # the second draw had no more to give


def test_all_that_was_drawn_is_counted() -> None:
    both = joined(scores_of([[None], [1.0]]), scores_of([[None], [None]], first=2))
    assert both.failures["r0"] == Counter(timeout=3)
    assert both.ids == ["s0", "s1", "s2", "s3"] and both.valid_BR.tolist() == [[False], [True], [False], [False]]
