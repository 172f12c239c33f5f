"""The engine on a pretended GPU: fused AdamW, one copy of each tensor, and the state comes back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.pretended_events import count, lines
from tests.support.pretended_gpu import GPU, pretended_gpu
from trainer.config import OptimConfig
from trainer.engine.host import to_host
from trainer.engine.local import LocalEngine
from trainer.processes.distributed import World


def module_on(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2).to(device)


def a_step(engine: LocalEngine, module: nn.Module, device: torch.device) -> None:
    engine.zero_grad()
    engine.backward(module(torch.ones(1, 3, device=device)).sum(), last=True)
    engine.step(1e-2)


def test_adamw_is_fused_on_cuda_alone_and_its_state_comes_back() -> None:
    cpu = torch.device("cpu")
    plain = module_on(cpu)
    expected = LocalEngine(plain, OptimConfig(), World(0, 1, cpu))
    assert expected.optimizers["adamw"].defaults["fused"] is None
    for _ in range(2):
        a_step(expected, plain, cpu)
    with pretended_gpu() as gpu:
        module, again = module_on(GPU), module_on(GPU)
        engine, resumed = (LocalEngine(each, OptimConfig(), World(0, 1, GPU)) for each in (module, again))
        assert engine.optimizers["adamw"].defaults["fused"] is True
        a_step(engine, module, GPU)
        for name in engine.names:
            resumed.write(name, engine.read(name))
        a_step(resumed, again, GPU)
        found = {name: resumed.read(name) for name in resumed.names}
        assert lines(gpu.events, "mixing") == {}
    for name, tensors in found.items():
        for kind, tensor in expected.read(name).items():
            torch.testing.assert_close(tensors[kind], tensor, msg=f"{name} {kind}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_checkpoint_keeps_is_copied_once(dtype: torch.dtype) -> None:
    with pretended_gpu() as gpu:
        tensor = torch.arange(6, dtype=dtype, device=GPU).view(2, 3).T
        with gpu.during() as events:
            kept = to_host(tensor)
        assert count(events, "read") == 1 and not gpu.holds(kept)
    assert kept.dtype == torch.float32 and kept.is_contiguous() and kept.tolist() == [[0, 3], [1, 4], [2, 5]]
