"""The ratio of the two KLs is that of our own samplers, which have both formulas, on the published model's levels."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from trainer.migration.deepgen.kl_weight import flow_over_cps, noise_levels
from trainer.policies.flow.frozen import own_noise_levels
from trainer.samplers.flow_sde import Kind, latent_kl, sde_step, step_std, velocity_kl

SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}


@pytest.mark.parametrize("num_steps", [2, 10, 50])
def test_the_noise_levels_are_those_of_the_models_scheduler(num_steps: int) -> None:
    assert noise_levels(num_steps) == pytest.approx(own_noise_levels(SCHEDULER, num_steps, 1024, even=False), abs=1e-6)


def kl(kind: Kind, kl_type: Literal["velocity", "latent"], levels: list[float], step: int, eta: float) -> float:
    """The KL of two velocities that are 1 apart."""
    x, v = torch.zeros(1, 4), torch.ones(1, 4)
    sigma, after = levels[step], levels[step + 1]
    std = step_std(sigma, after, kind, eta, levels[1])
    if kl_type == "velocity":
        return velocity_kl(v, x, std).item()
    means = [
        sde_step(x, each, sigma, after, kind=kind, noise_level=eta, sigma_max=levels[1], noise=x)[2] for each in (v, x)
    ]
    return latent_kl(*means, std).item()


@pytest.mark.parametrize("num_steps", [2, 10, 50])
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("kl_type", ["velocity", "latent"])
def test_the_factor_is_the_ratio_of_the_samplers_kls(
    num_steps: int, eta: float, kl_type: Literal["velocity", "latent"]
) -> None:
    levels = noise_levels(num_steps)
    steps = range(num_steps - 1)
    theirs = [kl("cps", kl_type, levels, i, eta) for i in steps]
    ratios = [kl("flow_sde", kl_type, levels, i, eta) / theirs[i] for i in steps]
    expected = (sum(ratios) / len(ratios), min(ratios), max(ratios), theirs[-1] / sum(theirs))
    assert flow_over_cps(num_steps, eta, kl_type) == pytest.approx(expected, rel=1e-4)


def test_the_factor_matches_a_typical_step_and_not_the_total() -> None:
    """What the recipe and the page say: their total is nearly all in the last step, so its ratio is another number."""
    levels = noise_levels(50)
    ours, theirs = (sum(kl(kind, "velocity", levels, i, 0.7) for i in range(49)) for kind in ("flow_sde", "cps"))
    found = flow_over_cps(50, 0.7, "velocity")
    assert (round(ours / theirs, 2), round(found.mean, 1), round(found.last_share, 2)) == (0.19, 12.1, 0.96)
