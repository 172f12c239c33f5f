"""The machine: device, memory, ports."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from machine.gpus import GpuError, check_processes, shown, without_driver
from trainer.config import Config, ConfigError
from trainer.config.deepspeed import read_deepspeed
from trainer.doctor.findings import Finding
from trainer.doctor.weights import (
    held_bytes,
    is_count,
    is_large,
    planned_ranks,
    process_count,
    saved_bytes,
    sizes,
    working,
)
from trainer.processes.distributed import pick_device

GIB = 1 << 30
_TRAINER_BYTES = 1 * GIB  # torch, diffusers and a small policy
_CROWDED = 0.8  # share of a device that weights and optimizer may take before it is said
_LESS = "lower the services' `workers` or what DeepSpeed offloads"
_SMALLER = (
    "share it out with distributed.deepspeed=configs/deepspeed/zero2.json (or zero3, zero3_offload), train adapters "
    "(policy.lora), or keep the encoders away (policy.offload_encoders)"
)
_WORKER_BYTES = GIB // 2  # a service or one of its worker processes


def check_device(config: Config) -> Iterator[Finding]:
    """Whether the device that is asked for is there, for every process of this node, and the threads fit."""
    processes = process_count("NGPUS")
    try:
        if config.distributed.device != "cpu":
            check_processes(shown(), processes)
        device = pick_device(config.distributed.device)
    except (ConfigError, GpuError) as error:
        yield Finding("device", "FAIL", str(error))
        return
    if process_count("NNODES") > 1:
        yield Finding(
            "device", "NOT CHECKED", "other nodes", "run the doctor on each, with NNODES and NGPUS as for training"
        )
    if device.type == "cuda":
        yield _gpu_finding(processes)
        return
    if config.distributed.device == "auto" and processes > 1:
        message = f"{processes} processes on this node would train on the CPU: no GPU is here"
        yield Finding("device", "WARN", message, "if meant, say so with distributed.device=cpu")
    if config.distributed.device == "auto" and (built_in := without_driver()):
        yield Finding("device", "WARN", built_in, "install NVIDIA's driver, or give the container the GPU")
    if is_large(config):
        message = f"the policy {config.policy.type} would be trained on a CPU, where a step takes minutes to hours"
        yield Finding("device", "WARN", message, "start where a GPU is; configs/quickstart.yaml is made for a CPU")
    cores = _cores()
    threads = config.distributed.num_threads or torch.get_num_threads()
    message = f"CPU with {cores} usable cores, {threads} torch threads per process"
    if threads > cores:
        yield Finding("device", "WARN", message, f"set distributed.num_threads to at most {cores}")
    elif not is_large(config):
        yield Finding("device", "OK", message)


def _gpu_finding(processes: int) -> Finding:
    """The GPUs of this node's processes: each must be nearly free."""
    memory = [torch.cuda.mem_get_info(index) for index in range(processes)]
    free, total = min(memory)
    which = "on cuda:0" if processes == 1 else f"on the fullest of the {processes} used"
    message = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free {which}"
    if free < total / 2:
        return Finding("device", "WARN", message, "something else holds more than half of it: see nvidia-smi")
    return Finding("device", "OK", message)


def check_compiler(config: Config) -> Iterator[Finding]:
    """A compiler, where something is compiled at its first use: Triton's kernels, DeepSpeed's optimizer on the CPU."""
    reasons = []
    if getattr(config.policy, "compile", False):
        reasons.append("policy.compile")
    if config.distributed.deepspeed is not None:
        offload = read_deepspeed(config.distributed.deepspeed)["zero_optimization"].get("offload_optimizer", {})
        if offload.get("device", "none") != "none":
            reasons.append(f"offload_optimizer in {Path(config.distributed.deepspeed).name}")
    if not reasons:
        return
    named = [os.environ.get("CC") or "cc", os.environ.get("CXX") or "c++"]
    missing = [name for name in named if shutil.which(name) is None]
    what = " and ".join(reasons)
    if missing:
        message = f"{what}: compiled at the first use, and there is no {' nor '.join(missing)}"
        remedy = "install a compiler (Debian, Ubuntu: apt-get install g++), or name yours in CC and CXX"
        yield Finding("compiler", "FAIL", message, remedy)
    else:
        yield Finding("compiler", "OK", f"{what}: {' and '.join(named)} are there")


def check_memory(config: Config) -> Iterator[Finding]:
    """What each process holds of a large policy against its device, and the machine's free memory against what the
    processes here and the services they start need, roughly."""
    try:
        device = pick_device(config.distributed.device)
    except ConfigError:
        return  # `check_device` says so
    for name in ("NGPUS", "NNODES"):
        if (text := os.environ.get(name)) and not is_count(text):
            yield Finding("memory", "FAIL", f"{name}={text} is no number of processes", "give a whole number from 1")
    here, found = process_count("NGPUS"), sizes(config)
    needed, saving = float(here * _TRAINER_BYTES), 0.0
    if found is None:
        message = f"what the policy {config.policy.type} takes: the headers of its files cannot be read here"
        yield Finding("memory", "NOT CHECKED", message, "name the model's files in the policy section, where they are")
        return
    if found is not None:
        held = held_bytes(config, found, planned_ranks())
        saving = here * saved_bytes(config, found, planned_ranks())
        needed += here * held.host + saving
        if device.type == "cuda":
            yield _device_memory(config, held.device, torch.cuda.mem_get_info(device)[1])
        else:
            needed += here * (sum(held.device.values()) + max(working(config).values(), default=0.0))
            if is_large(config):  # what a small one holds is lost among the programs around it
                yield Finding("memory", "WARN", _held(config, held.device), _SMALLER)
    if config.rewards.launch == "local":
        for service in config.rewards.services.values():
            workers = service.args.get("workers", 1)
            needed += 0 if service.urls else _WORKER_BYTES * (workers if isinstance(workers, int) else 1)
    yield _machine_memory(needed, saving)


def _machine_memory(needed: float, saving: float) -> Finding:
    """`saving`: what is taken of it while a checkpoint is written."""
    free, total = _memory()
    if free is None or total is None:
        message = f"about {needed / GIB:.1f} GiB are needed; the system does not say what it has"
        return Finding("memory", "NOT CHECKED", message)
    message = f"{free / GIB:.1f} GiB of the machine's memory are free, about {needed / GIB:.1f} needed"
    if saving >= GIB / 10:
        message += f" ({saving / GIB:.1f} while a checkpoint is written)"
    if total < needed:
        return Finding(
            "memory", "FAIL", f"{message}, and it has {total / GIB:.1f} in all", f"a larger machine, or {_LESS}"
        )
    if free < needed:
        return Finding("memory", "WARN", message, f"close other programs, or {_LESS}")
    return Finding("memory", "OK", message)


def _device_memory(config: Config, held: Mapping[str, float], total: int) -> Finding:
    most = max(working(config).values(), default=0.0)
    message, share = f"{_held(config, held)}, of {total / GIB:.1f} GiB", (sum(held.values()) + most) / total
    if share > 1:
        return Finding("memory", "FAIL", message, _SMALLER)
    if share > _CROWDED:
        return Finding(
            "memory",
            "WARN",
            f"{message}: little is left{'' if most else ' for activations'}",
            f"if it does not fit, {_SMALLER}",
        )
    return Finding("memory", "OK", message)


def _held(config: Config, held: Mapping[str, float]) -> str:
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in held.items() if size)
    ranks, settings = planned_ranks(), config.distributed.deepspeed
    processes = f"{ranks} processes" if ranks > 1 else "1 process"
    by = f" by {Path(settings).name}" if settings else ""
    told = f"before activations each of {processes}{by} holds {sum(held.values()) / GIB:.1f} GiB ({parts})"
    more = ", ".join(f"{name} {size / GIB:.1f}" for name, size in working(config).items())
    return f"{told}, and at most one of these comes on top: {more}" if more else told


def check_ports(config: Config) -> Iterator[Finding]:
    """Ports that this start would listen on: fixed ones of local services, and torchrun's on the first node."""
    wanted: dict[str, tuple[str, int]] = {}
    if config.rewards.launch == "local":
        for name, service in config.rewards.services.items():
            port = service.args.get("port", 0)
            if not service.urls and isinstance(port, int) and port:
                wanted[f"rewards.services.{name}.args.port"] = (str(service.args.get("host", "127.0.0.1")), port)
    nodes, master = process_count("NNODES"), os.environ.get("MASTER_PORT", "")
    if nodes > 1 and os.environ.get("NODE_RANK", "0") == "0" and is_count(master):
        wanted["MASTER_PORT"] = ("127.0.0.1", int(master))
    for what, (host, port) in wanted.items():
        try:
            with socket.create_server((host, port)):
                pass
        except (OSError, OverflowError) as error:
            reason = f"{what} = {port} cannot be listened on: {error}"
            yield Finding("ports", "FAIL", reason, "stop what listens there, or choose another port")
        else:
            yield Finding("ports", "OK", f"{what} = {port} is free")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> tuple[int | None, int | None]:
    """Bytes that programs can still get, and those that the machine has; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None, None
    found = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
    return found.get("MemAvailable"), found.get("MemTotal")
