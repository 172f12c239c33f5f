"""What is said of curves that cannot move: only where the configuration fixes them, and never of one that moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from trainer.losses import clipped_surrogate
from trainer.report.by_construction import flat
from trainer.report.chart_list import charts_of
from trainer.report.run_folder import load_run

PLAIN: dict[str, Any] = {
    "optim": {"updates_per_rollout": 1},
    "objective": {"type": "flow_grpo", "kl_beta": 0.0, "clip_range": 1e-4},
    "advantage": {"type": "gdpo"},
    "sampling": {"type": "flow", "pipeline": "on_policy"},
}
TASKS = {
    "type": "tasks",
    "pipeline": "on_policy",
    "old_logp": "replay",
    "tasks": {"understand": {}, "generate": {"flow": {"objective": {"type": "awm", "kl_beta": 0.1, "old_decay": 0.5}}}},
}


def fixed(key: str, **sections: Any) -> float | None:
    found = flat({**PLAIN, **sections}, key)
    return None if found is None else found.value


FIXED = {"kl": 0.0, "ratio/mean": 1.0, "ratio/std": 0.0, "clip_share": 0.0, "adv/mean": 0.0, "nft/drift": 0.0}
FREE = ("grad_norm", "reward/ocr/mean", "loss/policy", "ratio/replay_error")


@pytest.mark.parametrize(("key", "value"), [*FIXED.items(), *((key, None) for key in FREE)])
def test_what_the_plainest_run_fixes(key: str, value: float | None) -> None:
    assert fixed(key) == value
    assert flat({}, key) is None, "what the configuration does not say fixes nothing"


@pytest.mark.parametrize("key", ["ratio/mean", "clip_share", "nft/drift"])
def test_a_second_update_or_an_average_that_samples_lets_ratios_move(key: str) -> None:
    assert fixed(key, optim={"updates_per_rollout": 2}) is None
    assert fixed(key, objective={"type": "awm", "kl_beta": 0.0, "old_decay": 0.9}) is None


def test_what_else_lets_them_move() -> None:
    assert fixed("kl", objective={"type": "flow_grpo", "kl_beta": 0.04}) is None
    assert fixed("ratio/mean", sampling={**TASKS, "old_logp": "sampled"}) is None
    assert fixed("rollout/weight_version_lag", sampling={"pipeline": "one_step_off"}) is None


def test_each_task_has_the_objective_that_trains_it() -> None:
    """Images that are denoised beside answers have an objective of their own."""
    assert fixed("understand/kl", sampling=TASKS) == 0.0 and fixed("generate/kl", sampling=TASKS) is None
    assert (
        fixed("understand/clip_share", sampling=TASKS) == 0.0 and fixed("generate/clip_share", sampling=TASKS) is None
    )


def test_the_losses_agree() -> None:
    """Before an update, new and old log-probabilities are the same numbers, whatever the advantages."""
    logp_BS = torch.tensor([[-1.0, -2.0], [-3.0, -0.5]])
    _, stats = clipped_surrogate(logp_BS, logp_BS.clone(), torch.tensor([1.0, -1.0]), torch.ones(2), clip_range=1e-4)
    assert (stats.sums["ratio/mean"] / stats.count).item() == 1.0 and stats.sums["clip_share"].item() == 0.0


def notes(folder: Path, rows: list[dict[str, float]]) -> dict[str, str]:
    (folder / "config.yaml").write_text(yaml.safe_dump(PLAIN))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": n, **row}) + "\n" for n, row in enumerate(rows, 1))
    )
    return {chart.title: chart.note for _, charts in charts_of(load_run(folder)) for chart in charts}


def test_the_reason_stands_beside_the_chart_and_a_curve_that_moved_is_called_out(tmp_path: Path) -> None:
    told = notes(tmp_path, [{"kl": 0.0, "loss/kl": 0.0, "clip_share": 0.0, "ratio/mean": 1.0, "grad_norm": 0.5}] * 3)
    assert told["KL to the starting weights"] == (
        "0 by construction: objective.kl_beta is 0, so that no divergence is computed."
    )
    assert told["clip share"].startswith("0 by construction: each step makes one update")
    assert told["ratio − 1"].startswith("1 by construction: each step makes one update")
    assert told["gradient norm"] == "" and "loss/kl" not in " ".join(told)
    told = notes(tmp_path, [{"kl": 0.0, "clip_share": 0.0, "ratio/mean": 1.0}, {"kl": 0.25, "ratio/mean": 1.5}])
    assert told["KL to the starting weights"].startswith("It should be 0 (objective.kl_beta is 0")
    assert told["KL to the starting weights"].endswith("and is up to 0.250 away from it.")
    assert "It should be 1" in told["ratio − 1"] and "0.500 away" in told["ratio − 1"]
