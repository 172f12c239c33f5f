"""The engine without DeepSpeed: every rank holds everything, gradients are summed while the last backward goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from trainer.config import OptimConfig
from trainer.engine.groups import Group, split, trained
from trainer.engine.host import to_host
from trainer.engine.muon import Muon
from trainer.engine.reduction import GradientSum
from trainer.processes.distributed import World

# What each optimizer keeps of a parameter; AdamW counts its steps, the others are of the parameter's shape.
_STATE = {"adamw": {"exp_avg", "exp_avg_sq", "step"}, "muon": {"momentum_buffer"}}
_KINDS = _STATE["adamw"] | _STATE["muon"]


class LocalEngine:
    """Implements `Engine` and `KeepsApart` of `trainer.engine.base` with AdamW, and Muon for the groups that ask for it.

    Attributes:
        optimizers: one for each kind in use.
    """

    def __init__(
        self, module: nn.Module, config: OptimConfig, world: World, group_of: Mapping[str, str] | None = None
    ) -> None:
        self.config, self.world = config, world
        groups = split(module, config, group_of or {})
        self._parameters = trained(module, groups)
        self._kind = {name: group.optimizer for group in groups for name in group.parameters}
        self.optimizers = _optimizers(groups, config)
        self._sum = GradientSum(list(self._parameters.values()), world)
        self._apart: dict[str, Tensor | None] = {}  # the second gradient, by parameter
        self._started: set[str] = set()  # parameters that had a gradient on some rank, in this step or an earlier one

    @property
    def names(self) -> Sequence[str]:
        return list(self._parameters)

    def zero_grad(self) -> None:
        self._sum.forget()
        self._apart.clear()
        for parameter in self._parameters.values():
            parameter.grad = None

    def backward(self, loss: Tensor, *, last: bool) -> None:
        with self._sum.last_pass() if last else nullcontext():
            loss.backward()  # type: ignore[no-untyped-call]

    def backward_apart(self, loss: Tensor, *, again: bool) -> None:
        self._exchange()
        try:
            loss.backward(retain_graph=again)  # type: ignore[no-untyped-call]
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.grad, self._apart[name] = self._apart.get(name), parameter.grad

    def join(self, scale: float) -> None:
        self._scale(scale)
        for name, gradient in self._apart.items():
            parameter = self._parameters[name]
            if parameter.grad is None or gradient is None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad
            else:
                parameter.grad += gradient
        self._apart.clear()

    def _scale(self, scale: float) -> None:
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        if scale != 1 and gradients:
            torch._foreach_mul_(gradients, scale)

    def step(self, lr: float, *, scale: float = 1.0) -> float:
        self._sum.finish()
        self._scale(scale)
        self._started |= {name for name, p in self._parameters.items() if p.grad is not None}
        for name in self._started:
            # A parameter that has begun to move keeps its moments running, as under ZeRO; one that has not is left alone.
            parameter = self._parameters[name]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        parameters = [p for p in self._parameters.values() if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)) if parameters else 0.0
        if self.world.any(not math.isfinite(norm)):
            return math.nan if math.isfinite(norm) else norm
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr * group["rate"]
            optimizer.step()
        return norm

    def numel(self, name: str) -> int:
        return self._parameters[name].numel()

    def read(self, name: str, *, keep: bool = True) -> dict[str, Tensor]:
        if not keep:
            return {}
        parameter = self._parameters[name]
        state = self.optimizers[self._kind[name]].state.get(parameter, {})
        moments = {key: value for key, value in state.items() if value is not None}
        return {key: to_host(value) for key, value in {"weight": parameter, **moments}.items()}

    @torch.no_grad()
    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        parameter, kind = self._parameters[name], self._kind[name]
        state = {key: value for key, value in tensors.items() if key in _KINDS}
        if state and state.keys() != _STATE[kind]:
            raise ValueError(
                f"{name}: the saved state of its optimizer is {', '.join(sorted(state))}, {kind} has "
                f"{', '.join(sorted(_STATE[kind]))}; resume with the optim.groups that wrote the checkpoint"
            )
        for key, value in {"weight": tensors["weight"], **state}.items():
            if key != "step" and value.shape != parameter.shape:
                raise ValueError(
                    f"{name}: the saved {key} has shape {tuple(value.shape)}, the model's is {tuple(parameter.shape)}"
                )
        parameter.copy_(tensors["weight"])
        if state:
            self._started.add(name)
        # AdamW keeps the moments beside the parameter, and its step count on the CPU unless it is fused.
        counted_on = parameter.device if self.optimizers[kind].defaults.get("fused") else torch.device("cpu")
        self.optimizers[kind].state[parameter] = {
            key: value.to(counted_on, copy=True)
            if key == "step"
            else value.to(parameter.device, parameter.dtype, copy=True)
            for key, value in state.items()
        }


def _optimizers(groups: Sequence[Group], config: OptimConfig) -> dict[str, torch.optim.Optimizer]:
    """AdamW and Muon (Jordan 2024, with a momentum of .95), each only where a group has it."""
    settings: dict[str, list[dict[str, object]]] = {}
    for group in groups:
        entry = {"params": list(group.parameters.values()), "weight_decay": group.weight_decay, "rate": group.rate}
        settings.setdefault(group.optimizer, []).append(entry)
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if "adamw" in settings:
        # One kernel for all of a step on CUDA; a CPU keeps the arithmetic that its curves were made with.
        fused = True if all(p.is_cuda for group in groups for p in group.parameters.values()) else None
        optimizers["adamw"] = torch.optim.AdamW(settings["adamw"], lr=config.lr, betas=config.betas, fused=fused)
    if "muon" in settings:
        optimizers["muon"] = Muon(settings["muon"], lr=config.lr)
    return optimizers
