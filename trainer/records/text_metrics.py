"""Metrics of what a step's tokens are, over all ranks. Of texts: how long they are, how many were cut off, how sure the policy was
of them, and how often the right form holds the right answer. Of images that are drawn by tokens: how sure it was of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.config import RewardsConfig
from trainer.processes.distributed import World
from trainer.types import Rollout, Scores

HOLDS = 0.5  # a format reward of at least this says that the form is right


def text_metrics(
    rollouts: Sequence[Rollout], scores: Scores, rewards: RewardsConfig, world: World, step_s: float
) -> dict[str, float]:
    """`text/length|length_max|truncated_share|entropy`, `tokens_per_s`, and `text/accuracy_given_format` where both roles have
    a column. Empty for a step without texts.

    `text/entropy` is the mean of -log p over all tokens that were drawn, in nats, p being the probability the token was drawn
    with (after temperature, top-k and top-p). Its expectation is the entropy of that distribution, averaged over the places
    that answers visit: a long answer counts for more than a short one.

    Args:
        step_s: the seconds of the step.
    """
    lengths, cut, surprise = [], 0, 0.0
    for rollout in rollouts:
        if not any(sample.text is not None for sample in rollout.samples):
            continue  # of images alone, whose log-probabilities may be on the device
        inside_BS = _inside(rollout) & _written(rollout)
        rows_B = torch.tensor([sample.text is not None for sample in rollout.samples], device=inside_BS.device)
        lengths += inside_BS.sum(1)[rows_B].tolist()
        cut += sum(not sample.finished for sample in rollout.samples if sample.text is not None)
        # What stands behind an end means nothing, NaN included, so it is taken out before it is added up.
        surprise -= torch.where(inside_BS, rollout.logp_BS, 0.0).double().sum().item()
    own = [len(lengths), sum(lengths), cut, surprise, *_right_in_form(scores, rewards)]
    told = world.gather([*map(float, own), max(lengths, default=0)])
    *sums, longest = zip(*told, strict=True)
    count, tokens, truncated, total, in_form, right = map(sum, sums)
    if not count:
        return {}  # on all ranks: the policy draws no texts
    row = {
        "text/length": tokens / count,
        "text/length_max": float(max(longest)),
        "text/truncated_share": truncated / count,
        "tokens_per_s": tokens / step_s,
    }
    if tokens:
        row["text/entropy"] = total / tokens
    return row | ({"text/accuracy_given_format": right / in_form} if in_form else {})


def image_entropy(rollouts: Sequence[Rollout], world: World) -> dict[str, float]:
    """`image/entropy` of images that are drawn by tokens: as `text/entropy`, over their tokens, after temperature and guidance.

    Args:
        rollouts: of one task, which draws images; all ranks together.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    for rollout in rollouts:
        inside_BS = _inside(rollout) & ~_written(rollout)
        surprise = -torch.where(inside_BS, rollout.logp_BS, 0.0).double().sum()
        sums += torch.stack([inside_BS.sum().double(), surprise]).cpu()
    tokens, total = world.sum(sums).tolist()
    return {"image/entropy": total / tokens} if tokens else {}


def _inside(rollout: Rollout) -> Tensor:
    """Bool (B, S): what was drawn."""
    return torch.ones_like(rollout.logp_BS, dtype=torch.bool) if rollout.mask_BS is None else rollout.mask_BS


def _written(rollout: Rollout) -> Tensor:
    """Bool (B, S): the columns of texts. Where an image follows, the text's own tokens come first."""
    width, device = rollout.logp_BS.shape[1], rollout.logp_BS.device
    counts = [0 if s.text is None else len(s.tokens) if s.images else width for s in rollout.samples]
    return torch.arange(width, device=device) < torch.tensor(counts, device=device)[:, None]


def _right_in_form(scores: Scores, rewards: RewardsConfig) -> tuple[float, float]:
    """How many samples have the form, and the sum of their accuracy; none where either role has no column."""
    names = list(scores.names)
    columns = [rewards.role("accuracy"), rewards.role("format")]
    if any(name not in names for name in columns):
        return 0.0, 0.0
    accuracy, form = (names.index(str(name)) for name in columns)
    rows: Tensor = scores.valid_BR[:, [accuracy, form]].all(1) & (scores.scores_BR[:, form] >= HOLDS)
    return float(rows.sum()), float((scores.scores_BR[:, accuracy].double() * rows).sum())
