"""Runs on given texts in processes of their own: killed and resumed, on two ranks, under ZeRO-3, with each kind of reference."""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.compare_runs import assert_same_run
from tests.support.tiny_vlm import make_vlm
from tests.support.trainer_runs import read_metrics, run_trainer, saved_weights, start_trainer
from tests.support.vlm_runs import write_recipe, write_texts
from trainer.programs.reference_table import FOLDER

PROGRAMS = ("supervised", "preference")
LORA = {"rank": 4, "alpha": 8.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("texts")
    write_texts(found)
    return found


def run_dir(folder: Path, name: str) -> Path:
    return folder / "outputs" / name


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return read_metrics(run_dir(folder, name))


def final(folder: Path, name: str, step: int = 4) -> dict[str, torch.Tensor]:
    return saved_weights(run_dir(folder, name) / "checkpoints" / f"step_{step:06d}")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def kill_after(folder: Path, config: Path, name: str, step: int) -> None:
    """Start the run and kill it as soon as it has written the row of `step`."""
    metrics, deadline = run_dir(folder, name) / "metrics.jsonl", time.monotonic() + 120
    with start_trainer(config) as process:
        while time.monotonic() < deadline and process.poll() is None:
            if metrics.exists() and f'"step": {step}' in metrics.read_text(encoding="utf-8"):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        assert process.wait(60) == -signal.SIGKILL


GIVEN: dict[str, tuple[str, dict[str, Any]]] = {
    "supervised": ("supervised", {"conversations__hold_out": 0.3}),
    "precomputed": ("preference", {"objective__reference": "precomputed", "preferences__hold_out": 0.3}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", list(GIVEN))
def test_sigkill_changes_nothing(folder: Path, case: str) -> None:
    """With rows held out; the loss on them is in the rows of the start, of every second step and of the end."""
    program, changes = GIVEN[case]
    changes = {"evaluation": {"every": 2}, **changes}
    run_trainer(write_recipe(folder, program, f"{case}_whole", **changes))
    expected = rows(folder, f"{case}_whole")
    assert ["heldout/loss" in row for row in expected] == [True, False, True, False, True]
    assert expected[-1]["heldout/loss"] != expected[0]["heldout/loss"]
    config = write_recipe(folder, program, f"{case}_killed", **changes)
    kill_after(folder, config, f"{case}_killed", 2)
    run_trainer(config)
    assert rows(folder, f"{case}_killed") == expected
    assert same(final(folder, f"{case}_killed"), final(folder, f"{case}_whole"))


@pytest.mark.slow
def test_every_kind_of_reference_takes_the_same_steps(folder: Path) -> None:
    """A frozen copy and a table; with adapters, switching them off and a table. First losses are ln 2 to the bit."""
    found = {}
    for adapters in (False, True):
        for reference in ("kept", "precomputed"):
            name = f"reference_{reference}_{adapters}"
            changes = {"policy__lora": LORA} if adapters else {}
            run_trainer(write_recipe(folder, "preference", name, objective__reference=reference, **changes))
            found[adapters, reference] = rows(folder, name)[1:]
    for adapters in (False, True):
        kept, table = found[adapters, "kept"], found[adapters, "precomputed"]
        assert kept[0]["loss/policy"] == table[0]["loss/policy"] == torch.tensor(math.log(2)).item()
        assert kept[0]["dpo/kl"] == table[0]["dpo/kl"] == 0 and kept[-1]["dpo/margin"] > 0
        for one, other in zip(kept, table, strict=True):
            for key, value in one.items():
                assert other[key] == pytest.approx(value, rel=1e-3, abs=1e-5), (adapters, key)
    folders = list((run_dir(folder, "reference_precomputed_True") / FOLDER).iterdir())
    assert len(folders) == 1 and len(list(folders[0].glob("*.safetensors"))) == 1


@pytest.mark.slow
def test_a_table_of_other_weights_is_refused_and_a_damaged_one_is_made_anew(folder: Path) -> None:
    model = make_vlm(folder / "changing")
    config = write_recipe(
        folder, "preference", "table", policy__pretrained=str(model), objective__reference="precomputed", max_steps=2
    )
    run_trainer(config)
    [kept] = (run_dir(folder, "table") / FOLDER).glob("*/*.safetensors")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-8] + b"12345678")
    run_trainer(config, "max_steps=3")
    assert {path.name: path.read_bytes() for path in kept.parent.iterdir()} == {kept.name: whole}
    make_vlm(model, seed=1)
    done = run_trainer(config, "max_steps=4", expect=2)
    assert "holds the reference's log-probabilities, but policy.pretrained gives others now" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_two_ranks_with_unequal_parts_take_the_steps_of_one(folder: Path, program: str) -> None:
    section = {"supervised": "conversations", "preference": "preferences"}[program]
    changes = {f"{section}__batch_size": 5, f"{section}__hold_out": 0.3, "evaluation": {"every": 2}}
    run_trainer(write_recipe(folder, program, f"{program}_one", **changes))
    run_trainer(write_recipe(folder, program, f"{program}_two", **changes), ranks=2)
    assert_same_run(run_dir(folder, f"{program}_one"), run_dir(folder, f"{program}_two"))


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_zero_takes_the_steps_of_one(folder: Path, tmp_path: Path, program: str) -> None:
    path = tmp_path / "zero3.json"
    path.write_text(
        json.dumps(
            {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}, "train_batch_size": "auto"}
        )
    )
    run_trainer(write_recipe(folder, program, f"{program}_plain"))
    zero = write_recipe(folder, program, f"{program}_zero", distributed__deepspeed=str(path))
    run_trainer(zero, ranks=2)
    plain, other = final(folder, f"{program}_plain"), final(folder, f"{program}_zero")
    for name, tensor in plain.items():
        # What is added to all keys changes no attention: the gradient of this bias is rounding, and AdamW divides by its size.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-4, msg=name)
    for row, same_row in zip(rows(folder, f"{program}_plain"), rows(folder, f"{program}_zero"), strict=True):
        assert row.keys() == same_row.keys()
        for key, value in row.items():
            # Before the first update a margin is 0, or rounding of either sign: the reference is no sharded module.
            if (row["step"], key) != (1, "dpo/accuracy"):
                assert value == pytest.approx(same_row[key], rel=1e-3, abs=1e-5), (row["step"], key)
