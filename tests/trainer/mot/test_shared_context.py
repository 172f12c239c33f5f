"""Noised copies of an image share their row's context: it is computed once, and the gradient is that of as many rows of one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer.data.sequences import SequencePlan
from trainer.policies.base import Laying
from trainer.policies.unified.mot.lay import LaidRow
from trainer.policies.unified.mot.policy import MotPolicy

COPIES = 3


def with_copy(row: LaidRow, number: int) -> LaidRow:
    """The row with one of its noised copies alone. Only what comes before the copies may be predicted."""
    noised = [each for each in row.latents if each.noise is not None]
    others = {each.block for each in noised} - {noised[number].block}
    und = [token for token in row.und if token[3] not in others]
    places = [token[0] for token in und if token[0] >= 0]
    renumbered = {old: new for new, old in enumerate(places)}
    return replace(
        row,
        words=[row.words[place] for place in places],
        und=[(renumbered.get(token[0], -1), *token[1:]) for token in und],
        latents=[each for each in row.latents if each.block not in others],
    )


def gradients(policy: MotPolicy, error: Tensor) -> dict[str, Tensor]:
    policy.trainable.zero_grad()
    error.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in policy.trainable.named_parameters() if p.grad is not None}
    policy.trainable.zero_grad()
    return found


def test_copies_have_the_errors_and_gradients_of_rows_of_their_own(
    policy: MotPolicy, plans: Sequence[SequencePlan]
) -> None:
    rows = [policy.lay(plan, Laying(seed, shift=3.0, copies=COPIES)) for seed, plan in enumerate(plans)]
    apart = [[with_copy(row, number) for number in range(COPIES)] for row in rows]
    assert [row.drawn for row in rows] == [sum(each.drawn for each in alone) for alone in apart]
    joint = policy.read(rows)
    mine = gradients(policy, joint.squared_error_L.sum())
    each = policy.read([alone for row in apart for alone in row])
    torch.testing.assert_close(joint.squared_error_L, each.squared_error_L, rtol=1e-5, atol=1e-5)
    theirs = gradients(policy, each.squared_error_L.sum())
    assert mine.keys() == theirs.keys()
    scale = max(gradient.abs().max().item() for gradient in theirs.values())
    for name, gradient in mine.items():  # that of the bias of SigLIP's keys is rounding alone
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6 * scale, msg=name)
    once = policy.read([alone[0] for alone in apart]).cross_entropy_T
    torch.testing.assert_close(joint.cross_entropy_T, once, rtol=0, atol=1e-5)


def test_the_context_of_copies_is_computed_once(policy: MotPolicy, plans: Sequence[SequencePlan]) -> None:
    """Counted at the layers' inputs: with three copies two more of its tags and latents, and of the context not a token more."""
    network = policy.model.network
    watched = {
        "words": network.language_model.model.embed_tokens,
        "patches": network.vit_model,
        "understanding": network.language_model.model.layers[0].mlp,
        "latents": network.language_model.model.layers[0].mlp_moe_gen,
    }
    counted: dict[str, int] = {}

    def count(name: str, given: Tensor) -> None:
        counted[name] = len(given)

    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: count(name, given[0]))
        for name, module in watched.items()
    ]
    try:
        for plan in plans:
            found = []
            for copies in (1, COPIES):
                row = policy.lay(plan, Laying(0, copies=copies))
                with torch.no_grad():
                    policy.read([row])
                found.append(dict(counted))
            more = {name: found[1][name] - found[0][name] for name in watched}
            drawn = policy.lay(plan, Laying(0)).drawn
            tags = 2 * (COPIES - 1)
            assert more == {
                "words": tags, "patches": 0, "understanding": tags, "latents": drawn * (COPIES - 1)
            }, plan.id  # fmt: skip
    finally:
        for hook in hooks:
            hook.remove()
