"""Noise levels of the forward process: their distributions, and draws from seeds alone."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.objectives.flow.noise import NoiseLevels

LIKE = torch.zeros(1, 3, 2)


def test_uniform_by_hand() -> None:
    assert NoiseLevels(logit_normal=False, shift=1.0).sigma(torch.tensor([0.0, 0.25, 0.75])).tolist() == [1, 0.75, 0.25]


def test_shift_by_hand() -> None:
    """Stable Diffusion 3 (arXiv 2403.03206) eq. 23: 3 t / (1 + 2 t) of .5 is .75."""
    assert NoiseLevels(logit_normal=False, shift=3.0).sigma(torch.tensor([0.5])).tolist() == [0.75]


def test_logit_normal_by_hand() -> None:
    """The median is sigmoid(0) = .5; 84.13 % of a normal distribution lie below 1: sigmoid(1) = .7311."""
    sigma = NoiseLevels(logit_normal=True, shift=1.0).sigma(torch.tensor([0.5, 1 - 0.841344746]))
    assert sigma.tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1))], abs=1e-5)
    edges = NoiseLevels(logit_normal=True, shift=1.0).sigma(torch.tensor([0.0, 1 - 2**-24]))
    assert ((edges > 0) & (edges < 1)).all()


@pytest.mark.parametrize("levels", [NoiseLevels(False, 1.0), NoiseLevels(True, 1.0), NoiseLevels(False, 3.0)])
def test_strata_cut_the_distribution_into_equal_shares(levels: NoiseLevels) -> None:
    """Draw k of 4 lies between the quantiles of its share; all four together follow the distribution."""
    bounds = levels.sigma(torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-24])).tolist()
    for k in range(4):
        sigma_B, _ = levels.draw(list(range(200)), LIKE, stratum=(k, 4))
        assert bounds[k + 1] <= sigma_B.min() < sigma_B.max() <= bounds[k]


def test_a_draw_depends_on_its_seed_alone() -> None:
    levels = NoiseLevels(False, 1.0)
    sigma_B, noise = levels.draw([5, 6, 7], LIKE)
    alone_1, noise_alone = levels.draw([6], LIKE)
    assert noise.shape == (3, 3, 2)
    assert sigma_B[1] == alone_1[0] and torch.equal(noise[1], noise_alone[0])
    assert sigma_B[0] != sigma_B[1]
    many, noises = levels.draw(list(range(4000)), LIKE)
    assert many.mean().item() == pytest.approx(0.5, abs=0.02)
    assert noises.mean().item() == pytest.approx(0, abs=0.02) and noises.std().item() == pytest.approx(1, abs=0.02)
