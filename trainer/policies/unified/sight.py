"""Whether a policy draws by its prompts and knows each image for itself, shown by its own log-probabilities before the first step.

As `trainer.policies.tokens.sight` for answers: each check changes one thing and looks at the log-probabilities of drawn images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer.policies.base import select
from trainer.policies.tokens.sight import BOUNDS, STILL, Sight
from trainer.policies.unified.policy import UnifiedPolicy
from trainer.policies.unified.trace import ImageTrace
from trainer.types import Rollout


@torch.no_grad()
def look_at_drawings(policy: UnifiedPolicy, rollouts: Sequence[Rollout]) -> list[Sight]:
    """Whether the prompt moves what is drawn, no image depends on its neighbours, and what is drawn is what is trained on.

    The number of forward passes depends on the number of images alone, so that ranks with sharded weights can do it together.

    Args:
        rollouts: images of a few prompts, drawn by the policy itself, at least one.
    """
    bound = BOUNDS[policy.texts.model.config.dtype]
    return [_prompt(policy, rollouts[0]), _alone(policy, rollouts[0], bound), _replayed(policy, rollouts, bound)]


def _prompt(policy: UnifiedPolicy, rollout: Rollout) -> Sight:
    trace = rollout.trace
    assert isinstance(trace, ImageTrace), "it draws images"
    if trace.thoughts_B:
        return Sight("prompt", "NOT CHECKED", "images are drawn after plans, which are of their own prompts")
    others = [*trace.drawings_B[1:], *trace.drawings_B[:1]]
    own_BS, again_BS = _logp(policy, rollout), _logp(policy, rollout)
    swapped_BS = _logp(policy, replace(rollout, trace=replace(trace, drawings_B=others)))
    shown = [
        n
        for n, (own, other) in enumerate(zip(trace.drawings_B, others, strict=True))
        if not torch.equal(own.cond_T, other.cond_T)
    ]
    if not shown:
        return Sight("prompt", "NOT CHECKED", f"the first {len(rollout)} prompts to draw are all alike")
    least = max(STILL, 10 * (again_BS - own_BS).abs().max().item())
    moved_B = (swapped_BS - own_BS).abs().amax(1)[shown]
    if not moved_B.max() > least:
        return Sight(
            "prompt",
            "FAIL",
            f"what is drawn does not depend on its prompt: another prompt moves no token of the first {len(shown)} images by more "
            f"than {least:.0e}",
            "look whether the prompt is in the model's own frame (chat template, tag that begins an image) and the weights are "
            "those of a model that draws; policy.check_sight: false trains it so",
        )
    return Sight(
        "prompt", "OK", f"another prompt moves a token of an image by up to {moved_B.median():.2g} nats (median)"
    )


def _alone(policy: UnifiedPolicy, rollout: Rollout, bound: float) -> Sight:
    together_BS, counts_BS = _logp(policy, rollout), _counted(rollout)
    worst = 0.0
    for row in range(len(rollout)):
        alone_S = _logp(policy, select(rollout, [row]))[0]
        worst = max(worst, _error(policy, (together_BS[row, : len(alone_S)] - alone_S)[counts_BS[row, : len(alone_S)]]))
    if len(rollout) == 1:
        return Sight("images", "NOT CHECKED", "the first batch has one image to draw")
    if not worst <= bound:
        return Sight(
            "images",
            "FAIL",
            f"an image depends on its neighbours: alone its tokens' log-probabilities are off by {worst:.2g} from those in a batch of "
            f"{len(rollout)}, and rounding explains {bound:g} ({policy.texts.model.config.dtype})",
            "report it with the model's name: images of a batch must not see one another",
        )
    return Sight(
        "images", "OK", f"{len(rollout)} images are alone what they are in a batch, to {worst:.1g} (bound {bound:g})"
    )


def _replayed(policy: UnifiedPolicy, rollouts: Sequence[Rollout], bound: float) -> Sight:
    worst = 0.0
    for rollout in rollouts:
        gaps_BS, counts_BS = _logp(policy, rollout) - rollout.logp_BS.cpu(), _counted(rollout)
        worst = max(
            worst, *(_error(policy, gap_S[inside_S]) for gap_S, inside_S in zip(gaps_BS, counts_BS, strict=True))
        )
    if not worst <= bound:
        return Sight(
            "drawing",
            "FAIL",
            f"what was drawn is not what is trained on: log-probabilities of drawn images differ by {worst:.2g} from those computed "
            f"again, and rounding explains {bound:g} ({policy.texts.model.config.dtype})",
            "report it with the model's name: what draws its images does not compute this model",
        )
    return Sight("drawing", "OK", f"drawn images are replayed to {worst:.1g} (bound {bound:g})")


def _logp(policy: UnifiedPolicy, rollout: Rollout) -> Tensor:
    (part,) = policy.parts(rollout)
    return torch.where(_counted(rollout), policy.replay(rollout, part).logp_BS.float().cpu(), 0.0)


def _counted(rollout: Rollout) -> Tensor:
    """Bool (B, S), on the CPU: what was drawn."""
    if rollout.mask_BS is None:
        return torch.ones(rollout.logp_BS.shape, dtype=torch.bool)
    return rollout.mask_BS.cpu()


def _error(policy: UnifiedPolicy, gap_S: Tensor) -> float:
    """How far an image is off, as `BOUNDS` measure it; infinity where a number is none."""
    off_S = gap_S.abs().float().nan_to_num(nan=torch.inf)
    return (off_S.mean() if policy.texts.model.config.dtype == "bfloat16" else off_S.max()).item()
