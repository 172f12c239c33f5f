"""What changes over a run by a rule: the learning rate, and how slowly the sampling policy follows."""

from __future__ import annotations

import math

from trainer.config import OptimConfig
from trainer.config.objective import AveragedSection


def learning_rate(config: OptimConfig, step: int, max_steps: int) -> float:
    """The rate of step `step` (from 0): linear warm-up to `optim.lr`, then constant, or down to `optim.min_lr` at
    `max_steps`.

    With w warm-up steps of T, the rate rises as (s + 1) / w and reaches the peak in step w - 1. The linear schedule falls
    from the peak as f = (T - s) / (T - b), where b is the first step of the decay: w, or later where `decay_share` is below 1;
    the cosine falls as (1 - cos(pi f)) / 2. What is left of the peak is then raised to m + (1 - m) * it, m = min_lr / lr.
    """
    rise = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    if config.schedule == "constant":
        return config.lr * rise
    begin = max(config.warmup_steps, round(max_steps * (1 - config.decay_share)))
    # 1 - (s - b) / (T - b) and not (T - s) / (T - b): equal on paper, but runs without warm-up have always rounded so.
    fall = 1.0 - (step - begin) / max(max_steps - begin, 1)
    fall = min(fall, 1.0)  # before the decay begins it is above 1
    if config.schedule == "cosine":
        fall = (1 - math.cos(math.pi * fall)) / 2
    least = config.min_lr / config.lr
    return config.lr * min(rise, least + (1 - least) * fall)


def old_decay(config: AveragedSection, step: int) -> float:
    """The sampling policy's decay after step `step` (from 0).

    It is 0 during the first `old_decay_start` steps, so that the average is the trained policy itself; then it rises in a line
    over `old_decay_steps` to `old_decay`, and stays (DiffusionNFT, arXiv 2509.16117: a policy that moves fast
    early on is not slowed down by its own past).
    """
    risen = (step + 1 - config.old_decay_start) / max(config.old_decay_steps, 1)
    return config.old_decay * min(1.0, max(0.0, risen))
