"""The scripts with DeepGen-RL's names, its node list, and paths that count from where the command is typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.migration.deepgen.variables import VARIABLES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/migration_deepgen.md").read_text(encoding="utf-8")
OLD_NAMES = (
    "reward_ocr.sh",
    "reward_unifiedreward.sh",
    "eval_unigenbench_evalmodel.sh",
    "train.sh",
    "rlckpt_to_sftckpt.py",
)


def run(*command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in {*VARIABLES, "PYTHON", "VENV"}}
    return subprocess.run(
        command, cwd=cwd, env={**clean, **variables}, capture_output=True, text=True, timeout=300, check=False
    )


def dry(script: str, *arguments: str, cwd: Path, **variables: str) -> str:
    done = run("bash", str(ROOT / script), *arguments, cwd=cwd, DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_old_name_is_here_and_on_the_page() -> None:
    for name in OLD_NAMES:
        assert (ROOT / "scripts" / name).is_file() and name in PAGE


def test_the_services_are_started_by_our_commands(tmp_path: Path) -> None:
    assert dry("scripts/reward_ocr.sh", cwd=tmp_path) == "python -m services.ocr --legacy --legacy-reward flow_grpo"
    said = dry("scripts/reward_ocr.sh", "--workers", "2", cwd=tmp_path, OCR_WORKERS="64")
    assert "OCR_WORKERS=64 is a setting of DeepGen-RL's trainer" in said
    assert said.endswith("--legacy-reward flow_grpo --workers 2")
    assert dry("scripts/reward_unifiedreward.sh", cwd=tmp_path) == "python -m services.unifiedreward serve"
    judge = dry("scripts/eval_unigenbench_evalmodel.sh", cwd=tmp_path, UNIGENBENCH_PORT="8009", DP_SIZE="4")
    assert "python -m services.eval --judge-url http://127.0.0.1:8009" in judge
    assert "--host 127.0.0.1 --port 8009" in judge and "--data-parallel-size 4" in judge


def test_training_makes_a_recipe_of_the_variables(tmp_path: Path) -> None:
    translate, train = dry(
        "scripts/train.sh", cwd=tmp_path, OUTPUT_DIR="runs/a", DATASET_CONFIG="my.yaml", SFTAUX_DATASET_CONFIG="sft.py"
    ).splitlines()
    assert translate.startswith("python -m trainer from-deepgen --output_dir runs/a --dataset_config my.yaml ")
    assert translate.endswith("--sftaux_dataset_config sft.py ")
    assert train == f"bash {ROOT}/train.sh runs/a/recipe.yaml"


def test_what_would_run_has_the_overrides(tmp_path: Path) -> None:
    *_, train = dry(
        "scripts/train.sh", "max_steps=3", "run_name=my run", cwd=tmp_path, OUTPUT_DIR="runs/a"
    ).splitlines()
    assert train.rstrip().endswith(r"runs/a/recipe.yaml max_steps=3 run_name=my\ run")


def test_a_list_of_nodes_is_honoured_or_refused(tmp_path: Path) -> None:
    nodes = {"NODE_IP_LIST": "10.0.0.1:8,10.0.0.2:8", "NGPUS": "8"}
    wanted = "--nnodes 2 --node-rank 1 --master-addr 10.0.0.1"
    assert wanted in dry("train.sh", cwd=tmp_path, INDEX="1", **nodes)
    assert "--master-addr chief" in dry("train.sh", cwd=tmp_path, INDEX="1", CHIEF_IP="chief", **nodes)
    assert "--node-rank 0 --master-addr a" in dry("train.sh", cwd=tmp_path, NODE_RANK="0", MASTER_ADDR="a", **nodes)
    assert "launch" not in dry("train.sh", cwd=tmp_path, NODE_IP_LIST="10.0.0.1")
    for variables, words in (
        ({"NNODES": "3", "NODE_RANK": "0"}, "NNODES=3, but NODE_IP_LIST names 2 nodes"),
        ({}, "NNODES=2 needs NODE_RANK"),
    ):
        done = run("bash", str(ROOT / "train.sh"), cwd=tmp_path, DRY_RUN="1", **nodes, **variables)
        assert done.returncode == 1 and words in done.stderr


@pytest.mark.parametrize(("gpus", "told"), [("8", True), ("4", False), (None, True)])
def test_a_list_of_nodes_with_other_gpus_is_said(tmp_path: Path, gpus: str | None, told: bool) -> None:
    variables = {"NODE_IP_LIST": "10.0.0.1:2,10.0.0.2:4", "INDEX": "1"} | ({"NGPUS": gpus} if gpus else {})
    done = run("bash", str(ROOT / "train.sh"), cwd=tmp_path, DRY_RUN="1", **variables)
    words = f"NODE_IP_LIST gives node 1 4 GPUs (10.0.0.2:4), but NGPUS is {gpus or 1} and counts. Set NGPUS=4"
    assert done.returncode == 0 and (words in done.stdout + done.stderr) == told
    assert f"--nproc {gpus or 1} " in done.stdout


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A copy of train.sh whose trainer prints a variable and its arguments."""
    root = tmp_path / "root"
    for folder in ("scripts", "configs", "requirements", "trainer", "bin", "here/data"):
        (root / folder).mkdir(parents=True)
    (root / "train.sh").write_text((ROOT / "train.sh").read_text())
    (root / "scripts/setup_venv.sh").write_text(
        f'say() {{ :; }}\ndie() {{ echo "$*" >&2; exit 1; }}\nensure_venv() {{ VENV_PYTHON={sys.executable}; }}\n'
    )
    (root / "configs/quickstart.yaml").touch()
    (root / "data").mkdir()
    (root / "data/ours.json").touch()
    (root / "here/data/mine.json").touch()
    (root / "trainer/__main__.py").write_text(
        "import os, sys\nprint(*sys.argv[3:])\nfor n in ('CHECKPOINT', 'OUTPUT_DIR', 'DATASET_CONFIG'): print(n, os.environ.get(n))\n"
    )
    return root


def test_relative_paths_count_from_where_the_command_is_typed(stub: Path) -> None:
    here = stub / "here"
    done = run(
        "bash",
        str(stub / "train.sh"),
        "data.train.0.path=data/mine.json",
        "evaluation.path=data/ours.json",
        "output_dir=runs",
        "policy.checkpoint=null",
        "run_name=data",
        cwd=here,
        CHECKPOINT="data/mine.json",
        DATASET_CONFIG="data/ours.json",
        OUTPUT_DIR="runs/a",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        f"data.train.0.path={here}/data/mine.json evaluation.path=data/ours.json output_dir={here}/runs "
        "policy.checkpoint=null run_name=data",
        f"CHECKPOINT {here}/data/mine.json",
        f"OUTPUT_DIR {here}/runs/a",
        "DATASET_CONFIG data/ours.json",
    ]


def test_the_lists_of_paths_are_complete() -> None:
    text = (ROOT / "train.sh").read_text()
    fields, variables = (
        set(re.search(rf"^{name}=\(([^)]*)\)", text, re.M).group(1).split())  # type: ignore[union-attr]
        for name in ("PATH_FIELDS", "PATH_VARIABLES")
    )
    sources = "".join(path.read_text() for path in (ROOT / "trainer/config").glob("*.py"))
    named = set(re.findall(r"^    (\w+): (?:File|Output)Path", sources, re.M))
    named -= {"prompt_column", "split"}  # names, not paths
    assert named <= fields, named - fields
    theirs = {n for n, v in VARIABLES.items() if v.field and re.search(r"path|checkpoint|config|dir|folder", v.field)}
    assert theirs <= variables, theirs - variables


def test_their_checkpoint_becomes_one_file_of_tensors(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-95"
    folder.mkdir()
    save_file({"transformer.weight": torch.arange(4.0)}, folder / "model.safetensors")
    command = (sys.executable, str(ROOT / "scripts/rlckpt_to_sftckpt.py"), "--rl_checkpoint", str(folder), "--output")
    done = run(*command, str(tmp_path / "out/weights"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "out/weights.pth", weights_only=True)
    assert torch.equal(found["transformer.weight"], torch.arange(4.0))
    again = run(*command, str(tmp_path / "out/weights.pth"), cwd=tmp_path)
    assert again.returncode == 2 and "exists; give another name" in again.stderr
