"""The machine: device, memory, ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from trainer.config import Config, ConfigError
from trainer.distributed import pick_device
from trainer.doctor.findings import Finding
from trainer.doctor.weights import held_bytes, is_count, planned_ranks, process_count, sizes

GIB = 1 << 30
_TRAINER_BYTES = 1 * GIB  # torch, diffusers and a small policy
_CROWDED = 0.8  # share of a device that weights and optimizer may take before it is said
_WORKER_BYTES = GIB // 2  # a service or one of its worker processes


def check_device(config: Config) -> Iterator[Finding]:
    """Whether the device that is asked for is there, and the threads fit."""
    try:
        device = pick_device(config.distributed.device)
    except ConfigError as error:
        yield Finding("device", "FAIL", str(error))
        return
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        message = f"{torch.cuda.device_count()} x {name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free on {device}"
        if free < total / 2:
            yield Finding("device", "WARN", message, "something else holds more than half of it: see nvidia-smi")
        else:
            yield Finding("device", "OK", message)
        return
    cores = _cores()
    threads = config.distributed.num_threads or torch.get_num_threads()
    message = f"CPU with {cores} usable cores, {threads} torch threads per process"
    if threads > cores:
        yield Finding("device", "WARN", message, f"set distributed.num_threads to at most {cores}")
    else:
        yield Finding("device", "OK", message)


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
    needed = float(here * _TRAINER_BYTES)
    if found is not None:
        held = held_bytes(config, found, planned_ranks())
        needed += here * held.host
        if device.type == "cuda":
            yield _device_memory(config, held.device, torch.cuda.mem_get_info(device)[1])
        else:
            yield Finding("memory", "OK", _held(config, held.device))
            needed += here * sum(held.device.values())
    if config.rewards.launch == "local":
        for service in config.rewards.services.values():
            workers = service.args.get("workers", 1)
            needed += 0 if service.urls else _WORKER_BYTES * (workers if isinstance(workers, int) else 1)
    free = _free_memory()
    if free is None:
        return
    message = f"{free / GIB:.1f} GiB of the machine's memory are free, about {needed / GIB:.1f} needed"
    if free < needed:
        remedy = "close other programs, or lower the services' `workers` or what DeepSpeed offloads"
        yield Finding("memory", "WARN", message, remedy)
    else:
        yield Finding("memory", "OK", message)


def _device_memory(config: Config, held: Mapping[str, float], total: int) -> Finding:
    message, share = f"{_held(config, held)}, of {total / GIB:.1f} GiB", sum(held.values()) / total
    remedy = (
        "share it out with distributed.deepspeed=configs/deepspeed/zero2.json (or zero3, zero3_offload), train adapters "
        "(policy.lora), or keep the encoders away (policy.offload_encoders)"
    )
    if share > 1:
        return Finding("memory", "FAIL", message, remedy)
    if share > _CROWDED:
        return Finding("memory", "WARN", f"{message}: little is left for activations", f"if it does not fit, {remedy}")
    return Finding("memory", "OK", message)


def _held(config: Config, held: Mapping[str, float]) -> str:
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in held.items() if size)
    ranks, settings = planned_ranks(), config.distributed.deepspeed
    processes = f"{ranks} processes" if ranks > 1 else "1 process"
    by = f" by {Path(settings).name}" if settings else ""
    return f"before activations each of {processes}{by} holds {sum(held.values()) / GIB:.1f} GiB ({parts})"


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


def _free_memory() -> int | None:
    """Bytes that programs can still get; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None
