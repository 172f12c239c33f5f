"""What a row says of rewards, advantages and waiting: hand-computed, failures counted, never averaged in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from trainer.config import DistributedConfig
from trainer.config.advantage import GdpoConfig
from trainer.engine.reduction import GradientSum
from trainer.processes.distributed import World, world
from trainer.records.step_metrics import advantage_metrics, reward_metrics, wait_metrics
from trainer.types import Scores

WORLD = World(rank=0, size=1, device=torch.device("cpu"))


def make_scores() -> Scores:
    """Four samples; `ocr` failed for the third, `color` was not asked of the last."""
    return Scores(
        names=["ocr", "color"],
        ids=["a", "b", "c", "d"],
        scores_BR=torch.tensor([[0.5, 0.1], [1.0, 0.2], [0.0, 0.3], [0.0, 0.0]]),
        valid_BR=torch.tensor([[True, True], [True, True], [False, True], [True, False]]),
        asked_BR=torch.tensor([[True, True], [True, True], [True, True], [True, False]]),
        weights_BR=torch.ones(4, 2),
        failures={"ocr": Counter(timeout=1)},
        latency_ms={"ocr": [10.0, 30.0], "color": [1.0]},
        cached={"color": 2},
        waited_s=0.3,
        last_latency_s=0.2,
        datasets=["words", "words", "scenes", "scenes"],
    )


def test_means_are_over_valid_scores_and_failures_are_counted() -> None:
    row = reward_metrics(make_scores(), WORLD)
    assert row["reward/ocr/mean"] == pytest.approx(0.5)  # (0.5 + 1 + 0) / 3: the failed one is no zero
    assert row["reward/ocr/std"] == pytest.approx(0.5)  # unbiased, of 0.5, 1, 0
    assert row["reward/ocr/valid_share"] == 0.75
    assert row["reward/color/mean"] == pytest.approx(0.2)
    assert row["reward/color/valid_share"] == 1.0  # of the three that were asked
    assert row["failed/ocr/timeout"] == 1
    assert row["latency_ms/ocr/p50"] == 20.0 and row["latency_ms/ocr/max"] == 30.0
    assert row["cached/color"] == 2


def test_each_data_set_has_its_means_where_there_are_several() -> None:
    row = reward_metrics(make_scores(), WORLD)
    means = {key: value for key, value in row.items() if key.startswith("dataset/")}
    assert means == pytest.approx(
        {
            "dataset/words/ocr/mean": 0.75,
            "dataset/words/color/mean": 0.15,
            "dataset/scenes/ocr/mean": 0.0,  # of the one that has a score
            "dataset/scenes/color/mean": 0.3,
        }
    )
    scores = make_scores()
    scores.datasets = ["words"] * 4
    assert not any(key.startswith("dataset/") for key in reward_metrics(scores, WORLD))


def test_a_reward_without_a_valid_score_has_no_mean() -> None:
    scores = make_scores()
    scores.valid_BR[:, 0] = False
    row = reward_metrics(scores, WORLD)
    assert "reward/ocr/mean" not in row
    assert row["reward/ocr/valid_share"] == 0.0


def test_advantages_by_reward_and_clipping() -> None:
    scores = make_scores()
    scores.scores_BR[:, 1] = 0.3  # told nobody apart
    adv_B, weight_B = torch.tensor([1.0, -6.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    row = advantage_metrics(scores, torch.zeros(4, dtype=torch.int64), adv_B, weight_B, None, GdpoConfig(), WORLD)
    assert row["adv/mean"] == pytest.approx(0.0)
    assert row["adv/abs_mean"] == pytest.approx(4.0)
    assert row["adv/clip_share"] == pytest.approx(1 / 3)
    assert row["adv/trained_share"] == 0.75
    assert row["adv/color/zero_group_share"] == 1.0
    assert row["adv/ocr/zero_group_share"] == 0.0
    assert row["adv/ocr/abs_mean"] == pytest.approx(2 / 3, rel=1e-3)  # z = 0, 1, -1


def test_a_step_that_trains_on_nothing_says_so() -> None:
    scores = make_scores()
    nothing_B = torch.zeros(4)
    row = advantage_metrics(scores, torch.zeros(4, dtype=torch.int64), nothing_B, nothing_B, None, GdpoConfig(), WORLD)
    assert row["adv/trained_share"] == row["adv/mean"] == row["adv/std"] == 0.0


def test_waiting_longer_than_the_last_answer_is_excess() -> None:
    row = wait_metrics(make_scores(), 2.0, WORLD)
    assert row["reward_wait_share"] == pytest.approx(0.15)
    assert row["wait/excess_s"] == pytest.approx(0.1)


def _rank(rank: int, folder: str) -> None:
    """Half of the samples each; rank 1 writes what it got."""
    import os

    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    group = World(rank=rank, size=2, device=torch.device("cpu"))
    whole, rows = make_scores(), slice(2 * rank, 2 * rank + 2)
    part = Scores(
        names=whole.names,
        ids=whole.ids[rows],
        scores_BR=whole.scores_BR[rows],
        valid_BR=whole.valid_BR[rows],
        asked_BR=whole.asked_BR[rows],
        weights_BR=whole.weights_BR[rows],
        failures={"ocr": Counter(timeout=1)} if rank else {},
        latency_ms={"ocr": [10.0] if rank else [30.0], "color": [1.0]},
        cached={"color": 1},
        waited_s=0.3 - 0.1 * rank,
        last_latency_s=0.2,
        datasets=whole.datasets[rows],
    )
    row = reward_metrics(part, group) | wait_metrics(part, 2.0, group)
    module = torch.nn.Linear(2, 1, bias=False)
    module.weight.grad = torch.full((1, 2), float(rank + 1))
    GradientSum(list(module.parameters()), group).finish()
    row["gradient"] = float(module.weight.grad.sum())
    row["any"] = float(group.any(rank == 1)) + float(group.any(False))
    row["gathered"] = float(group.gather({"text": "é" * (rank + 1)}) == [{"text": "é"}, {"text": "éé"}])
    if rank == 1:
        torch.save({key: torch.tensor(value, dtype=torch.float64) for key, value in row.items()}, f"{folder}/row.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # tests/invariant/test_ranks.py compares the rows of whole runs
def test_two_ranks_report_what_one_would(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    saved: dict[str, Tensor] = torch.load(tmp_path / "row.pt", weights_only=True)
    row = {key: value.item() for key, value in saved.items()}
    expected = reward_metrics(make_scores(), WORLD) | wait_metrics(make_scores(), 2.0, WORLD)
    for key, value in expected.items():
        assert row[key] == pytest.approx(value), key
    assert row["gradient"] == 6.0  # (1 + 2) for each of two weights
    assert row["any"] == 1.0
    assert row["gathered"] == 1.0


def test_one_process_needs_no_group() -> None:
    with world(DistributedConfig(device="cpu")) as group:
        assert (group.rank, group.size, group.is_main) == (0, 1, True)
        assert group.gather([1]) == [[1]]
        group.barrier()
