"""Whether a policy sees its images and knows each row for itself, shown by its own log-probabilities before the first step.

Each check changes one thing and looks at the log-probabilities of answers: another image must move them; neighbours in a batch, or
another way of computing, must not. Axes: B rows, S tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from trainer.policies.tokens.draw import Reading
from trainer.policies.tokens.policy import TokenPolicy
from trainer.types import Rollout

Check = Literal[
    "image", "rows", "replay", "placeholders", "prompt", "images", "drawing"
]  # the last three are of drawn images
# What rounding explains of a difference in log-probability, by the type of computations: in float32 of any token; in bfloat16, where
# a logit of 20 is rounded by up to 0.06 and an unlikely token may be off by several such steps, of an answer's tokens on average.
BOUNDS: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 0.25}
STILL = 1e-6  # less is no movement, also where computing twice gives the same bits


@dataclass(frozen=True, eq=False)
class Case:
    """A row of the first batch: what is read, and an answer to it, drawn or given."""

    name: str
    reading: Reading
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Sight:
    """What a check found.

    Attributes:
        check: which one.
        status: `FAIL` stops the run; `NOT CHECKED` says why.
        sentence: what was measured.
        remedy: what to do about a failure; empty otherwise.
    """

    check: Check
    status: Literal["OK", "FAIL", "NOT CHECKED"]
    sentence: str
    remedy: str = ""


@torch.no_grad()
def look(policy: TokenPolicy, cases: Sequence[Case], rollouts: Sequence[Rollout] = ()) -> list[Sight]:
    """Every check of answers, in the order of `Check`.

    The number of forward passes depends on the numbers of cases and rollouts alone, so that ranks with sharded weights, which
    have equally many of both, can do it together.

    Args:
        cases: a few rows, at least one.
        rollouts: drawn by the policy itself; none where its answers are given, or another engine drew them.
    """
    bound = BOUNDS[policy.model.config.dtype]
    together_BS = _logp(policy, cases)
    return [
        _image(policy, cases, together_BS),
        _rows(policy, cases, together_BS, bound),
        _replay(policy, rollouts, bound),
        _placeholders(policy, rollouts),
    ]


def _image(policy: TokenPolicy, cases: Sequence[Case], together_BS: Tensor) -> Sight:
    again_BS = _logp(policy, cases)
    blank_BS = _logp(policy, [replace(case, reading=blanked(case.reading)) for case in cases])
    others = [swapped(case.reading, [other.reading for other in cases]) for case in cases]
    swapped_BS = _logp(policy, [replace(case, reading=other) for case, other in zip(cases, others, strict=True)])
    shown = [row for row, case in enumerate(cases) if _pixels(case.reading)]
    if not shown:
        return Sight("image", "NOT CHECKED", f"none of the first {len(cases)} rows has an image")
    least = max(STILL, 10 * _furthest(again_BS, together_BS)[shown].max().item())
    blank_B, swap_B = _furthest(blank_BS, together_BS)[shown], _furthest(swapped_BS, together_BS)[shown]
    blind = [
        row for row, moved in zip(shown, torch.maximum(blank_B, swap_B).tolist(), strict=True) if not moved > least
    ]
    if len(blind) == len(shown):
        return Sight(
            "image",
            "FAIL",
            f"the model does not see its images: neither a blank image nor another one moves the log-probability of any answer "
            f"of the first {len(shown)} rows with images by more than {least:.0e}",
            "look whether the prompt has the model's image tokens (chat template, processor) and the folder the vision "
            "tower's and the projector's weights; policy.check_sight: false trains it blind",
        )
    told = f"; {cases[blind[0]].name} is not moved by its own" if blind else ""
    return Sight(
        "image",
        "OK",
        f"a blank image moves a token of the answer by up to {blank_B.median():.2g} nats, another image by {swap_B.median():.2g} "
        f"(medians of {len(shown)} rows){told}",
    )


def _rows(policy: TokenPolicy, cases: Sequence[Case], together_BS: Tensor, bound: float) -> Sight:
    errors = []
    for row, case in enumerate(cases):
        alone_S = _logp(policy, [case])[0]
        errors.append(_error(policy, together_BS[row, : len(alone_S)] - alone_S))
    worst = max(range(len(cases)), key=lambda row: errors[row])
    lengths = sorted({len(case.reading.ids_T) + len(case.answer) for case in cases})
    if not errors[worst] <= bound:
        return Sight(
            "rows",
            "FAIL",
            f"a row depends on its neighbours: the log-probability of an answer to {cases[worst].name} is off by "
            f"{errors[worst]:.2g} in a batch of {len(cases)}, and rounding explains {bound:g} ({policy.model.config.dtype})",
            "the model must use the attention mask, and positions that do not count padding; take another implementation of it",
        )
    if len(cases) == 1:
        return Sight("rows", "NOT CHECKED", "the first batch has one row")
    return Sight(
        "rows",
        "OK",
        f"{len(cases)} rows of {lengths[0]} to {lengths[-1]} tokens are alone what they are in a batch, to {errors[worst]:.1g} "
        f"(bound {bound:g})",
    )


def _replay(policy: TokenPolicy, rollouts: Sequence[Rollout], bound: float) -> Sight:
    if not rollouts:
        return Sight("replay", "NOT CHECKED", "no answer is drawn by this process")
    error = 0.0
    for rollout in rollouts:
        (part,) = policy.parts(rollout)
        replayed_BS = policy.replay(rollout, part).logp_BS
        counts_BS = torch.ones_like(rollout.logp_BS, dtype=torch.bool) if rollout.mask_BS is None else rollout.mask_BS
        gaps_BS = replayed_BS - rollout.logp_BS.to(replayed_BS.device)
        error = max(
            error,
            *(_error(policy, gap_S[inside_S]) for gap_S, inside_S in zip(gaps_BS.cpu(), counts_BS.cpu(), strict=True)),
        )
    if not error <= bound:
        return Sight(
            "replay",
            "FAIL",
            f"what was drawn is not what is trained on: log-probabilities of drawn answers differ by {error:.2g} from those computed "
            f"again, and rounding explains {bound:g} ({policy.model.config.dtype})",
            "report it with the model's name: what draws its answers does not compute this model",
        )
    return Sight("replay", "OK", f"drawn answers are replayed to {error:.1g} (bound {bound:g})")


def _placeholders(policy: TokenPolicy, rollouts: Sequence[Rollout]) -> Sight:
    """Whether what draws and what replays both ban them, and none was drawn. None is scored: a model that reads one looks for
    its image."""
    model = policy.model
    if not model.image_ids:
        return Sight("placeholders", "NOT CHECKED", "the model's configuration names no token that stands for an image")
    possible = set(model.image_ids) - set(model.banned_N.tolist())
    drawn = {token for rollout in rollouts for sample in rollout.samples for token in sample.tokens}
    possible |= drawn & set(model.image_ids)
    if possible:
        names = ", ".join(model.tokenizer.convert_ids_to_tokens(sorted(possible)))
        return Sight(
            "placeholders",
            "FAIL",
            f"an answer can hold {names}, which stands for an image: the model would then look for one that is not there",
            "report it with the model's name; its placeholders must be banned",
        )
    ids = ", ".join(map(str, model.image_ids))
    return Sight("placeholders", "OK", f"no answer can hold a token that stands for an image (ids {ids})")


def blanked(reading: Reading) -> Reading:
    """The reading with one grey for each of its images: their mean value everywhere."""
    # A little off the mean: some models take an image of zeros alone for padding.
    blank = {name: torch.full_like(pixels, pixels.mean().item() + 0.01) for name, pixels in _pixels(reading).items()}
    return replace(reading, inputs={**reading.inputs, **blank})


def swapped(reading: Reading, others: Sequence[Reading]) -> Reading:
    """The reading with the images of the next of the others that has such of the same size; else with its own upside down."""
    own = _pixels(reading)
    place = next((n for n, other in enumerate(others) if other is reading), 0)
    for other in [*others[place + 1 :], *others[:place]]:
        theirs = _pixels(other)
        fits = own.keys() == theirs.keys() and all(theirs[name].shape == own[name].shape for name in own)
        if own and fits and any(not torch.equal(theirs[name], own[name]) for name in own):
            return replace(reading, inputs={**reading.inputs, **theirs})
    # Patches are rows, images have rows of pixels: the axis before the last is turned round either way.
    return replace(reading, inputs={**reading.inputs, **{name: pixels.flip(-2) for name, pixels in own.items()}})


def _pixels(reading: Reading) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in reading.inputs.items() if tensor.is_floating_point() and tensor.dim() > 1}


def _logp(policy: TokenPolicy, cases: Sequence[Case]) -> Tensor:
    """(B, S) float32; 0 behind the end of a row."""
    logp_BS = policy.logp([case.reading for case in cases], [case.answer for case in cases]).float()
    inside_BS = torch.zeros_like(logp_BS, dtype=torch.bool)
    for row, case in enumerate(cases):
        inside_BS[row, : len(case.answer)] = True
    return torch.where(inside_BS, logp_BS, 0.0)


def _error(policy: TokenPolicy, gap_S: Tensor) -> float:
    """How far an answer is off, as `BOUNDS` measure it; infinity where a number is none."""
    off_S = gap_S.abs().float().nan_to_num(nan=torch.inf)
    return (off_S.mean() if policy.model.config.dtype == "bfloat16" else off_S.max()).item()


def _furthest(a_BS: Tensor, b_BS: Tensor) -> Tensor:
    """(B,): the largest difference in each row."""
    return (a_BS - b_BS).abs().amax(1)
