"""A run of a policy that writes takes the same steps on one rank, on two, under ZeRO, and in smaller micro-batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import reward_servers
from tests.support.compare_runs import assert_same_run
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.tiny_vlm import make_vlm, save_pictures
from tests.support.trainer_runs import run_trainer

Request = dict[str, Any]
scripted = reward_servers.scripted  # the fixture


def by_letters(request: Request) -> Reply:
    """A reward that every answer has another one of."""
    return good(request, lambda item: (sum(item["completion"].encode()) % 17) / 17)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a model, pictures and prompts with 0, 1, 2 and 3 of them."""
    folder = tmp_path_factory.mktemp("vlm")
    make_vlm(folder / "model")
    pictures = save_pictures(folder / "pictures")
    rows = [
        {"id": f"q{n}", "prompt": f"which color ? {n}", **({"source_images": pictures[: n % 4]} if n % 4 else {})}
        for n in range(8)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def changes(scripted: Callable[..., ScriptedServer], model: Path) -> dict[str, Any]:
    """A recipe of four prompts a step, and rewards with a spread."""
    return {
        "policy": {"type": "vlm", "pretrained": str(model / "model"), "dtype": "float32"},
        "sampling": {"prompts_per_step": 4, "group_size": 4, "micro_batch_size": 8, "max_new_tokens": 6},
        "objective": {"type": "dapo", "kl_beta": 0.05},
        "rewards": {
            "services": {"svc": {"urls": [scripted(by_letters).url]}},
            "columns": {"r": {"service": "svc", "canary": "none"}},
        },
        "data": {"train": [{"path": str(model / "train.jsonl"), "rewards": {"r": 1.0}}]},
        "optim": {"lr": 3e-4, "schedule": "constant", "updates_per_rollout": 2},
        "evaluation": {},
    }


@pytest.fixture(scope="module")
def made() -> list[Path]:
    """The run that the others are compared with, once it is made."""
    return []


@pytest.fixture
def one(recipe: Callable[..., Path], changes: dict[str, Any], tmp_path: Path, made: list[Path]) -> Path:
    """The folder of a run on one rank."""
    if not made:
        run_trainer(recipe("one", **changes))
        made.append(tmp_path / "outputs" / "one")
    return made[0]


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(
    recipe: Callable[..., Path], changes: dict[str, Any], tmp_path: Path, one: Path
) -> None:
    run_trainer(recipe("two", **changes), ranks=2)
    assert_same_run(one, tmp_path / "outputs" / "two")


@pytest.mark.slow
def test_smaller_micro_batches_take_the_same_steps(
    recipe: Callable[..., Path], changes: dict[str, Any], tmp_path: Path, one: Path
) -> None:
    smaller = changes | {
        "sampling": changes["sampling"] | {"micro_batch_size": 2},
        "optim": changes["optim"] | {"micro_batch_size": 1},
    }
    run_trainer(recipe("other", **smaller))
    assert_same_run(one, tmp_path / "outputs" / "other")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_takes_the_steps_of_none(
    recipe: Callable[..., Path], changes: dict[str, Any], tmp_path: Path, one: Path, stage: int
) -> None:
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": zero, "train_batch_size": "auto"}), encoding="utf-8")
    sharded = changes | {"distributed": {"num_threads": 1, "deepspeed": str(path)}}
    run_trainer(recipe("other", **sharded), ranks=2)
    assert_same_run(one, tmp_path / "outputs" / "other")
