"""ODE solvers beyond Euler, for the deterministic steps of a rectified flow."""

from __future__ import annotations

import math

from torch import Tensor


class Dpm2m:
    """DPM-Solver++(2M), arXiv 2211.01095 algorithm 2, on a rectified flow: alpha = 1 - sigma, x0 = x - sigma v.

    With lambda = log(alpha / sigma), h = lambda_next - lambda and r = h_before / h:

        D = (1 + 1 / (2 r)) x0 - x0_before / (2 r),    x_next = sigma_next / sigma x - alpha_next (exp(-h) - 1) D

    The first step, a step from pure noise (lambda is -infinity) and the last step (lambda_next is infinity) are of first
    order. One solver follows one smooth path: start a new one after a stochastic step.
    """

    def __init__(self) -> None:
        self._x0: Tensor | None = None
        self._h = math.nan

    def step(self, x: Tensor, v: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """x at `sigma_next`, float32, the shape of x; 0 <= sigma_next < sigma <= 1."""
        if not 0 <= sigma_next < sigma <= 1:
            raise ValueError(f"sigma = {sigma:g}, sigma_next = {sigma_next:g}: needs 0 <= sigma_next < sigma <= 1")
        x, v = x.float(), v.float()
        x0 = x - sigma * v
        h = _log_snr(sigma_next) - _log_snr(sigma)
        data = x0
        if self._x0 is not None and math.isfinite(self._h) and math.isfinite(h):
            half_ratio = h / (2 * self._h)  # 1 / (2 r)
            data = (1 + half_ratio) * x0 - half_ratio * self._x0
        self._x0, self._h = x0, h
        # exp(-h) = sigma_next alpha / (sigma alpha_next), so alpha_next (exp(-h) - 1) needs no division by alpha_next.
        return sigma_next / sigma * x + ((1 - sigma_next) - sigma_next * (1 - sigma) / sigma) * data


def _log_snr(sigma: float) -> float:
    """lambda = log((1 - sigma) / sigma)."""
    if sigma <= 0:
        return math.inf
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf
