"""DeepSpeed's ZeRO stages 1 to 3 (arXiv 1910.02054), with and without offload, behind the Engine protocol.

The module's own `forward` is called, never DeepSpeed's wrapper: under stage 3 hooks of the submodules gather weights
around every call, so sampling, replay and evaluation are the same code under every stage. Weights, gradients and AdamW's
moments are float32; what a policy computes in bfloat16, it does by autocast.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import ConfigError, OptimConfig
from trainer.config.deepspeed import offloads_optimizer, passed_on, stage
from trainer.engine.cutting import cut, cut_frozen
from trainer.engine.groups import Group, split, trained
from trainer.engine.host import to_host
from trainer.processes.distributed import World

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroEngine:
    """Implements `trainer.engine.base.Engine`. `settings` is a DeepSpeed JSON file of stage 1, 2 or 3."""

    def __init__(
        self,
        module: nn.Module,
        config: OptimConfig,
        settings: Mapping[str, Any],
        world: World,
        group_of: Mapping[str, str] | None = None,
        frozen: nn.Module | None = None,
    ) -> None:
        self.module, self.config, self.world = module, config, world
        self.stage = stage(settings)
        groups = split(module, config, group_of or {})
        if any(group.optimizer == "muon" for group in groups):
            raise ConfigError(
                "optim.groups asks for muon, which needs whole matrices, but distributed.deepspeed cuts them into parts: use "
                "adamw, or leave distributed.deepspeed out"
            )
        self._parameters = trained(module, groups)
        self._decays = {name: group.weight_decay for group in groups for name in group.parameters}
        # Parameters without a gradient on any rank so far, and those that this rank had one for in the present step.
        self._waiting, self._reached = set(self._parameters), set[str]()
        for name, parameter in self._parameters.items():
            parameter.register_hook(partial(self._reach, name))  # type: ignore[no-untyped-call]
        with _quiet_deepspeed(world):
            self._engine, self._adamw = self._build(passed_on(settings), groups)
            # Kept, as it holds the hooks that gather the frozen network's weights around every call.
            self._frozen = None if frozen is None or self.stage < 3 else cut_frozen(frozen, passed_on(settings), world)
        self._zero = self._engine.optimizer
        self._linked = False  # whether the moments were made, in the first step

    def _build(self, settings: dict[str, Any], groups: Sequence[Group]) -> tuple[Any, torch.optim.Optimizer]:
        import deepspeed

        optimizer, away = _optimizer_class(settings), offloads_optimizer(settings)
        adamw = optimizer(
            [
                {"params": list(group.parameters.values()), "weight_decay": group.weight_decay, "rate": group.rate}
                for group in groups
            ],
            lr=self.config.lr,
            betas=self.config.betas,
            **(
                {"fused": True}
                if optimizer is torch.optim.AdamW and self.world.device.type == "cuda" and not away
                else {}
            ),
        )
        ours = {
            # DeepSpeed counts samples by these; what a step holds is decided by `backward` and `step` alone.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.config.max_grad_norm,
            "zero_allow_untested_optimizer": True,
        }
        if self.stage == 3:
            cut(self.module, {**settings, **ours}, self.world)
        engine, *_ = deepspeed.initialize(model=self.module, optimizer=adamw, config={**settings, **ours})
        return engine, adamw

    @property
    def names(self) -> Sequence[str]:
        return list(self._parameters)

    def zero_grad(self) -> None:
        self._reached.clear()
        self._zero.zero_grad(set_to_none=True)
        if self.stage == 3:
            self._forget_parts()
        else:
            self._forget_sums()

    def _forget_parts(self) -> None:
        """Set stage 3's parts of the gradients to 0.

        DeepSpeed overwrites a parameter's part in the first backward of a step alone: a parameter which that one does not
        reach would add to, or train again on, the gradient of its last step.
        """
        for part in self._zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.values():
            part.zero_()
        if self._zero.offload_optimizer:  # it holds a second copy, and norms
            self._zero.norm_for_param_grads.clear()
            for flat in self._zero.fp32_partitioned_groups_flat:
                if flat.grad is not None:
                    flat.grad.zero_()

    def _forget_sums(self) -> None:
        """Forget what stages 1 and 2 have added up.

        DeepSpeed drops these sums when a step is taken, not when gradients are set to 0: what was added up before and given up,
        as by an early update whose scores changed, would count in the next step. Its optimizer on the CPU also keeps
        the last gradient of a parameter that a step does not reach.
        """
        self._zero.all_grad_tensors.clear()
        self._zero.averaged_gradients.clear()  # the dictionary itself is linked to the parameters
        if self._zero.cpu_offload:
            self._zero.micro_step_id = -1  # before the first backward pass
            self._zero.reset_cpu_buffers()
            flats = [flat.grad for flat in self._zero.single_partition_of_fp32_groups if flat.grad is not None]
            for each in (*self._zero.accumulated_grads_in_cpu.values(), *flats):
                each.zero_()

    def _reach(self, name: str, gradient: Tensor) -> None:
        self._reached.add(name)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        # DeepSpeed's own forward would say that the next backward adds to the gradients and does not replace them.
        self._zero.clear_backward_seen_flag()
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.world.size)  # it averages over the ranks, the loss is their sum

    def step(self, lr: float, *, scale: float = 1.0) -> float:
        for group in self._zero.param_groups:
            group["lr"] = lr * group["rate"]
        left_alone = self._left_alone()
        with self._scaled(scale):
            self._engine.step()  # where the norm is not finite, it takes none and calls that an overflow
        if not self._linked and not self._zero.overflow:
            self._link_moments()
            self._linked = True
        for name, weight in left_alone.items():
            self._put_weight(name, weight)
        return float("inf") if self._zero.overflow else float(self._engine.get_global_grad_norm())

    @contextlib.contextmanager
    def _scaled(self, scale: float) -> Iterator[None]:
        """Inside the block DeepSpeed multiplies the gradients by `scale` before it takes their norm.

        It divides them by the loss scale, which is 1 in float32; the backward passes were made with that.
        """
        before, self._zero.loss_scale = self._zero.loss_scale, 1.0 / scale if scale else float("inf")
        try:
            yield
        finally:
            self._zero.loss_scale = before

    def _left_alone(self) -> dict[str, Tensor]:
        """The weights that the step must not change: of parameters that no rank has had a gradient for so far.

        AdamW steps whole flat buffers. To it, a missing gradient is one of 0, which with moments of 0 moves nothing; but
        weight decay would. The last block of a transformer whose text stream ends unused is such a case.
        """
        if not self._waiting:
            return {}
        names = [name for name in self._parameters if name in self._waiting]
        reached = torch.tensor([float(name in self._reached) for name in names])
        counts = self.world.sum(reached).tolist()
        self._waiting = {name for name, count in zip(names, counts, strict=True) if not count}
        from deepspeed.utils import safe_get_full_fp32_param

        return {
            name: safe_get_full_fp32_param(self._parameters[name]).detach().clone()
            for name in names
            if name in self._waiting and self._decays[name]
        }

    def numel(self, name: str) -> int:
        parameter = self._parameters[name]
        return int(getattr(parameter, "ds_numel", parameter.numel()))

    def read(self, name: str, *, keep: bool = True) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self._parameters[name]
        gathers: dict[str, Callable[[], Tensor]] = {"weight": partial(safe_get_full_fp32_param, parameter)}
        steps = [state["step"] for state in self._adamw.state.values() if "step" in state]
        if steps and name not in self._waiting:
            gathers |= {key: partial(safe_get_full_optimizer_state, parameter, key) for key in _MOMENTS}
            gathers["step"] = lambda: torch.tensor(float(steps[0]))
        found = {}
        for key, gather in gathers.items():
            whole = gather()  # of one kind at a time: the largest parameter may be gigabytes
            if keep:
                found[key] = to_host(whole)
            del whole
        return found

    @torch.no_grad()
    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        parameter = self._parameters[name]
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if "momentum_buffer" in tensors:
            raise ValueError(f"{name}: the saved state of its optimizer is Muon's, but under DeepSpeed all have AdamW")
        for key in ("weight", *_MOMENTS):
            if key in tensors and tensors[key].shape != shape:
                raise ValueError(
                    f"{name}: the saved {key} has shape {tuple(tensors[key].shape)}, the model's is {tuple(shape)}"
                )
        self._put_weight(name, tensors["weight"].to(self.world.device))
        if "step" in tensors:
            self._waiting.discard(name)
            self._begin_state(tensors["step"])
            for key in _MOMENTS:
                self._set(parameter, tensors[key].to(self.world.device), key)

    @torch.no_grad()
    def _put_weight(self, name: str, weight: Tensor) -> None:
        """Set both copies of a weight: what the forward pass reads, and the optimizer's own."""
        import deepspeed

        parameter = self._parameters[name]
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(weight)
        if self.stage == 3:
            parameter.ds_secondary_tensor = None  # type: ignore[attr-defined]  # a node's copy (hpZ) is of the weight before
        self._set(parameter, weight)

    def _set(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Set the optimizer's copy of the weight, or the moment `key`, from the whole tensor."""
        from deepspeed import utils

        if self.stage < 3:
            if key is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        # The whole-tensor setters fail where the last parts are padded.
        size: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        part = value.flatten()[self.world.rank * size :][:size]
        part = nn.functional.pad(part, (0, size - part.numel()))
        if key is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, key)

    def _begin_state(self, step: Tensor) -> None:
        """AdamW makes its moments in the first step; before it, make them for `write` to fill."""
        # One flat tensor a parameter group (stages 1, 2) or a sub-group of it (stage 3).
        flats = (
            self._zero.fp32_partitioned_groups_flat if self.stage == 3 else self._zero.single_partition_of_fp32_groups
        )
        for flat in flats:
            state = self._adamw.state[flat]
            for key in _MOMENTS:
                if key not in state:
                    state[key] = torch.zeros_like(flat)
            is_fused = self._adamw.defaults.get("fused", False)  # its count is beside the moments, else on the CPU
            counted = step.to(flat.device if is_fused else "cpu", copy=True)
            state["step"] = int(step) if "DeepSpeed" in type(self._adamw).__name__ else counted
        self._link_moments()

    def _link_moments(self) -> None:
        """Let each parameter of stages 1 and 2 find its moments in the flat buffers, once these exist.

        DeepSpeed links all groups after the first group's first step, when the others have no moments yet.
        """
        if self.stage < 3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()


def _optimizer_class(settings: Mapping[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    """torch's AdamW; for offloaded states DeepSpeed's vectorised one, unless zero_force_ds_cpu_optimizer is false."""
    if not offloads_optimizer(settings) or not settings.get("zero_force_ds_cpu_optimizer", True):
        return torch.optim.AdamW
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam  # type: ignore[no-any-return]


@contextlib.contextmanager
def _quiet_deepspeed(world: World) -> Iterator[None]:
    """Import and start DeepSpeed without its start-up notes and without compiling anything that is not needed."""
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")  # which it wants of a single process, too, that no launcher started
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed.ops
        from deepspeed.utils import logger

        logger.setLevel(logging.ERROR)
        if world.device.type == "cpu":
            # Its shared-memory kernels take a minute to compile; gloo does without.
            deepspeed.ops.__compatible_ops__ = {}
        yield
    # DeepSpeed still uses the names that torch 2.13 has given up for all_gather_single and reduce_scatter_single.
    warnings.filterwarnings("ignore", message="`torch.distributed.*_tensor` is deprecated", category=FutureWarning)
