"""The losses of packs on the double that reads them: what is weighed, what it is divided by, and packs without texts or images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.bigram_ranks import gradient
from tests.support.pack_reader import PackReader
from tests.support.pack_rows import lanes_of, packed, plans, updater_of
from tests.support.tiny_updates import WORLD
from trainer.config.packed import PackLossConfig
from trainer.data.sequences import Plans
from trainer.objectives.packed import PackBatch, SupervisedPacks, by_group
from trainer.update.work import plan_work

GROUPS = [{"name": "drawings"}, {"name": "writings"}, {"name": "thoughts"}]


def sets() -> dict[str, Plans]:
    return {name: plans(name, 30) for name in ("drawings", "writings", "thoughts")}


def objective_of(policy: PackReader, **fields: Any) -> SupervisedPacks:
    config = packed(GROUPS, **fields)
    return SupervisedPacks(policy, config, lanes_of(config, sets(), policy), [group.name for group in config.groups])


@pytest.mark.parametrize("reduction", ["token", "sample", "square"])
@pytest.mark.parametrize("per", ["text", "row"])
def test_the_loss_is_the_weighted_mean_of_each_kind_of_token(reduction: str, per: str) -> None:
    policy = PackReader()
    fields = {"packs": 2, "loss": {"reduction": reduction, "per": per, "ce_weight": 2.0, "mse_weight": 0.5}}
    row = updater_of(policy, packed(GROUPS, **fields), sets()).step(None, 0)
    again = PackReader()
    weigh = {"token": lambda n: 1.0, "sample": lambda n: 1 / n, "square": lambda n: n**-0.5}[reduction]
    numerator = denominator = 0.0
    squares: list[Tensor] = []
    with torch.no_grad():
        for batch in objective_of(again, **fields).batches(None, 0):
            for laid in batch.rows:
                out = again.read([laid])  # a row alone
                squares.append(out.squared_error_L)
                first = 0
                for learnt in laid.learnt:
                    weight = weigh(sum(laid.learnt) if per == "row" else learnt)
                    numerator += weight * out.cross_entropy_T[first : first + learnt].sum().item()
                    denominator += weight * learnt
                    first += learnt
    mse = torch.cat(squares).mean().item()
    assert row["loss/ce"] == pytest.approx(numerator / denominator, rel=1e-5)
    assert row["loss/mse"] == pytest.approx(mse, rel=1e-5)
    expected = gradient_of(2.0 * numerator / denominator + 0.5 * mse, fields)
    torch.testing.assert_close(gradient(policy), expected, rtol=1e-4, atol=1e-7)  # type: ignore[arg-type]


def gradient_of(value: float, fields: dict[str, Any]) -> Tensor:
    """Of the loss written out for whole packs at once; its value must be `value`."""
    policy = PackReader()
    objective = objective_of(policy, **fields)
    batches = objective.batches(None, 0)
    loss, power = fields["loss"], {"token": 0.0, "sample": 1.0, "square": 0.5}[fields["loss"]["reduction"]]
    outs, weights = [], []
    for batch in batches:
        outs.append(policy.read(batch.rows))
        for laid in batch.rows:
            for learnt in laid.learnt:
                n = sum(laid.learnt) if loss["per"] == "row" else learnt
                weights += [n**-power] * learnt
    weight_T = torch.tensor(weights)
    ce = (weight_T * torch.cat([out.cross_entropy_T for out in outs])).sum() / weight_T.sum()
    total = loss["ce_weight"] * ce + loss["mse_weight"] * torch.cat([out.squared_error_L for out in outs]).mean()
    assert total.item() == pytest.approx(value, rel=1e-5)
    total.backward()  # type: ignore[no-untyped-call]
    return gradient(policy)  # type: ignore[arg-type]


def test_what_is_counted_is_shown() -> None:
    policy = PackReader()
    config = packed(GROUPS, packs=2)
    row = updater_of(policy, config, sets()).step(None, 0)
    packs = lanes_of(config, sets()).packs()
    rows = [laid for pack in packs for laid in pack.rows]
    assert row["packed/rows"] == len(rows) and row["packed/left_out"] == 0
    assert row["packed/tokens"] == sum(laid.length for laid in rows)
    assert row["packed/text_tokens"] == sum(sum(laid.learnt) for laid in rows)
    assert row["packed/latent_tokens"] == sum(laid.drawn for laid in rows)


def test_noised_copies_are_tokens_of_their_own() -> None:
    latents = [
        updater_of(
            PackReader(), packed(GROUPS[:1], noise={"copies": copies}, max_tokens=300, expected_tokens=1), sets()
        ).step(None, 0)["packed/latent_tokens"]
        for copies in (1, 3)
    ]
    assert latents == [4, 12]


@pytest.mark.parametrize(("group", "absent"), [("drawings", "text_tokens"), ("writings", "latent_tokens")])
@pytest.mark.parametrize("weights", [{}, {"ce_weight": 0}, {"mse_weight": 0}])
def test_a_step_without_texts_or_without_images_is_a_step(group: str, absent: str, weights: dict[str, Any]) -> None:
    """Where nothing that has a weight is there, the weights stay as they are."""
    policy = PackReader()
    before = torch.cat([p.detach().flatten().clone() for p in policy.trainable.parameters()])
    updater = updater_of(policy, packed([{"name": group}], loss=weights), sets())
    row = updater.step(None, 0)
    after = torch.cat([p.detach().flatten() for p in policy.trainable.parameters()])
    learns = {"drawings": weights.get("mse_weight", 1), "writings": weights.get("ce_weight", 1)}[group] != 0
    assert row[f"packed/{absent}"] == 0 and (row["grad_norm"] > 0) == learns
    assert torch.equal(before, after) != learns


def test_a_pack_of_weight_0_changes_nothing() -> None:
    policy = PackReader()
    objective = objective_of(policy)
    [batch] = objective.batches(None, 0)
    assert isinstance(batch, PackBatch)
    idle = batch.weightless()
    assert set(objective.counts(idle).values()) == {0.0}
    terms, stats = objective.terms(idle, 0)
    assert all(term.sum.item() == 0 for term in terms) and all(total.item() == 0 for total in stats.totals.values())


def test_rows_that_cannot_be_used_are_counted_and_told() -> None:
    policy = PackReader()
    config = packed([{"name": "drawings"}], packs=2)
    found = {"drawings": plans("drawings", 20, bad=range(0, 20, 2))}
    updater = updater_of(policy, config, found)
    row = updater.step(None, 0)
    objective = updater.objective
    assert isinstance(objective, SupervisedPacks)
    assert row["packed/left_out"] == len(objective.left_out) > 0
    assert all(each.endswith("txt is missing; give it") for each in objective.left_out)


def test_one_of_the_losses_must_have_a_weight() -> None:
    with pytest.raises(ValueError, match="nothing would be learnt"):
        PackLossConfig(ce_weight=0, mse_weight=0)


def test_packs_of_unlike_ranks_are_planned_alike() -> None:
    """A step whose every pack belongs to this rank counts what the packs hold."""
    policy = PackReader()
    work = plan_work(objective_of(policy, packs=3), None, 0, 1, WORLD)
    assert len(work.items) == 3 and work.counts_U[0]["text_tokens"] > 0 and work.counts_U[0]["latent_tokens"] > 0


def test_each_group_is_shown_by_itself() -> None:
    """Plain means over its tokens, whatever weighs them in the loss."""
    policy, config = PackReader(), packed(GROUPS, packs=6, loss={"reduction": "sample"})
    row: dict[str, Any] = dict(updater_of(policy, config, sets()).step(None, 0))
    errors: dict[str, list[Tensor]] = {}
    again = PackReader()
    for pack in lanes_of(config, sets(), again).packs():
        for (group, _), laid in zip(pack.keys, pack.rows, strict=True):
            with torch.no_grad():
                out = again.read([laid])
            name = config.groups[group].name
            errors.setdefault(f"{name}/ce", []).append(out.cross_entropy_T)
            errors.setdefault(f"{name}/mse", []).append(out.squared_error_L)
    assert [row[f"packed/{name}/rows"] for name in sets()] == [len(errors[f"{name}/ce"]) for name in sets()]
    found = by_group(row, [group.name for group in config.groups])
    expected = {name: torch.cat(each).mean().item() for name, each in errors.items() if len(torch.cat(each))}
    assert found == pytest.approx(expected, rel=1e-5) and len(found) == 4
    assert not [key for key in row if key.endswith(("/ce", "/mse", "s/text_tokens")) and key.count("/") == 2]
