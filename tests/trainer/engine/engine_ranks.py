"""What each rank of test_engines.py runs: the same few steps under every ZeRO stage. Rank 0 writes what it saw as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import DistributedConfig, OptimConfig
from trainer.engine import Engine, build_engine
from trainer.engine.local import LocalEngine
from trainer.processes.distributed import World, world
from trainer.update.ema import Ema

OFFLOAD = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
# A threshold of 0 cuts even small parameters into parts; the default keeps them whole, which is a case of its own.
STAGES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "zero0": {"stage": 0},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero3_whole": {"stage": 3},
    "zero3_hybrid": {"stage": 3, "stage3_param_persistence_threshold": 0, "zero_hpz_partition_size": 2},
    "zero3_offload": {"stage": 3, "stage3_param_persistence_threshold": 0, **OFFLOAD},
}
RARE: dict[str, dict[str, Any] | None] = {  # the same code of ours: slow tests
    "zero1_offload": {"stage": 1, "offload_optimizer": {"device": "cpu"}},
    "zero2_offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "zero1_overlap": {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 64},
    "zero2_overlap": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 64},
}
GROUPED = ("none", "zero2", "zero3")  # run once more with `GROUPS`, as "<stage>+groups"
GROUP_OF = {"0.weight": "first", "0.bias": "first", "4.weight": "last", "4.bias": "frozen"}
GROUPS = {"first": {"lr": 3e-2, "weight_decay": 0.0}, "frozen": {"lr": 0.0}}  # `last` is left out: it has optim.lr
MICRO_BATCHES, BATCH = 4, 8
SCALE = 5.0  # so that gradients are clipped


class Net(nn.Sequential):
    """A frozen layer in the middle; sizes that no number of ranks divides; a layer that is never called, and one that is
    called in some steps."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(7, 13), nn.SiLU(), nn.Linear(13, 13), nn.SiLU(), nn.Linear(13, 1))
        self[2].requires_grad_(False)
        self.idle, self.sometimes = nn.Linear(3, 5), nn.Linear(1, 1, bias=False)
        self.uses_sometimes = True

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self)[:5]:
            x = layer(x)
        return x + self.sometimes(torch.ones(1, 1)) if self.uses_sometimes else x


class Counting(torch.optim.AdamW):
    """AdamW that counts its steps."""

    steps = 0

    def step(self, *args: Any, **kwargs: Any) -> Any:
        type(self).steps += 1
        return super().step(*args, **kwargs)


def build(name: str, group: World, folder: Path) -> tuple[Net, Engine]:
    torch.manual_seed(0)
    module, stage = Net(), (STAGES | RARE)[name.removesuffix("+groups")]
    path = None
    if stage is not None:
        path = str(folder / f"{group.rank}.json")
        settings = {"zero_optimization": stage, "zero_force_ds_cpu_optimizer": False, "gradient_clipping": "auto"}
        Path(path).write_text(json.dumps(settings), encoding="utf-8")
    distributed = DistributedConfig(device="cpu", deepspeed=path)
    groups: Any = GROUPS if name.endswith("+groups") else {}
    config = OptimConfig(lr=1e-2, weight_decay=0.1, groups=groups)
    return module, build_engine(module, config, distributed, group, GROUP_OF)


def take_step(
    module: Net, engine: Engine, group: World, number: int, weigh: Callable[[int], float] = lambda _: 1.0
) -> float:
    """One optimizer step over four micro-batches; the global loss is the mean over the samples of all ranks.

    In the second step the gradient gets a factor at the end that the losses lacked, but for the one engine that others are
    compared with. A power of 2, so that nothing is rounded. Before it, for the same engines, gradients of two micro-batches are
    added up and forgotten, as an early update does whose scores changed.
    """
    is_reference = group.size == 1 and isinstance(engine, LocalEngine)
    scale = 1.0 if number != 1 or is_reference else 8.0
    engine.zero_grad()
    if not is_reference:
        module.uses_sometimes = True
        for _ in range(2):
            engine.backward(module(torch.ones(BATCH, 7)).pow(2).sum(), last=False)
        engine.zero_grad()
    module.uses_sometimes = number != 1  # a step without its gradient, after one with it
    for micro in range(MICRO_BATCHES):
        x = torch.randn(BATCH, 7, generator=torch.Generator().manual_seed(10 * number + micro))
        loss = module(x[group.rank :: group.size]).pow(2).sum() / BATCH * SCALE * weigh(micro) / scale
        engine.backward(loss, last=micro == MICRO_BATCHES - 1)
    return engine.step(1e-2 / (number + 1), scale=scale)


def state(engine: Engine) -> dict[str, dict[str, Tensor]]:
    return {name: engine.read(name) for name in engine.names}


def lists(tensors: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Any]]:
    return {name: {key: value.tolist() for key, value in inner.items()} for name, inner in tensors.items()}


def same(left: dict[str, dict[str, Tensor]], right: dict[str, dict[str, Tensor]]) -> bool:
    return all(
        left[name].keys() == right[name].keys() and all(torch.equal(left[name][k], right[name][k]) for k in left[name])
        for name in left
    )


def one_stage(name: str, group: World, folder: Path) -> dict[str, Any]:
    module, engine = build(name, group, folder)
    before = lists(state(engine))
    ema, probe = Ema(module, 0.5), torch.ones(1, 7)
    Counting.steps = 0
    norms, after_one = [], before
    for number in range(3):
        norms.append(take_step(module, engine, group, number))
        ema.update()
        after_one = lists(state(engine)) if number == 0 else after_one
    saved, averages = state(engine), {name: ema.read(name)["average"] for name in engine.names}
    own = module(probe).item()
    with ema.applied():
        averaged = module(probe).item()
    found: dict[str, Any] = {
        "before": before,
        "norms": norms,
        "optimizer_steps": Counting.steps,
        "state": lists(saved),
        "state_after_one": after_one,
        "average": {name: tensor.tolist() for name, tensor in averages.items()},
        "outputs": [own, averaged, module(probe).item()],
    }
    # One rank keeps what all ranks gather.
    keep = group.rank == group.size - 1
    parts = {name: engine.read(name, keep=keep) for name in engine.names}
    average_parts = {name: ema.read(name, keep=keep).get("average") for name in engine.names}
    if keep:
        one_keeps = same(saved, parts) and all(torch.equal(averages[n], average_parts[n]) for n in averages)
    else:
        one_keeps = not any(parts.values()) and all(part is None for part in average_parts.values())
    found["one_keeps"] = not any(group.gather(not one_keeps))
    found["numel"] = {name: engine.numel(name) for name in engine.names}
    # One rank meets what is not finite, in a micro-batch that is not the last.
    last_rank = group.rank == group.size - 1
    bad = take_step(module, engine, group, 9, lambda micro: float("nan") if last_rank and micro == 1 else 1.0)
    found |= {"norm_of_nan": str(bad), "nothing_stepped": same(saved, state(engine)) and Counting.steps == 3}
    # The state moves into a fresh engine, which then takes the very step this one takes.
    fresh_module, fresh = build(name, group, folder)
    fresh_ema = Ema(fresh_module, 0.5)
    for name, tensors in saved.items():
        fresh.write(name, tensors)
        fresh_ema.write(name, {**saved[name], "average": averages[name]})
    found["moved"] = same(saved, state(fresh)) and all(
        torch.equal(averages[n], fresh_ema.read(n)["average"]) for n in averages
    )
    take_step(module, engine, group, 3)
    take_step(fresh_module, fresh, group, 3)
    found["goes_on"] = same(state(engine), state(fresh))
    try:
        fresh.write("0.bias", {"weight": torch.zeros(14)})
    except ValueError as error:
        found["wrong_shape"] = str(error)
    return found


def main(argv: list[str]) -> int:
    """`argv`: the file to write, and stages."""
    output, stages = Path(argv[0]), argv[1:]
    torch.optim.AdamW = Counting  # type: ignore[misc]
    output.parent.mkdir(parents=True, exist_ok=True)
    with world(DistributedConfig(device="cpu", deepspeed="any")) as group:
        found = {name: one_stage(name, group, output.parent) for name in stages}
        if group.is_main:
            output.write_text(json.dumps(found), encoding="utf-8")
    return 0
