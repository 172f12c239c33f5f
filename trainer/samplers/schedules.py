"""Which noise levels a sampler visits, which of its steps are stochastic, and which of those are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

Level = TypeVar("Level", float, Tensor)


def sigmas(num_steps: int, shift: float = 1.0) -> Tensor:
    """Noise levels of `num_steps` steps: float32 (num_steps + 1,), falling from exactly 1 to exactly 0.

    Even spacing is `shifted`: shift 1 leaves it even, more spends more steps at high noise.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}: needs at least 1")
    if not shift > 0:
        raise ValueError(f"shift = {shift:g}: needs a number above 0")
    t = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    return shifted(t, shift).float()


def shifted(t: Level, shift: float) -> Level:
    """shift * t / (1 + (shift - 1) * t), Stable Diffusion 3 (arXiv 2403.03206) eq. 23: noise levels moved towards 1 by a shift above 1."""
    return shift * t / (1 + (shift - 1) * t)


def stochastic_steps(num_steps: int, window: Sequence[int] | None = None) -> list[int]:
    """Indices of the SDE steps: those of the window [first, last), or, without one, all but the last step.

    The last step always stays deterministic: its noise would go straight into the image.
    """
    if window is None:
        return list(range(num_steps - 1))
    first, last = window
    if not 0 <= first < last <= num_steps - 1:
        raise ValueError(
            f"window [{first}, {last}) does not fit {num_steps} steps: needs 0 <= first < last <= {num_steps - 1}"
        )
    return list(range(first, last))


def window_at(
    step: int,
    size: int,
    within: tuple[int, int],
    *,
    motion: Literal["random", "progressive"],
    every: int = 1,
    stride: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[int, int]:
    """[first, last) of an SDE window of `size` denoising steps at a training step; the other steps are an ODE.

    random: drawn anew each time, Flow-GRPO-Fast. progressive: MixGRPO (arXiv 2507.21802) section 3.2, from high noise to
    low by `stride` denoising steps after every `every` training steps. From the last place it starts over, as the
    published recipe does; the paper's algorithm 1 stays there.

    Args:
        step: training steps done before.
        within: [first, last) in which the window must lie.
    """
    places = within[1] - within[0] - size + 1
    if size < 1 or places < 1:
        raise ValueError(f"a window of {size} steps does not fit into [{within[0]}, {within[1]})")
    if motion == "random":
        place = int(torch.randint(places, (), generator=generator))
    else:
        # The last move may be shorter than the stride, so that the steps of lowest noise are reached, too.
        moves = -(-(places - 1) // stride) + 1
        place = min((step // every) % moves * stride, places - 1)
    return within[0] + place, within[0] + place + size


def trained_steps(stochastic: Sequence[int], fraction: float, generator: torch.Generator | None = None) -> list[int]:
    """A random subset of the stochastic steps, in order: the share `fraction` of them, rounded down, at least one.

    A fraction of 1 takes all and draws nothing.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction = {fraction:g}: needs a number in (0, 1]")
    if not stochastic:
        raise ValueError("no stochastic steps to train on: use more inference steps or a wider window")
    if fraction == 1:
        return sorted(stochastic)
    # The small addend takes 0.29 of 100 as 29, although the product is rounded to just below it.
    count = max(1, int(len(stochastic) * fraction + 1e-9))
    chosen = torch.randperm(len(stochastic), generator=generator)[:count]
    return sorted(stochastic[i] for i in chosen.tolist())
