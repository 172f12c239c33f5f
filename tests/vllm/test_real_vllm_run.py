"""A whole run of the small VLM's demonstration whose answers a real vLLM server writes, killed on the way, beside the run without one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.trainer_runs import read_metrics, start_trainer
from tests.support.vllm_server import ROOT, RUN_VARIABLES, VLLM, missing

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("alone_in_this_module")]

COMPARED, STEPS = 5, 8  # the server is killed when the compared steps are made
ANSWERS = 192  # of a step
LIMIT_S = 600.0  # against a hang
SERVER = {
    "launch": {
        "executable": str(VLLM),
        "args": ["--enforce-eager", "--max-num-seqs", "64"],
        "env": {**RUN_VARIABLES, "PYTHONPATH": f"{RUN_VARIABLES['PYTHONPATH']}:{ROOT}"},
    }
}


@dataclass(frozen=True)
class Runs:
    """Rows of both runs, from step 1, and what the one with the server said."""

    here: list[dict[str, Any]]
    served: list[dict[str, Any]]
    said: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("runs")
    recipe = yaml.safe_load((ROOT / "configs" / "vlm_quickstart.yaml").read_text())
    recipe |= {"output_dir": str(folder), "max_steps": STEPS, "evaluation": {}, "logging": {"report_to": []}}
    here = start(folder, "here", recipe)
    with here:
        assert here.wait(LIMIT_S) == 0, here.stderr[-3000:]
    recipe["sampling"] |= {"engine": "vllm", "vllm": SERVER}
    served = start(folder, "served", recipe)
    with served:
        wait_for_step(folder / "served", COMPARED, served)
        kill_servers(served.pid)
        assert served.wait(LIMIT_S) == 0, served.stderr[-3000:]
    rows = [read_metrics(folder / name) for name in ("here", "served")]
    yield Runs(*([row for row in each if row["step"]] for each in rows), said=served.stdout + served.stderr)


def start(folder: Path, name: str, recipe: Mapping[str, Any]) -> Any:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**recipe, "run_name": name}), encoding="utf-8")
    return start_trainer(path, output=folder / f"{name}-said")


def wait_for_step(run_dir: Path, step: int, trainer: Any) -> None:
    deadline = time.monotonic() + LIMIT_S
    metrics = run_dir / "metrics.jsonl"
    while not (metrics.exists() and any(row["step"] >= step for row in read_metrics(run_dir))):
        assert trainer.poll() is None, trainer.stderr[-3000:]
        assert time.monotonic() < deadline, trainer.stderr[-3000:]
        time.sleep(0.05)


def kill_servers(pid: int) -> None:
    """SIGKILL to vLLM and all that it has started."""
    family = psutil.Process(pid).children(recursive=True)
    heads = [each for each in family if "vllm" in " ".join(each.cmdline()[:2]) and "serve" in each.cmdline()]
    assert heads, [each.cmdline() for each in family]
    for head in heads:
        for each in [*head.children(recursive=True), head]:
            each.kill()


def test_the_first_steps_are_those_of_the_run_without_a_server(runs: Runs) -> None:
    """Both draw from the same policy with other random numbers, so their rewards differ as two samples of one distribution do: by
    at most 4 standard errors of the difference of two shares, in each step and over all of them.

    Later steps start from weights that have learnt from other answers, which adds to the difference; the bound is for the widest
    share, .5, so there is room for it.
    """
    steps = list(zip(runs.here, runs.served, strict=True))[:COMPARED]
    differences = [served["reward/accuracy/mean"] - here["reward/accuracy/mean"] for here, served in steps]
    one_step = 4 * math.sqrt(2 * 0.25 / ANSWERS)
    assert max(map(abs, differences)) < one_step, differences
    assert abs(sum(differences) / COMPARED) < one_step / math.sqrt(COMPARED), differences
    for here, served in steps:
        assert here["grad_norm"] > 0 and served["grad_norm"] > 0
        # What the server says of each token is what the trainer says of it, after every push.
        assert served["drift/max"] < 1e-4 and served["rollout/probe_error"] < 1e-4
        assert served["ratio/mean"] == pytest.approx(1.0, abs=1e-6)
        assert served["importance/mean"] == pytest.approx(1.0, abs=1e-4)


def test_a_server_killed_in_the_middle_costs_no_step_and_no_stale_answer(runs: Runs) -> None:
    """It is started again, gets the weights of now before it draws, and what happened is said."""
    assert [row["step"] for row in runs.served] == list(range(1, STEPS + 1))
    for row in runs.served:
        assert row["rollout/weight_version_lag"] == 0 and row["drift/max"] < 1e-4
        assert row["reward/accuracy/valid_share"] == 1.0
    assert "died; starting it again" in runs.said
    assert "has the current weights and draws again" in runs.said
