"""One denoising step of a rectified flow: three SDEs, the Euler ODE, their log-probabilities and KLs.

Notation: noise level sigma runs from 1 (noise) to 0 (data); v is the predicted velocity noise - data, so the predicted
data is x0 = x - sigma * v and the predicted noise is x1 = x + (1 - sigma) * v; dt = sigma_next - sigma < 0; eta is
`noise_level`. Each SDE step is a Gaussian whose mean is linear in x and v,

    x_next = mean + std * noise,    mean = a * x + b * v,

so a kind is three numbers (a, b, std), and sampling and replay share every operation. Axes: B samples, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kind = Literal["flow_sde", "cps", "dance_sde"]
Generators = torch.Generator | Sequence[torch.Generator] | None

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_KL_EPS = 1e-7  # the published constant; keeps a step of zero std finite


class _Step(NamedTuple):
    """mean = a * x + b * v; x_next = mean + std * noise."""

    a: float
    b: float
    std: float


def sde_step(
    x: Tensor,
    v: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    *,
    kind: Kind,
    noise_level: float,
    sigma_max: float | Tensor,
    x_next: Tensor | None = None,
    generator: Generators = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One stochastic step: draws x_next, or, when it is given, says how likely it was. The arithmetic is the same.

    flow_sde, Flow-GRPO (arXiv 2505.05470) eq. 9, s = eta * sqrt(sigma / (1 - sigma)):
        mean = x + (v + s^2 / (2 sigma) * (x + (1 - sigma) v)) dt,          std = s * sqrt(-dt)
    dance_sde, DanceGRPO (arXiv 2505.07818): the same mean with the constant s = eta.
    cps, Flow-CPS (arXiv 2509.05952):
        mean = (1 - sigma_next) x0 + sqrt(sigma_next^2 - std^2) x1,         std = sigma_next * sin(eta * pi / 2)

    Log-probability, the mean over latent dimensions, float32:
        flow_sde, dance_sde: the Gaussian density, -(x_next - mean)^2 / (2 std^2) - log std - log sqrt(2 pi)
        cps: -(x_next - mean)^2, as its reference code has it, without variance or constants (docs/decisions/0101-cps-log-prob.md)
    x_next is detached in it: the gradient reaches v through the mean alone.

    Args:
        x: latents at sigma, (B, ...), any floating dtype.
        v: predicted velocity, the shape of x.
        sigma: noise level of x, in (0, 1]; a float or a 0-d tensor.
        sigma_next: noise level after the step, in [0, sigma).
        kind: `flow_sde`, `cps` or `dance_sde`.
        noise_level: eta, at least 0; for cps at most 1. 0 makes the step deterministic.
        sigma_max: stands in for sigma in flow_sde's s where sigma is 1 (the schedule's second sigma), below 1.
        x_next: the step's outcome in a replay, (B, ...), as sampling returned it (float32: rounding it moves logp).
        generator: where the noise comes from; a sequence of B gives each sample its own. Not with `noise`.
        noise: the noise itself, (B, ...), drawn before.

    Returns:
        x_next (B, ...), logp_B (B,), mean (B, ...), all float32. A step of zero std (the last step of cps) samples
        x_next = mean with logp 0.

    Raises:
        ValueError: for a sigma out of range, an unknown kind, shapes that differ, or a replay of a zero-std step,
            whose outcome has no density.
    """
    step = _coefficients(float(sigma), float(sigma_next), kind, noise_level, float(sigma_max))
    _same_shape("v", v, x)
    mean = step.a * x.float() + step.b * v.float()
    if x_next is None:
        x_next = mean if step.std == 0 else mean + step.std * _noise(mean, generator, noise)
    else:
        if generator is not None or noise is not None:
            raise ValueError("x_next is given, so nothing is drawn: leave out `generator` and `noise`")
        if step.std == 0:
            raise ValueError(
                f"no log-probability: the {kind} step from sigma {float(sigma):g} to {float(sigma_next):g} with "
                f"noise_level {noise_level:g} has std 0; leave it out of the trained steps"
            )
        _same_shape("x_next", x_next, x)
        x_next = x_next.float()
    return x_next, _log_prob(x_next.detach(), mean, step.std, kind), mean


def ode_step(x: Tensor, v: Tensor, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
    """Euler step of dx = v d sigma: x + (sigma_next - sigma) v, float32, the shape of x."""
    _same_shape("v", v, x)
    return x.float() + (float(sigma_next) - float(sigma)) * v.float()


def step_std(
    sigma: float | Tensor, sigma_next: float | Tensor, kind: Kind, noise_level: float, sigma_max: float | Tensor
) -> float:
    """Standard deviation of the noise that `sde_step` adds with the same arguments (sqrt(-dt) included)."""
    return _coefficients(float(sigma), float(sigma_next), kind, noise_level, float(sigma_max)).std


def velocity_kl(v: Tensor, v_ref: Tensor, std: float) -> Tensor:
    """KL proxy on velocities, kl_B (B,) float32: the mean over latents of (v - v_ref)^2 / (2 std^2 + 1e-7).

    `latent_kl` without the square of the mean's factor of v, (1 + s^2 (1 - sigma) / (2 sigma)) dt for the two SDEs, so each
    step has another weight in it, and short steps more.
    """
    return _scaled_square(v, v_ref, std)


def latent_kl(mean: Tensor, mean_ref: Tensor, std: float) -> Tensor:
    """KL of two Gaussian steps of one std, per latent, kl_B (B,) float32: mean (mean - mean_ref)^2 / (2 std^2 + 1e-7).

    Flow-GRPO (arXiv 2505.05470) section 4, below eq. 9. Its published code divides by 2 s^2 without the step's length.
    """
    return _scaled_square(mean, mean_ref, std)


def _coefficients(sigma: float, sigma_next: float, kind: Kind, noise_level: float, sigma_max: float) -> _Step:
    if not 0 <= sigma_next < sigma <= 1:
        raise ValueError(f"sigma = {sigma:g}, sigma_next = {sigma_next:g}: needs 0 <= sigma_next < sigma <= 1")
    if not 0 <= noise_level < math.inf:
        raise ValueError(f"noise_level = {noise_level:g}: needs a finite number of at least 0")
    if kind == "cps":
        if noise_level > 1:
            raise ValueError(f"noise_level = {noise_level:g}: cps needs at most 1, where all noise of a step is new")
        # The noise x1 at sigma_next has its old part, cos of it, and a new part, sin of it: squares add up to sigma_next^2.
        angle = noise_level * math.pi / 2
        kept = sigma_next * math.cos(angle)
        clean = 1 - sigma_next
        # clean * (x - sigma v) + kept * (x + (1 - sigma) v), by x and by v.
        return _Step(clean + kept, kept * (1 - sigma) - clean * sigma, sigma_next * math.sin(angle))
    dt = sigma_next - sigma
    if kind == "flow_sde":
        below_one = sigma_max if sigma >= 1 else sigma
        if not 0 < below_one < 1:
            raise ValueError(f"sigma_max = {sigma_max:g}: flow_sde needs it between 0 and 1 where sigma is 1")
        diffusion = noise_level * math.sqrt(sigma / (1 - below_one))
    elif kind == "dance_sde":
        diffusion = noise_level
    else:
        raise ValueError(f"kind = {kind!r}: must be flow_sde, cps or dance_sde")
    # The score is -x1 / sigma with x1 = x + (1 - sigma) v; the drift takes diffusion^2 / 2 of it, by x and by v.
    pull = diffusion**2 / (2 * sigma)
    return _Step(1 + pull * dt, (1 + pull * (1 - sigma)) * dt, diffusion * math.sqrt(-dt))


def _noise(mean: Tensor, generator: Generators, noise: Tensor | None) -> Tensor:
    if noise is not None:
        if generator is not None:
            raise ValueError("give `generator` or `noise`, not both")
        _same_shape("noise", noise, mean)
        return noise.to(mean.device, torch.float32)
    if generator is None or isinstance(generator, torch.Generator):
        return _randn(mean.shape, generator, mean.device)
    if len(generator) != mean.shape[0]:
        raise ValueError(f"{len(generator)} generators for {mean.shape[0]} samples: give one for each")
    return torch.stack([_randn(mean.shape[1:], own, mean.device) for own in generator])


def _randn(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    drawn_on = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=drawn_on, dtype=torch.float32).to(device)


def _log_prob(x_next: Tensor, mean: Tensor, std: float, kind: Kind) -> Tensor:
    square_B = _mean_over_latents((x_next - mean) ** 2)
    if kind == "cps" or std == 0:
        return -square_B
    return -square_B / (2 * std**2) - (math.log(std) + _LOG_SQRT_2PI)


def _scaled_square(a: Tensor, b: Tensor, std: float) -> Tensor:
    _same_shape("the reference", b, a)
    return _mean_over_latents((a.float() - b.float()) ** 2) / (2 * std**2 + _KL_EPS)


def _mean_over_latents(t: Tensor) -> Tensor:
    # Summed in float64, so that the order of summation, which depends on batch size and threads, does not show.
    return t.flatten(1).mean(dim=1, dtype=torch.float64).float()


def _same_shape(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.shape != x.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, x has {tuple(x.shape)}: they must be equal")
