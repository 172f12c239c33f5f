"""The engine without DeepSpeed: every rank holds everything, gradients are summed in one message."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainer.config import OptimConfig
from trainer.processes.distributed import World

_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW's state; beside them it counts its steps


class LocalEngine:
    """Implements `trainer.engine.base.Engine` with AdamW."""

    def __init__(self, module: nn.Module, config: OptimConfig, world: World) -> None:
        self.module, self.config, self.world = module, config, world
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            list(self._parameters.values()), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )

    @property
    def names(self) -> Sequence[str]:
        return list(self._parameters)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> float:
        self.world.sum_gradients(self.module)
        parameters = [p for p in self._parameters.values() if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)) if parameters else 0.0
        if not self.world.any(not math.isfinite(norm)):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        return norm

    def numel(self, name: str) -> int:
        return self._parameters[name].numel()

    def read(self, name: str, *, keep: bool = True) -> dict[str, Tensor]:
        if not keep:
            return {}
        parameter = self._parameters[name]
        moments = {key: value for key, value in self.optimizer.state.get(parameter, {}).items() if value is not None}
        return {key: value.detach().float().cpu().clone() for key, value in {"weight": parameter, **moments}.items()}

    @torch.no_grad()
    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        parameter = self._parameters[name]
        for key in ("weight", *_MOMENTS):
            if key in tensors and tensors[key].shape != parameter.shape:
                raise ValueError(
                    f"{name}: the saved {key} has shape {tuple(tensors[key].shape)}, the model's is {tuple(parameter.shape)}"
                )
        parameter.copy_(tensors["weight"])
        state = {key: tensors[key] for key in ("step", *_MOMENTS) if key in tensors}
        self.optimizer.state[parameter] = {
            # AdamW keeps its step count on the CPU and the moments beside the parameter.
            key: value.clone() if key == "step" else value.to(parameter.device, parameter.dtype, copy=True)
            for key, value in state.items()
        }
