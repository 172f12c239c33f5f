"""How strong our KL is beside DeepGen-RL's where the recipe takes another sampler than the command line."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, NamedTuple

_EPS = 1e-7  # in the divisor, there and here
_SHIFT = 3.0  # of the published model's scheduler, over _LEVELS levels
_LEVELS = 1000


class Factor(NamedTuple):
    """Over the steps that can be trained.

    Attributes:
        mean: of the steps' ratios, so it fits a typical step. It does not fit the total, which one step makes nearly alone.
        last_share: of their total, what lies in the last of these steps, for velocities that differ equally in all.
    """

    mean: float
    least: float
    most: float
    last_share: float


def flow_over_cps(num_steps: int, eta: float, kl_type: Literal["velocity", "latent"]) -> Factor:
    """Our KL with the sampler flow_sde as a multiple of theirs with cps_sde, for the same velocities.

    Either is (v - v_ref)^2 times a number of the step: 1 / (2 std^2 + eps) for velocity, b^2 / (2 std^2 + eps) for latent,
    where b is the factor of v in the step's mean. trainer/samplers/flow_sde.py has the formulas, and a test compares them.
    """
    sigmas = noise_levels(num_steps)
    ratios, theirs_at = [], []
    for sigma, after in pairwise(sigmas[:-1]):  # the last step is deterministic
        dt = after - sigma
        diffusion = eta * math.sqrt(sigma / (1 - (sigmas[1] if sigma >= 1 else sigma)))
        ours, theirs = diffusion * math.sqrt(-dt), after * math.sin(eta * math.pi / 2)
        ratio = (2 * theirs**2 + _EPS) / (2 * ours**2 + _EPS)
        their_kl = 1 / (2 * theirs**2 + _EPS)
        if kl_type == "latent":
            ours_b = (1 + diffusion**2 * (1 - sigma) / (2 * sigma)) * dt
            theirs_b = abs(after * math.cos(eta * math.pi / 2)) * (1 - sigma) - (1 - after) * sigma
            ratio *= (ours_b / theirs_b) ** 2
            their_kl *= theirs_b**2
        ratios.append(ratio)
        theirs_at.append(their_kl)
    return Factor(sum(ratios) / len(ratios), min(ratios), max(ratios), theirs_at[-1] / sum(theirs_at))


def noise_levels(num_steps: int) -> list[float]:
    """The model's own levels, from 1 to 0: its scheduler spaces them evenly down to its lowest level, and bends them again."""
    lowest = _bent(1 / _LEVELS)
    even = [1 - i * (1 - lowest) / (num_steps - 1) for i in range(num_steps)]
    return [*map(_bent, even), 0.0]


def _bent(level: float) -> float:
    return _SHIFT * level / (1 + (_SHIFT - 1) * level)
