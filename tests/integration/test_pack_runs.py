"""Runs on packs in processes of their own: killed, gone on by another number of ranks and threads, and ended at max_steps."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.compare_runs import assert_same_run
from tests.support.forked import ForkedTrainer
from tests.support.pack_runs import write_recipe
from tests.support.trainer_runs import (
    ROOT,
    RUN_TIMEOUT_S,
    read_metrics,
    run_trainer,
    saved_weights,
    start_trainer,
    trainer_environment,
)

STEPS = 6
KINDS = ("weight", "average", "exp_avg", "exp_avg_sq")


def run_dir(folder: Path, name: str) -> Path:
    return folder / "outputs" / name


def start(config: Path, *overrides: str, ranks: int = 1) -> ForkedTrainer:
    output = config.with_name(f"{config.stem}-{ranks}-{len(list(config.parent.glob('*.out')))}")
    return ForkedTrainer(
        ["train", str(config), *overrides], output, trainer_environment(), ranks, "tests.support.pack_runs"
    )


def run(config: Path, *overrides: str, ranks: int = 1) -> None:
    with start(config, *overrides, ranks=ranks) as process:
        assert process.wait(RUN_TIMEOUT_S) == 0, process.stderr[-4000:]


def kill_after(
    config: Path, metrics: Path, step: int, *, ranks: int = 1, starting: Callable[..., ForkedTrainer] = start
) -> None:
    """Start the run and kill it as soon as it has written the row of `step`."""
    deadline = time.monotonic() + RUN_TIMEOUT_S
    with starting(config, ranks=ranks) as process:
        while time.monotonic() < deadline and process.poll() is None:
            if metrics.exists() and f'"step": {step}' in metrics.read_text(encoding="utf-8"):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        assert process.wait(60) == -signal.SIGKILL


def under_zero(folder: Path, stage: int) -> dict[str, Any]:
    """Changes of a recipe: weights and their state are cut by ZeRO, small ones too."""
    path = folder / f"zero{stage}.json"
    zero = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
    path.write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    return {"distributed__deepspeed": str(path)}


def final(folder: Path, name: str, kind: str = "weight") -> dict[str, torch.Tensor]:
    return saved_weights(run_dir(folder, name) / "checkpoints" / f"step_{STEPS:06d}", kind)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    run(write_recipe(folder, "whole", max_steps=STEPS))
    return folder


def test_sigkill_and_another_number_of_threads_change_nothing(whole: Path) -> None:
    """It ends with 0 at max_steps, with a checkpoint of the last step."""
    config = write_recipe(whole, "killed", max_steps=STEPS, packed__workers=0)
    kill_after(config, run_dir(whole, "killed") / "metrics.jsonl", 3)
    run(config, "packed.workers=3")
    assert read_metrics(run_dir(whole, "killed")) == read_metrics(run_dir(whole, "whole"))
    assert all(same(final(whole, "killed", kind), final(whole, "whole", kind)) for kind in ("weight", "average"))


@pytest.mark.slow
def test_a_run_under_zero_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    """Two ranks, of which each wrote its share; what they go on with is cut again."""
    zero = under_zero(tmp_path, 3)
    run(write_recipe(tmp_path, "whole", max_steps=STEPS, **zero), ranks=2)
    config = write_recipe(tmp_path, "killed", max_steps=STEPS, **zero)
    kill_after(config, run_dir(tmp_path, "killed") / "metrics.jsonl", 3, ranks=2)
    run(config, ranks=2)
    assert read_metrics(run_dir(tmp_path, "killed")) == read_metrics(run_dir(tmp_path, "whole"))
    assert all(same(final(tmp_path, "killed", kind), final(tmp_path, "whole", kind)) for kind in KINDS)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_ranks_goes_on_with_the_same_packs(whole: Path, before: int, after: int) -> None:
    """Killed between two steps. Sums over ranks are added up in another order, so weights agree as far as rounding lets them; what is
    counted is the same to the last row."""
    name = f"ranks{before}{after}"
    config = write_recipe(whole, name, max_steps=STEPS)
    kill_after(config, run_dir(whole, name) / "metrics.jsonl", 3, ranks=before)
    run(config, ranks=after)
    assert_same_run(run_dir(whole, "whole"), run_dir(whole, name), STEPS)
    counted: list[list[dict[str, Any]]] = [
        [
            {key: value for key, value in row.items() if key.startswith("packed/")}
            for row in read_metrics(run_dir(whole, each))
        ]
        for each in ("whole", name)
    ]
    assert counted[0] == counted[1]


def mixture(folder: Path, name: str, zero: dict[str, Any] | None = None, **changes: Any) -> Path:
    """The recipe of a small Mixture-of-Transformers on files of drawings and edits. `changes` are those of its section `packed`."""
    rows = ROOT / "assets" / "unified_quickstart"
    files = {"t2i": "t2i.json", "edit_reason": "edit_reason.jsonl"}
    groups = [
        {"name": each, "sets": [{"path": str(rows / file), "format": each}], "mandatory": each == "t2i"}
        for each, file in files.items()
    ]
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 32}
    small = {
        "groups": groups,
        "packs": 2,
        "expected_tokens": 300,
        "max_tokens": 600,
        "hold_out": 2,
        "noise": {"copies": 2},
    }
    policy = {"type": "mot", "initialize": sizes, "dtype": "float32", "max_latent_size": 8}
    return write_recipe(
        folder, name, max_steps=STEPS, policy=policy, packed={**small, **changes}, optim__lr=1e-3, **(zero or {})
    )


@pytest.mark.slow
def test_a_mixture_of_transformers_that_is_killed_goes_on(tmp_path: Path) -> None:
    """The real policy on real files: killed and gone on with by other threads, bit for bit; by two ranks and under ZeRO-3, to rounding."""
    run_trainer(mixture(tmp_path, "whole"))
    rows = read_metrics(run_dir(tmp_path, "whole"))
    assert rows[0]["heldout/mse"] > rows[-1]["heldout/mse"] and rows[0]["heldout/ce"] > rows[-1]["heldout/ce"]
    config = mixture(tmp_path, "killed", workers=0)
    kill_after(config, run_dir(tmp_path, "killed") / "metrics.jsonl", 3, starting=start_trainer)
    run_trainer(config, "packed.workers=3")
    assert read_metrics(run_dir(tmp_path, "killed")) == rows
    assert same(final(tmp_path, "killed"), final(tmp_path, "whole"))
    run_trainer(mixture(tmp_path, "two"), ranks=2)
    assert_same_run(run_dir(tmp_path, "whole"), run_dir(tmp_path, "two"), STEPS)
    run_trainer(mixture(tmp_path, "zero", under_zero(tmp_path, 3)), ranks=2)
    assert_same_run(run_dir(tmp_path, "whole"), run_dir(tmp_path, "zero"), STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_mixture_under_zero_that_is_killed_goes_on(tmp_path: Path, stage: int) -> None:
    """All of the run at once: by as many ranks bit for bit, moments and average too; by more and by fewer to rounding, cut anew."""
    zero = under_zero(tmp_path, stage)
    run_trainer(mixture(tmp_path, "whole", zero), ranks=2)
    rows = read_metrics(run_dir(tmp_path, "whole"))
    for before, after in ((2, 2), (2, 1), (1, 2)):
        name = f"from{before}to{after}"
        config = mixture(tmp_path, name, zero)
        kill_after(config, run_dir(tmp_path, name) / "metrics.jsonl", 3, ranks=before, starting=start_trainer)
        run_trainer(config, ranks=after)
        if before == after:
            assert read_metrics(run_dir(tmp_path, name)) == rows
            assert all(same(final(tmp_path, name, kind), final(tmp_path, "whole", kind)) for kind in KINDS)
        else:
            assert_same_run(run_dir(tmp_path, "whole"), run_dir(tmp_path, name), STEPS)
            for kind in ("exp_avg", "exp_avg_sq"):
                moments, others = final(tmp_path, "whole", kind), final(tmp_path, name, kind)
                assert moments.keys() == others.keys()
                for each, value in moments.items():
                    torch.testing.assert_close(others[each], value, rtol=1e-2, atol=1e-6, msg=f"{name} {each} {kind}")
