"""What this machine is: everything that the other parts' numbers depend on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.first_gpu.rates import copy_rate, matrix_rate
from benchmarks.first_gpu.rows import Row
from benchmarks.first_gpu.setting import Setting

PACKAGES = (
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "pydantic",
    "safetensors",
    "numpy",
    "fastapi",
)


def measure(setting: Setting) -> Iterator[Row]:
    yield setting.row("Python, machine", f"{platform.python_version()}, {platform.platform()}, {os.cpu_count()} cores")
    found = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield setting.row(
        "packages", found, note=f"torch for CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )
    compilers = [path for name in (os.environ.get("CC") or "cc", "gcc", "clang") if (path := shutil.which(name))]
    yield setting.row("C compiler", compilers[0] if compilers else "none", note="compiled parts need one")
    yield setting.row("free memory of the machine, GiB", _free_gib())
    if setting.is_gpu:
        free, total = torch.cuda.mem_get_info()
        card = torch.cuda.get_device_properties(0)
        yield setting.row(
            "GPU", card.name, note=f"{torch.cuda.device_count()} seen, {card.multi_processor_count} multiprocessors"
        )
        yield setting.row("driver", _driver())
        yield setting.row("free memory of the card, GiB", free / 2**30, note=f"of {total / 2**30:.1f}")
    else:
        yield setting.row("GPU", "none", note="measured on the CPU, at tiny size")
    size = 256 if setting.tiny else 8192
    yield setting.row(f"bf16 matrix products of {size}², TFLOP/s", matrix_rate(setting.device, size) / 1e12)
    yield setting.row("copies, TB/s read and written", copy_rate(setting.device) / 1e12)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _free_gib() -> float | None:
    """What programs can still get, as Linux says it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        print(error, file=sys.stderr)
        return "nvidia-smi does not say"
