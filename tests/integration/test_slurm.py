"""The batch script without SLURM: `srun` and `scontrol` are stand-ins that do and record what the real ones would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import reward_servers
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.trainer_runs import ROOT, read_metrics
from trainer.config.file import read_yaml

scripted = reward_servers.scripted  # the fixture
SCRIPT = ROOT / "deploy" / "slurm" / "train.sbatch"
BOUND_S = 300.0

SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
SLURM_NODEID=0 exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ "$1 $2" == "show hostnames" ]]; then printf 'node7\\nnode8\\n' | head -n "$NODES"; else echo "$*" >>"$CALLS"; fi
"""
# Becomes a process that says what it got, and ends as it is told when a signal comes.
TRAIN_SH = """#!/usr/bin/env bash
exec {python} -c '
import os, signal, sys, time
def stop(number, frame):
    print("heard", signal.Signals(number).name, flush=True)
    sys.exit(int(os.environ.get("CODE", 0)))
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, stop)
names = ("NNODES", "NGPUS", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
print("up", *sys.argv[1:], *(os.environ.get(name, "-") for name in names), flush=True)
time.sleep(0 if os.environ.get("ENDS") else 120)
' "$@"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the script as SLURM does: a copy of it, elsewhere, with SLURM's variables."""
    bin_dir, submitted = tmp_path / "bin", tmp_path / "submitted"
    bin_dir.mkdir()
    submitted.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (bin_dir / name).write_text(text)
        (bin_dir / name).chmod(0o755)
    (submitted / "train.sh").write_text(TRAIN_SH.format(python=sys.executable))
    copy = tmp_path / "slurm_script"
    copy.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")

    def start(*arguments: str, nodes: int = 1, **variables: str) -> subprocess.Popen[str]:
        slurm = {"SLURM_SUBMIT_DIR": str(submitted), "SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "node[7-8]"}
        slurm |= {"SLURM_GPUS_ON_NODE": "4", "NODES": str(nodes), "CALLS": str(tmp_path / "calls")}
        inherited = {k: v for k, v in os.environ.items() if k not in ("NNODES", "NGPUS", "MASTER_ADDR", "MASTER_PORT")}
        environment = inherited | slurm | {"PATH": f"{bin_dir}:{os.environ['PATH']}"} | variables
        return subprocess.Popen(
            ["bash", str(copy), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def line_of(process: subprocess.Popen[str], start: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if line.startswith(start)).strip()


def requeued(tmp_path: Path) -> list[str]:
    calls = tmp_path / "calls"
    return calls.read_text().splitlines() if calls.exists() else []


def test_the_script_is_clean() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(shellcheck), "-x", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    options = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --signal=B:USR1@300", "#SBATCH --requeue", "#SBATCH --ntasks-per-node=1"} <= set(options)


@pytest.mark.parametrize(
    ("nodes", "told"), [(1, "up a.yaml x=1 1 4 0 - -"), (2, "up a.yaml x=1 2 4 0 node7 24242")], ids=["one", "two"]
)
def test_every_node_gets_what_train_sh_needs(
    cluster: Callable[..., subprocess.Popen[str]], tmp_path: Path, nodes: int, told: str
) -> None:
    with cluster("a.yaml", "x=1", nodes=nodes, ENDS="1") as process:
        assert line_of(process, "up") == told
    assert process.returncode == 0 and requeued(tmp_path) == []


@pytest.mark.parametrize(
    ("sent", "variables", "code", "calls"),
    [
        (signal.SIGUSR1, {}, 0, ["requeue 4242"]),
        (signal.SIGTERM, {}, 0, []),
        (signal.SIGUSR1, {"CODE": "2"}, 2, []),
    ],
    ids=["warned", "cancelled", "failed"],
)
def test_the_job_goes_back_into_the_queue_after_a_warning_alone(
    cluster: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    sent: signal.Signals,
    variables: Mapping[str, str],
    code: int,
    calls: list[str],
) -> None:
    """`scancel` must not queue a job again, nor may an error that the next start would meet again."""
    with cluster("a.yaml", **variables) as process:
        line_of(process, "up")
        process.send_signal(sent)
        output, _ = process.communicate(timeout=BOUND_S)
    assert output.startswith("heard SIGUSR1\n")
    assert process.returncode == code and requeued(tmp_path) == calls


def test_submitting_from_elsewhere_is_said(cluster: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    (tmp_path / "submitted" / "train.sh").unlink()
    with cluster("a.yaml") as process:
        assert "submit from the repository's folder" in (process.stdout.read() if process.stdout else "")
    assert process.returncode == 2


@pytest.mark.slow
def test_a_run_goes_through_the_queue_and_ends(
    cluster: Callable[..., subprocess.Popen[str]],
    recipe: Callable[..., Path],
    scripted: Callable[..., ScriptedServer],
    tmp_path: Path,
) -> None:
    """The warning comes during an evaluation whose scores do not: saved, queued, and finished by the second job."""
    reached, released, seen = threading.Event(), threading.Event(), []

    def hold(request: dict[str, Any]) -> Reply:
        if len(request["items"]) == 4:  # held-out prompts
            seen.append(1)
            if len(seen) > 2:
                reached.set()
                released.wait(BOUND_S)
        return good(request, lambda item: (sum(item["id"].encode()) % 17) / 17)

    server = scripted(hold)
    services = {"svc": {"urls": [server.url], "max_attempts": 1, "timeout_s": BOUND_S}}
    columns = {"r": {"service": "svc", "canary": "none", "max_failure_rate": 1.0}}
    data = {"train": [{"path": str(ROOT / "assets/quickstart/train.jsonl"), "rewards": {"r": 1.0}}]}
    config = recipe("run", rewards={"services": services, "columns": columns}, data=data)
    run_dir = Path(read_yaml(config)["output_dir"]) / "run"
    trainer = f'cd "{ROOT}" && exec "{sys.executable}" -m trainer train "$@"\n'
    (tmp_path / "submitted" / "train.sh").write_text(trainer)
    with cluster(str(config)) as process:
        deadline = time.monotonic() + BOUND_S
        while not reached.is_set():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=BOUND_S)
    assert process.returncode == 0 and requeued(tmp_path) == ["requeue 4242"], output
    assert read_metrics(run_dir)[-1]["step"] == 2 and "SIGUSR1: saving" in output
    released.set()
    with cluster(str(config)) as process:
        output, _ = process.communicate(timeout=BOUND_S)
    assert process.returncode == 0 and len(requeued(tmp_path)) == 1, output
    assert [row["step"] for row in read_metrics(run_dir)] == [0, 1, 2, 3, 4] and "Finished: 4 steps" in output
