"""Sampling and replay of every rectified-flow generator: the networks differ, the arithmetic is here once.

Axes: P prompts, G group, B = P*G samples, S trained steps. Latents have any shape per sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from machine.transfers import sent
from trainer.policies.base import Expects, SamplingPlan, Solver
from trainer.policies.flow.guided import GuidedByImages, conditioned_on, followed
from trainer.policies.flow.trace import FlowTrace, kept_points, trace_of
from trainer.policies.lora import frozen_copy, in_bfloat16, is_compiled, keep_start, start_weights
from trainer.records.phases import PhaseClock
from trainer.samplers.flow_sde import latent_kl, ode_step, sde_step, step_std, velocity_kl
from trainer.samplers.schedules import sigmas
from trainer.samplers.solvers import Dpm2m
from trainer.types import Prompt, Replay, Rollout, Sample

Conditioning = Mapping[str, Tensor]


class FlowModel(Protocol):
    """The networks of a rectified-flow generator, as FlowPolicy uses them. Latents x run from noise (sigma 1) to data."""

    @property
    def network(self) -> nn.Module:
        """What predicts velocities; its parameters with `requires_grad` are trained. With adapters (peft) it has
        `disable_adapter()`, and the reference is the network with those it started with, or without any."""
        ...

    @property
    def about(self) -> str:
        """A paragraph on the starting weights."""
        ...

    @property
    def device(self) -> torch.device: ...

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises ConfigError naming the first prompt it cannot draw."""
        ...

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, ...]:
        """Shape of one sample's latents at an image size in pixels; None is the model's own size.

        Raises:
            ConfigError: the size does not fit, with the nearest that does.
        """
        ...

    def noise_levels(self, num_steps: int, height: int | None, width: int | None) -> list[float]:
        """The model's own schedule at an image size: `num_steps + 1` levels, falling from 1 to 0."""
        ...

    def encode(self, prompts_B: Sequence[Prompt]) -> Conditioning:
        """Batch-first conditioning on the device. A prompt is encoded once, alone, and cached, so that this is a look-up
        and a stack; what a prompt's conditioning says does not depend on its neighbours (padding is masked)."""
        ...

    def velocity(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        """v = noise - data at x, float32, the shape of x. `network` is `self.network` or a frozen copy of it."""
        ...

    def to_latents(self, pixels_BHWC: Tensor) -> Tensor:
        """Images (B, H, W, 3), uint8, to clean latents, float32, on the device: what `decode` turns back."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Clean latents to images (B, H, W, 3), uint8, on the device."""
        ...


class FlowPolicy:
    """Implements `Samples`, `Replays` and `Denoises` of `trainer.policies.base` for any FlowModel.

    Attributes:
        copy: the network with its starting weights; None where none is kept, or adapters are left out in its place.
        reads_neighbours: a sample depends on those that share its micro-batch (DeepGen's padded conditioning).
    """

    def __init__(self, model: FlowModel, *, keep_reference: bool) -> None:
        self.model = model
        self.reads_neighbours = bool(getattr(model, "reads_neighbours", False))
        self._keeps_reference = keep_reference
        has_adapter = hasattr(model.network, "disable_adapter")
        self.copy = (
            frozen_copy(model.network, bfloat16=in_bfloat16(model)) if keep_reference and not has_adapter else None
        )
        if keep_reference and has_adapter:
            keep_start(model.network)
        self._encoded: tuple[tuple[tuple[Prompt, ...], ...], tuple[Conditioning, ...]] = ((), ())
        self._schedules: dict[tuple[Any, ...], list[float]] = {}

    @property
    def trainable(self) -> nn.Module:
        return self.model.network

    @property
    def group_of(self) -> Mapping[str, str]:
        """`matrices`: the two-dimensional weights inside the transformer's blocks, which Muon can take; `rest`: all others."""
        return {
            name: "matrices" if "transformer_blocks" in name and parameter.dim() == 2 else "rest"
            for name, parameter in self.trainable.named_parameters()
            if parameter.requires_grad
        }

    @property
    def about(self) -> str:
        return self.model.about

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        self.model.check_prompts(prompts)

    def check_size(self, height: int | None, width: int | None) -> None:
        self.model.latent_shape(height, width)

    @torch.no_grad()
    def sample(
        self, prompts_P: Sequence[Prompt], group_size: int, seeds_B: Sequence[int], plan: SamplingPlan
    ) -> Iterator[Rollout]:
        total = len(prompts_P) * group_size
        if len(seeds_B) != total:
            raise ValueError(
                f"{len(prompts_P)} prompts x group_size {group_size} need {total} seeds; got {len(seeds_B)}"
            )
        cuts = [
            range(start, min(start + plan.micro_batch_size, total)) for start in range(0, total, plan.micro_batch_size)
        ]
        drawn_of = ([prompts_P[i // group_size] for i in indices] for indices in cuts)
        self.expect([batch for prompts_B in drawn_of for batch in conditioned_on(prompts_B, plan)])
        for indices in cuts:
            prompts_B = [prompts_P[i // group_size] for i in indices]
            clock = PhaseClock(self.model.device)
            with clock.phase("encode"):
                self._encode(*conditioned_on(prompts_B, plan))
            with clock.phase("denoise"):
                shape = self.model.latent_shape(plan.height, plan.width)
                shared = [seeds_B[i - i % group_size] for i in indices] if plan.same_noise else None
                noise = _Noise([seeds_B[i] for i in indices], shared, shape, self.model.device)
                final, logp_BS, trace = self._denoise(noise, prompts_B, [i // group_size for i in indices], plan)
            with clock.phase("decode"):
                pixels = self.model.decode(final).cpu().numpy()
            yield Rollout(
                samples=[
                    Sample(id=f"{prompt.id}#{i % group_size}", group_id=prompt.id, prompt=prompt, images=(pixels[n],))
                    for n, (i, prompt) in enumerate(zip(indices, prompts_B, strict=True))
                ],
                group_B=torch.tensor([i // group_size for i in indices], dtype=torch.int64),
                logp_BS=logp_BS,
                mask_BS=None,
                trace=trace,
                seconds=clock.seconds(),
                rounds_apart=is_compiled(self.model.network),
            )

    def parts(self, rollout: Rollout) -> list[slice]:
        return [slice(column, column + 1) for column in range(rollout.logp_BS.shape[1])]

    def replay(self, rollout: Rollout, part: slice, *, reference: bool = False) -> Replay:
        trace = trace_of(rollout)
        plan, prompts_B = trace.plan, rollout.prompts
        schedule = self._schedule(plan)
        columns = range(*part.indices(len(plan.trained_steps)))
        logps, shifts, stds = [], [], []
        kls: dict[str, list[Tensor]] = {"velocity": [], "latent": []} if reference else {}
        for column in columns:
            step = plan.trained_steps[column]
            x, x_next = trace.around(step)
            v = self._velocity(x, schedule[step], prompts_B, plan)
            _, logp_B, mean = _sde(x, v, schedule, step, plan, x_next=x_next)
            std = step_std(schedule[step], schedule[step + 1], plan.kind, plan.noise_level, schedule[1])
            logps.append(logp_B)
            stds.append(std)
            if trace.mean_BS is not None:
                moved = mean - trace.mean_BS[:, column]
                shifts.append((moved**2).flatten(1).mean(1))
            if reference:
                with torch.no_grad(), self._reference() as network:
                    v_ref = self._velocity(x, schedule[step], prompts_B, plan, network=network)
                    mean_ref = _sde(x, v_ref, schedule, step, plan, x_next=x_next)[2]
                kls["velocity"].append(velocity_kl(v, v_ref, std))
                kls["latent"].append(latent_kl(mean, mean_ref, std))
        return Replay(
            logp_BS=torch.stack(logps, 1),
            kl_BS={name: torch.stack(columns_B, 1) for name, columns_B in kls.items()},
            mean_shift_BS=torch.stack(shifts, 1) if shifts else None,
            std_S=stds,
            sigma_S=[(schedule[plan.trained_steps[c]], schedule[plan.trained_steps[c] + 1]) for c in columns],
        )

    def clean(self, rollout: Rollout) -> Tensor:
        x0 = trace_of(rollout).x0
        if x0 is None:
            raise ValueError("the clean latents of these samples were not kept: sample with keep_final")
        return x0

    @torch.no_grad()
    def encode_images(self, pixels_BHWC: Tensor) -> Tensor:
        return self.model.to_latents(sent(pixels_BHWC, self.model.device))

    def predict(self, prompts_B: Sequence[Prompt], x: Tensor, sigma_B: Tensor, *, reference: bool = False) -> Tensor:
        (conditioning,) = self._encode(prompts_B)
        if not reference:
            return self.model.velocity(self.model.network, x, sigma_B, conditioning)
        with torch.no_grad(), self._reference() as network:
            return self.model.velocity(network, x, sigma_B, conditioning)

    def expect(self, batches: Sequence[Sequence[Prompt]]) -> None:
        if isinstance(self.model, Expects):
            self.model.expect(batches)

    def _denoise(
        self, noise: _Noise, prompts_B: Sequence[Prompt], groups_B: Sequence[int], plan: SamplingPlan
    ) -> tuple[Tensor, Tensor, FlowTrace]:
        """From noise to clean latents, with logp_BS of the trained steps and what their replay needs."""
        schedule = self._schedule(plan)
        points, kept, means, logps = kept_points(plan), [], [], []
        x, first = self._shared_prefix(noise.first(), schedule, prompts_B, groups_B, plan)
        solver = _solver(plan.solver)
        for step in range(first, plan.num_inference_steps):
            if step in points:
                kept.append(x)
            v = self._velocity(x, schedule[step], prompts_B, plan)
            if step not in plan.stochastic_steps:
                x = solver.step(x, v, schedule[step], schedule[step + 1])
                continue
            solver = _solver(plan.solver)  # an SDE step ends the smooth path that a multistep solver extrapolates
            x, logp_B, mean = _sde(x, v, schedule, step, plan, noise=noise.draw())
            if step in plan.trained_steps:
                logps.append(logp_B)
                means.append(mean)
        if plan.num_inference_steps in points:
            kept.append(x)
        trace = FlowTrace(
            plan,
            x_BT=torch.stack(kept, 1) if kept else None,
            mean_BS=torch.stack(means, 1) if means and plan.keep_means else None,
            x0=x if plan.keep_final else None,
        )
        return x, torch.stack(logps, 1) if logps else torch.zeros(len(x), 0), trace

    def _shared_prefix(
        self,
        x: Tensor,
        schedule: Sequence[float],
        prompts_B: Sequence[Prompt],
        groups_B: Sequence[int],
        plan: SamplingPlan,
    ) -> tuple[Tensor, int]:
        """The ODE steps before the first stochastic one, once per prompt when its samples share their noise.

        Returns the latents of all B samples and the step that comes next.
        """
        first = min(plan.stochastic_steps, default=0)
        rows = [n for n, group in enumerate(groups_B) if n == 0 or groups_B[n - 1] != group]
        if not plan.same_noise or first == 0 or len(rows) == len(groups_B):
            return x, 0
        # Rows are taken and repeated one by one: a list or a tensor of numbers would be copied to the device, which waits.
        x, prompts = torch.stack([x[n] for n in rows]), [prompts_B[n] for n in rows]
        solver = _solver(plan.solver)
        for step in range(first):
            x = solver.step(x, self._velocity(x, schedule[step], prompts, plan), schedule[step], schedule[step + 1])
        sizes = [stop - start for start, stop in zip(rows, [*rows[1:], len(groups_B)], strict=True)]
        return torch.cat([row.expand(size, *row.shape) for row, size in zip(x, sizes, strict=True)]), first

    def _velocity(
        self, x: Tensor, sigma: float, prompts_B: Sequence[Prompt], plan: SamplingPlan, network: nn.Module | None = None
    ) -> Tensor:
        """v(x, sigma), with classifier-free guidance when the scale is not 1 (arXiv 2207.12598, equation 6)."""
        network = self.model.network if network is None else network
        if plan.guidance is not None:
            assert isinstance(self.model, GuidedByImages), "the configuration has checked it"
            return self.model.guided_velocity(network, x, sigma, prompts_B, plan.guidance)
        if plan.guidance_scale == 1.0:
            sigma_B = torch.full((len(x),), sigma, device=x.device)
            return self.model.velocity(network, x, sigma_B, *self._encode(prompts_B))
        encoded = self._encode(*conditioned_on(prompts_B, plan))
        if plan.guidance_gradient == "conditional":
            # Two passes, and two when sampling as well: rows of another batch differ in their last bits, and ratios must start at 1.
            sigma_B = torch.full((len(x),), sigma, device=x.device)
            given, away = encoded
            conditional = self.model.velocity(network, x, sigma_B, given)
            with torch.no_grad():
                unconditional = self.model.velocity(network, x, sigma_B, away)
        else:
            sigma_2B = torch.full((2 * len(x),), sigma, device=x.device)
            (both,) = encoded
            conditional, unconditional = self.model.velocity(network, torch.cat([x, x]), sigma_2B, both).chunk(2)
        return followed(self.model, conditional, unconditional, plan.guidance_scale)

    def _encode(self, *batches: Sequence[Prompt]) -> tuple[Conditioning, ...]:
        """The conditioning of each batch, kept for the next step of the same micro-batch."""
        key = tuple(map(tuple, batches))
        if self._encoded[0] != key:
            with torch.no_grad():
                self._encoded = (key, tuple(self.model.encode(prompts_B) for prompts_B in batches))
        return self._encoded[1]

    @contextmanager
    def _reference(self) -> Iterator[nn.Module]:
        """The network with its starting weights."""
        if not self._keeps_reference:
            raise ValueError("this policy was built without a reference; build it with keep_reference=True")
        if self.copy is not None:
            yield self.copy
            return
        with start_weights(self.model.network):
            yield self.model.network

    def _schedule(self, plan: SamplingPlan) -> list[float]:
        key = (plan.num_inference_steps, plan.shift, plan.height, plan.width)
        if key not in self._schedules:
            own = self.model.noise_levels(plan.num_inference_steps, plan.height, plan.width)
            self._schedules[key] = own if plan.shift is None else sigmas(plan.num_inference_steps, plan.shift).tolist()
        return self._schedules[key]


class _Noise:
    """Standard normal numbers for one step after another, each sample's from its own seed.

    They are drawn on the CPU, the same on every device, while the device computes what was queued before.

    Args:
        seeds_B: of the samples.
        shared_B: seeds of the initial noise, a group's samples the same; None: each sample's own.
        shape: of one sample's latents.
    """

    def __init__(
        self, seeds_B: Sequence[int], shared_B: Sequence[int] | None, shape: Sequence[int], device: torch.device
    ) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds_B]
        self._shared_B, self._shape, self._device = shared_B, tuple(shape), device

    def first(self) -> Tensor:
        """The initial noise (B, ...). To be called first: shared noise, too, takes its turn in each sample's numbers."""
        drawn = self._draw(self._generators)
        if self._shared_B is not None:
            drawn = self._draw([torch.Generator().manual_seed(seed) for seed in self._shared_B])
        return sent(drawn, self._device)

    def draw(self) -> Tensor:
        """The next (B, ...)."""
        return sent(self._draw(self._generators), self._device)

    def _draw(self, generators: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([torch.randn(self._shape, generator=generator) for generator in generators])


def _sde(
    x: Tensor,
    v: Tensor,
    schedule: Sequence[float],
    step: int,
    plan: SamplingPlan,
    *,
    x_next: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return sde_step(
        x,
        v,
        schedule[step],
        schedule[step + 1],
        kind=plan.kind,
        noise_level=plan.noise_level,
        sigma_max=schedule[1],
        x_next=x_next,
        noise=noise,
    )


class _Euler:
    """The Euler ODE step in the form of a solver."""

    def step(self, x: Tensor, v: Tensor, sigma: float, sigma_next: float) -> Tensor:
        return ode_step(x, v, sigma, sigma_next)


def _solver(name: Solver) -> _Euler | Dpm2m:
    return Dpm2m() if name == "dpm2m" else _Euler()
