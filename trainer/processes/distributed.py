"""Processes and devices: who am I, which device, sums over all ranks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from machine.gpus import GpuError, check_torch_uses, shown, without_driver
from trainer.config import ConfigError, DistributedConfig
from trainer.config.base import say

_LENGTH, _SMALL = 8, 4096  # bytes of a gathered value's length, and of what of the value goes along with it


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA when there is one.

    Raises:
        ConfigError: CUDA was asked for and is missing; the machine shows a GPU that torch cannot use; or this process is
            one of more than there are GPUs.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        try:
            check_torch_uses(shown(), instead="distributed.device=cpu")
        except GpuError as error:
            raise ConfigError(str(error)) from error
        if name == "cuda":
            raise ConfigError("distributed.device = cuda, but torch sees no CUDA device; use auto or cpu")
        if built_in := without_driver():
            say(f"distributed.device = auto is the CPU: {built_in}")
        return torch.device("cpu")
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise ConfigError(
            f"process {local} of this node (from 0) has no GPU of its own: torch sees {count}; set NGPUS={count}, or "
            "distributed.device=cpu"
        )
    return torch.device("cuda", local)


@dataclass(frozen=True)
class World:
    """This process among all ranks. One process without torchrun is a world of one."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks; the input is left alone."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def totals(self, there: Mapping[str, Tensor], here: Mapping[str, float]) -> dict[str, float]:
        """Sums over all ranks by name, of 0-d tensors on the device, which is waited for once, and of numbers of the CPU. All ranks
        have the same names."""
        added = self.sum(torch.stack([value.double() for value in there.values()])).tolist() if there else []
        if here:
            added += self.sum(torch.tensor(list(here.values()), dtype=torch.float64)).tolist()
        return dict(zip([*there, *here], added, strict=True))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank. It travels by the CPU, as the device would have to finish all that was queued."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))).item())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value` (anything JSON holds), by rank, on every rank. Travels as JSON bytes, never pickled, by the CPU (see
        `any`)."""
        if self.size == 1:
            return [value]
        data = json.dumps(value).encode()
        # What is said in a step mostly goes into the message that says how long it is.
        heads = self._gather_bytes(len(data).to_bytes(_LENGTH, "little") + data[:_SMALL], _LENGTH + _SMALL)
        lengths = [int.from_bytes(head[:_LENGTH], "little") for head in heads]
        if max(lengths) > _SMALL:
            rests = self._gather_bytes(data[_SMALL:], max(lengths) - _SMALL)
            heads = [head + rest for head, rest in zip(heads, rests, strict=True)]
        return [json.loads(head[_LENGTH : _LENGTH + length]) for head, length in zip(heads, lengths, strict=True)]

    def _gather_bytes(self, data: bytes, size: int) -> list[bytes]:
        """Every rank's `data`, filled up to `size`. By the CPU, as `any`."""
        buffers = [torch.empty(size, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(buffers, torch.frombuffer(bytearray(data.ljust(size, b"\0")), dtype=torch.uint8))
        return [buffer.numpy().tobytes() for buffer in buffers]

    def barrier(self) -> None:
        """Wait for all ranks; not for what their devices still have to do."""
        self.any(False)


@dataclass(frozen=True)
class Share:
    """One rank's part of some items: the first `real` of `indices` are its own, the rest fill up and are to be dropped."""

    indices: Sequence[int]
    real: int


def even_share(count: int, rank: int, size: int) -> Share:
    """Items 0 to `count` - 1 dealt to `size` ranks in runs, in order, so that all ranks get equally many indices.

    Under ZeRO-3 every forward pass is a collective: ranks with different numbers of micro-batches would wait for one
    another for ever. A short rank repeats its last item, an empty one the last of all; no items give empty shares.
    """
    start, stop = rank * count // size, (rank + 1) * count // size
    longest = -(-count // size)
    filler = stop - 1 if stop > start else count - 1
    return Share([*range(start, stop), *[filler] * (longest - (stop - start))], stop - start)


@contextmanager
def world(config: DistributedConfig) -> Iterator[World]:
    """Join the process group that torchrun describes in the environment, and leave it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = pick_device(config.device)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1 and config.deepspeed is None:
        yield World(rank=0, size=1, device=device)
        return
    # Statistics live on the CPU, gradients on the device: each kind of tensor has its own backend.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=config.timeout_s)
    if size == 1:
        dist.init_process_group(backend, timeout=timeout, store=HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend, timeout=timeout)
    failed = True
    try:
        yield World(rank=rank, size=size, device=device)
        failed = False
    finally:
        # NCCL ends a group together with the other ranks, which may wait for a failed one in a collective until they are
        # told of it. That comes later, and the process ends then.
        if not (failed and size > 1 and device.type == "cuda"):
            dist.destroy_process_group()
            time.sleep(0.3)  # gloo's threads may still be ending; leaving at once can abort the interpreter
