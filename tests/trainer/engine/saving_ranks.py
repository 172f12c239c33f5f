"""What each rank of test_saving_memory.py runs: a checkpoint of a module of many equal matrices, and how much memory the process took for it
at most. Rank 0 writes what it saw as JSON."""

from __future__ import annotations

import gc
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.trainer.engine.engine_ranks import STAGES
from trainer.checkpoint import CheckpointWriter, Retention
from trainer.checkpoint.saver import share
from trainer.config import CheckpointConfig, DistributedConfig, OptimConfig
from trainer.engine import build_engine
from trainer.processes.distributed import World, world
from trainer.update.ema import Ema


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since `forget_peak`."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def forget_peak() -> int:
    """Begin anew with `VmHWM`; the bytes that are there."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmRSS")


def one_case(name: str, group: World, folder: Path, side: int, count: int) -> dict[str, Any]:
    """`name`: a stage, with `+average` also an average of the weights. `count` matrices of `side` x `side`, and one of twice as many rows."""
    stage, _, average = name.partition("+")
    path = folder / f"{group.rank}.json"
    zero = {"zero_optimization": STAGES[stage], "zero_force_ds_cpu_optimizer": False}
    path.write_text(json.dumps(zero), encoding="utf-8")
    rows = [*[side] * (count // 2), 2 * side, *[side] * (count - count // 2)]
    module = nn.ModuleList(nn.Linear(side, each) for each in rows)
    distributed = DistributedConfig(device="cpu", deepspeed=None if STAGES[stage] is None else str(path))
    engine = build_engine(module, OptimConfig(), distributed, group)
    owners: list[Any] = [engine, *([Ema(module, 0.5)] if average else [])]
    engine.zero_grad()
    x = torch.ones(1, side)
    engine.backward(sum((layer(x).sum() for layer in module), torch.zeros(())), last=True)
    engine.step(1e-3)
    engine.zero_grad()
    writer = CheckpointWriter(folder / f"checkpoints_{name}", group, Retention(folder, CheckpointConfig()))
    found: dict[str, Any] = {"copied": [], "written": []}
    for step in (1, 2):
        before = forget_peak()
        kept = share(engine, owners, group)
        copied = resident("VmHWM") - before
        size = sum(tensor.nbytes for kinds in kept.values() for tensor in kinds.values())
        writer.begin(step, kept, {}, json.dumps({"step": step}))
        del kept
        writer.wait()
        found["share"] = group.gather(size)
        found["copied"].append(group.gather(copied))
        found["written"].append(group.gather(resident("VmHWM") - before))
    return {**found, "largest": 4 * 2 * side * side, "weights": 4 * sum(p for p in map(engine.numel, engine.names))}


def main(argv: list[str]) -> int:
    """`argv`: the file to write, the side of the matrices, their number, and a case."""
    output, side, count, case = Path(argv[0]), int(argv[1]), int(argv[2]), argv[3]
    torch.set_num_threads(1)
    with world(DistributedConfig(device="cpu", deepspeed="any")) as group:
        found = one_case(case, group, output.parent, side, count)
        if group.is_main:
            output.write_text(json.dumps(found), encoding="utf-8")
    return 0
