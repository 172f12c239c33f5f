"""Intervals of means over held-out prompts, and of what changed since the start.

The percentile bootstrap (Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979) draws
prompts with replacement, each with all its samples, because the samples of one prompt stand and fall together.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
_CHUNK = 200  # resamples in memory at once


def resample(prompts: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Floats]:
    """How often each of `prompts` is drawn, in chunks of resamples: arrays [n, prompts] whose rows sum to `prompts`."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        yield rng.multinomial(prompts, np.full(prompts, 1 / prompts), size).astype(np.float64)


def mean_interval(
    values: Sequence[float], prompts: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of the mean of `values`, where `prompts[i]` is whose sample value i is of.

    None where it would stand on one prompt, whose resamples are all alike and would pass for certainty.
    """
    places = {prompt: p for p, prompt in enumerate(dict.fromkeys(prompts))}
    if len(places) < 2:
        return None
    at = [places[prompt] for prompt in prompts]
    sums_P, counts_P = np.bincount(at, weights=values), np.bincount(at).astype(np.float64)
    means = [w @ sums_P / (w @ counts_P) for w in resample(len(places), resamples=resamples, seed=seed)]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)
