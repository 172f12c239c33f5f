"""Rows laid out and read: what is learnt, what sees what, and that a row does not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tests.support.small_mot import small_mot
from trainer.data.sequences import SequencePlan
from trainer.policies.base import Laying, ReadsPacks
from trainer.policies.unified.mot.policy import MotPolicy


def test_the_policy_reads_packs(policy: MotPolicy) -> None:
    assert isinstance(policy, ReadsPacks)


def test_a_fresh_model_predicts_nothing_so_its_first_error_is_that_of_the_velocity(
    plans: Sequence[SequencePlan],
) -> None:
    fresh = small_mot(rough=False)
    rows = [fresh.lay(plan, Laying(seed)) for seed, plan in enumerate(plans)]
    velocity = [
        each.noise - fresh.model.codec.encode(row.drawn_from[each.source][None])[0].flatten(1).T
        for row in rows
        for each in row.latents
        if each.noise is not None
    ]
    wanted = (torch.cat(velocity) ** 2).mean(1)
    assert torch.equal(fresh.read(rows).squared_error_L.detach(), wanted), "exactly: the layer to latents is 0"


def test_a_row_in_a_pack_is_the_row_by_itself(policy: MotPolicy, plans: Sequence[SequencePlan]) -> None:
    rows = [policy.lay(plan, Laying(seed, copies=2, shift=3.0)) for seed, plan in enumerate(plans)]
    packed, alone = policy.read(rows), [policy.read([each]) for each in rows]
    torch.testing.assert_close(
        packed.cross_entropy_T, torch.cat([each.cross_entropy_T for each in alone]), rtol=0, atol=2e-6
    )
    torch.testing.assert_close(
        packed.squared_error_L, torch.cat([each.squared_error_L for each in alone]), rtol=1e-6, atol=1e-5
    )
    assert packed.cross_entropy_T.shape == (sum(sum(each.learnt) for each in rows),)
    assert packed.squared_error_L.shape == (sum(each.drawn for each in rows),)


def test_what_a_row_counts(policy: MotPolicy, plans: Sequence[SequencePlan]) -> None:
    t2i, edit, reason, long = (policy.lay(plan, Laying(0, copies=2)) for plan in plans)
    # start, four words (and a space piece is part of each), end; then two copies of 16 latents with two tags each
    assert (t2i.length, t2i.learnt, t2i.drawn) == (6 + 2 * 18, (), 32)
    assert (edit.length, edit.drawn) == (5 + 18 + 18 + 2 * 18, 32)
    assert reason.learnt == (5,), "two tags, two words, and what ends the text"
    assert long.learnt == (5, 1), "likewise, and by itself the start of an image after it"
    assert long.drawn == 2 * 8
