"""Which noise levels the forward process visits, and the noise: from seeds alone. Axes: B samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from machine.transfers import sent
from trainer.config import SftLossConfig
from trainer.config.objective import TimestepSection

_EDGE = 1e-6  # keeps a logit finite


@dataclass(frozen=True)
class NoiseLevels:
    """A distribution of sigma in (0, 1]: uniform or sigmoid of a standard normal number, then shifted.

    The logit-normal distribution and the shift are those of Stable Diffusion 3 (arXiv 2403.03206 section 3.1, eq. 23).
    """

    logit_normal: bool
    shift: float

    @classmethod
    def of(cls, config: TimestepSection | SftLossConfig) -> NoiseLevels:
        return cls(config.timestep_distribution == "logit_normal", config.timestep_shift)

    def draw(self, seeds_B: Sequence[int], like: Tensor, *, stratum: tuple[int, int] = (0, 1)) -> tuple[Tensor, Tensor]:
        """sigma_B (B,) and noise, float32, each sample's from its own seed, the same on every device.

        Args:
            like: latents (B, ...), whose shape per sample and device the noise has.
            stratum: (k, n): of n draws the k-th, from the k-th part of the distribution cut into n equal shares.
        """
        uniform, noise = [], []
        for seed in seeds_B:
            generator = torch.Generator().manual_seed(seed)
            uniform.append(torch.rand((), generator=generator))
            noise.append(torch.randn(like.shape[1:], generator=generator))
        k, n = stratum
        sigma_B = self.sigma((k + torch.stack(uniform)) / n)
        return sent(sigma_B, like.device), sent(torch.stack(noise), like.device)

    def sigma(self, uniform_B: Tensor) -> Tensor:
        """The quantile at 1 - uniform, for numbers in [0, 1)."""
        level = 1 - uniform_B
        if self.logit_normal:
            level = torch.sigmoid(torch.special.ndtri(level.clamp(_EDGE, 1 - _EDGE).double())).float()
        return self.shift * level / (1 + (self.shift - 1) * level)
