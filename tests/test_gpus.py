"""GPUs that the machine shows, by a pretended nvidia-smi: used, or refused with driver, CUDA and remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import machine.gpus
from machine.gpus import GpuError, Gpus, check_processes, check_torch_uses, shown, without_driver
from services.kit.models.towers import choose_device
from trainer.config import Config, ConfigError
from trainer.config.file import load_config
from trainer.doctor.machine import check_device, check_memory
from trainer.processes.distributed import pick_device
from trainer.processes.launch import main as launch

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "configs/quickstart.yaml"
SMI = """#!/bin/sh
case "$1" in
    -L|--list-gpus) for i in 0 1 2 3; do echo "GPU $i: NVIDIA A100-SXM4-80GB (UUID: GPU-$i)"; done ;;
    --query-gpu=driver_version) echo 535.104.05 ;;
    *) echo "| NVIDIA-SMI 535.104.05   Driver Version: 535.104.05   CUDA Version: 12.2 |" ;;
esac
"""


@pytest.fixture
def four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that shows four GPUs with an older driver, while torch sees none."""
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return program


def test_what_is_shown_has_driver_and_cuda(four: Path) -> None:
    assert shown() == Gpus(4, 4, "535.104.05", "12.2")
    assert "4 NVIDIA GPUs are here (driver 535.104.05, CUDA up to 12.2)" in str(shown())


@pytest.mark.parametrize(
    ("named", "visible"), [("", 0), ("-1", 0), ("2", 1), ("0,3", 2), ("0,9,1", 1), ("GPU-1,GPU-2", 2), ("3,2,1,0", 4)]
)
def test_hidden_gpus_are_not_asked_for(four: Path, monkeypatch: pytest.MonkeyPatch, named: str, visible: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert shown().visible == visible
    if not visible:
        assert pick_device("auto").type == "cpu"


def test_a_broken_nvidia_smi_does_not_hide_the_devices(
    four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n")
    monkeypatch.setattr(machine.gpus, "_DEVICES", tmp_path / "dev")
    monkeypatch.setattr(machine.gpus, "_DRIVER_FILE", tmp_path / "version")
    assert shown() == Gpus(2, 2, "535.104.05", "")
    with pytest.raises(GpuError, match="CUDA up to an unknown version"):
        check_torch_uses(shown(), instead="x")


@pytest.mark.parametrize(
    ("built", "why"),
    [
        (None, "it is built without CUDA. Install a build of torch for this driver"),
        (
            "13.0",
            r"it is built for CUDA 13.0, newer than this driver knows \(it needs 580\). Update the driver, or install",
        ),
        ("12.8", "it is built for CUDA 12.8 and says: "),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_refused_everywhere(
    four: Path, monkeypatch: pytest.MonkeyPatch, built: str | None, why: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    with pytest.raises(ConfigError, match=rf"4 NVIDIA GPUs are here.*{why}.*distributed.device=cpu"):
        pick_device("auto")
    with pytest.raises(ConfigError, match="4 NVIDIA GPUs are here"):
        pick_device("cuda")
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=rf"{why}.*--device cpu"):
        choose_device("auto")
    assert choose_device("cpu").type == "cpu"
    config = load_config(QUICKSTART, Config)
    (finding,) = check_device(config)
    assert finding.status == "FAIL" and "driver 535.104.05, CUDA up to 12.2" in finding.message
    assert list(check_memory(config)) == []


def test_a_torch_that_sees_them_is_not_refused(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("auto") == torch.device("cuda", 3)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(ConfigError, match=r"process 4 of this node \(from 0\) has no GPU.*torch sees 4; set NGPUS=4"):
        pick_device("auto")


def test_more_processes_than_gpus_are_refused_before_anything_starts(
    four: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_processes(shown(), 4)
    check_processes(Gpus(0, 0), 8)  # all on the CPU
    assert launch(["--nproc", "8", "train", str(QUICKSTART)]) == 2
    said = capsys.readouterr().err
    assert "NGPUS=8 asks for 8 processes with a GPU each" in said and "Set NGPUS=4" in said
    monkeypatch.setenv("NGPUS", "8")
    (finding,) = check_device(load_config(QUICKSTART, Config))
    assert finding.status == "FAIL" and "Set NGPUS=4" in finding.message
    assert launch(["--nproc", "4", "train", str(QUICKSTART)]) == 2, "torch cannot use them"
    assert "but torch" in capsys.readouterr().err


def test_the_command_refuses_before_a_service_is_started(four: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "train", str(QUICKSTART), f"output_dir={tmp_path}/outputs"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=300,
    )
    assert done.returncode == 2 and "4 NVIDIA GPUs are here" in done.stderr
    assert "starting" not in done.stdout and "Traceback" not in done.stderr


def test_a_gpu_without_a_driver_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine.gpus, "_PCI", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, vendor, kind in (("0000:00:01.0", "0x8086", "0x030000"), ("0000:17:00.0", "0x10de", "0x030200")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    assert "PCI 0000:17:00.0" in without_driver()
    assert pick_device("auto").type == "cpu"
    assert "distributed.device = auto is the CPU: an NVIDIA GPU is built into this machine" in capsys.readouterr().err
