"""Losses of text against values computed with TRL 1.16 (`golden_text_losses.json` says how), and its invariants.

Axes: B rows, S tokens.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.advantages import ESTIMATORS
from trainer.losses import (
    PairRatios,
    others_of,
    pair_ratios,
    pair_terms,
    policy_loss,
    policy_terms,
    preference_loss,
    preference_terms,
    reduced,
    weigh,
)
from trainer.losses.policy import REDUCTIONS, PolicyKind

GOLDEN = json.loads((Path(__file__).parent / "golden_text_losses.json").read_text())
KINDS: tuple[PolicyKind, ...] = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo", "cispo", "vespo")


def fixture(name: str) -> dict[str, Tensor]:
    raw: dict[str, Any] = GOLDEN["fixtures"][name]
    tensors = {key: torch.tensor(value) for key, value in raw.items() if isinstance(value, list)}
    if "as" in raw:
        tensors = fixture(raw["as"]) | tensors
        for key in ("old", "ref"):
            if raw.get(key) == "= logp":
                tensors[key] = tensors["logp"].clone()
        if "mask_row_0" in tensors:
            tensors["mask"] = tensors["mask"].clone()
            tensors["mask"][0] = tensors.pop("mask_row_0")
    return tensors


def differentiated(loss: Tensor, logp: Tensor) -> tuple[float, list[list[float]]]:
    (gradient,) = torch.autograd.grad(loss, logp)
    return loss.item(), gradient.tolist()


def options(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": case["loss_type"],
        "level": case.get("level", "token"),
        "clip_range": (case.get("eps", 0.2), case.get("eps_high", 0.28)),
        "beta": case.get("beta", 0.0),
        "kl_importance": case.get("bias_kl", True),
        "max_completion_length": 8 if case["loss_type"] == "dr_grpo" else None,
    }


@pytest.mark.parametrize("case", GOLDEN["advantages"], ids=lambda case: case["name"])
def test_advantages_are_those_of_trl(case: dict[str, Any]) -> None:
    """A missing reward is the one difference: in a sum TRL counts it as 0, here the sample has no advantage."""
    scores = torch.tensor([[math.nan if score is None else score for score in row] for row in case["rewards"]])
    group, valid = torch.arange(len(scores)) // case["g"], ~scores.isnan()
    weights = torch.tensor(case.get("weights", [1.0] * scores.shape[1])).expand(len(scores), -1)
    name = "gdpo" if "agg" in case else {"none": "dr_grpo"}.get(case.get("scale", "group"), "grpo")
    adv, weight = ESTIMATORS[name](scores, valid, group, weights)
    if name == "grpo" and not valid.all():
        assert weight.tolist() == valid.all(1).float().tolist()
    else:
        assert adv.tolist() == pytest.approx(case["advantages"], abs=1e-6)


def case_name(case: dict[str, Any]) -> str:
    return "-".join(str(value) for key, value in case.items() if key not in ("loss", "grad_logp", "metrics"))


@pytest.mark.parametrize("junk", [-9.0, 300.0, math.nan])
@pytest.mark.parametrize("case", GOLDEN["grpo"], ids=case_name)
def test_policy_losses_and_gradients(case: dict[str, Any], junk: float) -> None:
    given = fixture(case["fixture"])
    logp, old, ref = (torch.where(given["mask"] != 0, given[key], junk) for key in ("logp", "old", "ref"))
    logp.requires_grad_()
    loss, gradient = differentiated(
        policy_loss(logp, old, given["adv"], given["mask"], ref_BS=ref, **options(case)), logp
    )
    assert loss == pytest.approx(case["loss"], abs=1e-5, rel=1e-5)
    for row, expected in zip(gradient, case["grad_logp"], strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("level", "values"),
    [
        ("token", {"grpo": 0.38596, "bnpo": 0.124259, "dr_grpo": 0.038831, "dapo": 0.124259, "sapo": 0.459457}),
        ("sequence", {"grpo": 0.306097, "bnpo": 0.043111, "dr_grpo": 0.013472, "dapo": 0.043111, "sapo": 0.447226}),
    ],
)
def test_ten_values_of_nanovlm_lab(level: Any, values: dict[Any, float]) -> None:
    """Its KL has no importance factor, and its largest answer here has 8 tokens."""
    given = fixture("facts")
    for kind, expected in values.items():
        loss = policy_loss(
            given["logp"].float(),
            given["old"],
            given["adv"],
            given["mask"],
            ref_BS=given["ref"],
            kind=kind,
            level=level,
            beta=0.1,
            max_completion_length=8 if kind == "dr_grpo" else None,
        )
        assert loss.item() == pytest.approx(expected, abs=1e-5), kind


@pytest.mark.parametrize("case", GOLDEN["micro_batches"]["cases"], ids=lambda case: case["loss_type"])
def test_parts_over_one_count_make_the_whole(case: dict[str, Any]) -> None:
    """TRL's bnpo is the mean of the micro-batches' means; one count for all of them gives its value of the whole batch."""
    given, kind = fixture("two_groups"), case["loss_type"]
    total, count = 0.0, 0.0
    for rows in GOLDEN["micro_batches"]["rows"]:
        terms = policy_terms(*(given[key][rows] for key in ("logp", "old", "adv", "mask")), kind=kind)
        weights = weigh(given["mask"][rows], REDUCTIONS[kind], cap=8 if kind == "dr_grpo" else None)
        total += (weights.weight_BS * terms.policy_BS).sum().item()
        count += weights.count.item()
    assert total / count == pytest.approx(case["whole"], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_padding_changes_nothing(kind: PolicyKind, level: Any) -> None:
    given = fixture("two_groups")
    cap = 8 if kind == "dr_grpo" else None

    def loss(width: int) -> tuple[float, list[list[float]]]:
        padded = {k: torch.nn.functional.pad(v, (0, width), value=-9) for k, v in given.items() if v.dim() == 2}
        padded["mask"] = torch.nn.functional.pad(given["mask"], (0, width))
        logp = padded["logp"].requires_grad_()
        value, gradient = differentiated(
            policy_loss(
                logp,
                padded["old"],
                given["adv"],
                padded["mask"],
                ref_BS=padded["ref"],
                kind=kind,
                level=level,
                beta=0.1,
                max_completion_length=cap,
            ),
            logp,
        )
        return value, [row[:5] for row in gradient]

    value, gradient = loss(0)
    padded_value, padded_gradient = loss(3)
    assert padded_value == pytest.approx(value, abs=1e-6)
    assert torch.tensor(padded_gradient) == pytest.approx(torch.tensor(gradient), abs=1e-6)


def test_two_sided_clipping_by_hand() -> None:
    """r = 3, A = -1: without a cap the term is 3 with gradient 3; at delta 2 it is 2 and passes no gradient on."""
    logp = torch.tensor([[math.log(3.0)]], requires_grad=True)
    one = torch.ones(1, 1)
    for delta, expected, slope in ((None, 3.0, 3.0), (2.0, 2.0, 0.0)):
        loss, gradient = differentiated(policy_loss(logp, 0 * one, -one[0], one, delta=delta), logp)
        assert (loss, gradient[0][0]) == pytest.approx((expected, slope))


def test_rows_far_from_the_policy_by_hand() -> None:
    """Rows 0 and 1 moved by .5 a token, row 2 by .1: with threshold .3 the bad row 1 alone adds nothing."""
    old = torch.tensor([[-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0]])
    logp = torch.tensor([[-1.5, -1.5], [-1.5, -1.5], [-1.1, -1.1]], requires_grad=True)
    loss = policy_loss(logp, old, torch.tensor([1.0, -1.0, -1.0]), torch.ones(3, 2), off_policy=0.3)
    # Row 0: -e^-.5; row 1 would be .8 (cut from below); row 2: e^-.1.
    assert loss.item() == pytest.approx((-math.exp(-0.5) + math.exp(-0.1)) / 3)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert gradient[1].tolist() == [0.0, 0.0]
    assert gradient[2].tolist() != [0.0, 0.0]


def test_sapo_temperatures_by_hand() -> None:
    """r = 2: A = 1 takes tau 3, A = -1 takes tau 5: -4 sigmoid(3)/3 and 4 sigmoid(5)/5."""
    logp, old = torch.full((2, 1), math.log(2.0)), torch.zeros(2, 1)
    loss = policy_loss(logp, old, torch.tensor([1.0, -1.0]), torch.ones(2, 1), kind="sapo", tau=(3.0, 5.0))
    expected = (-4 / (1 + math.exp(-3)) / 3 + 4 / (1 + math.exp(-5)) / 5) / 2
    assert loss.item() == pytest.approx(expected)


def test_cispo_cap_is_of_the_ratio_or_a_distance_from_one() -> None:
    logp, old, one = torch.full((1, 1), math.log(8.0)), torch.zeros(1, 1), torch.ones(1, 1)
    for above, cap in ((5.0, 5.0), (0.28, 1.28)):
        loss = policy_loss(logp, old, one[0], one, kind="cispo", clip_range=(0.2, above))
        assert loss.item() == pytest.approx(-cap * math.log(8.0))


def test_no_token_at_all_is_zero() -> None:
    """A batch of which nothing counts has the loss 0 and the gradient 0, not 0 / 0."""
    nothing = torch.zeros(2, 3)
    for kind in KINDS:
        logp = torch.full((2, 3), math.nan, requires_grad=True)
        loss = policy_loss(
            logp,
            nothing,
            torch.ones(2),
            nothing,
            ref_BS=nothing,
            beta=0.1,
            kind=kind,
            max_completion_length=8 if kind == "dr_grpo" else None,
        )
        value, gradient = differentiated(loss, logp)
        assert value == 0
        assert gradient == nothing.tolist()


def test_weights_by_hand() -> None:
    """Lengths 3, 0, 1 and a failed row: what each reduction gives and divides by."""
    mask = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0]])
    weight_B = torch.tensor([1.0, 1.0, 1.0, 0.0])
    third, root = 1 / 3, 3**-0.5
    for reduction, first, count in (
        ("sample", third, 3),
        ("token", 1, 4),
        ("cap", 1, 24),
        ("row", 1, 3),
        ("root", root, 3 * root + 1),
    ):
        weights = weigh(mask, reduction, weight_B=weight_B, cap=8 if reduction == "cap" else None)  # type: ignore[arg-type]
        assert weights.weight_BS[:, 0].tolist() == pytest.approx([first, 0, 1, 0])
        assert weights.weight_BS[3].tolist() == [0, 0, 0]
        assert weights.count.item() == pytest.approx(count)
        assert reduced(torch.ones(4, 3), weights).item() == pytest.approx((weights.weight_BS.sum() / count).item())


@pytest.mark.parametrize("case", GOLDEN["dpo"], ids=case_name)
def test_preference_losses_and_gradients(case: dict[str, Any]) -> None:
    given = fixture(case["fixture"])
    logp, ref = (torch.where(given["mask"] != 0, given[key], math.nan) for key in ("logp", "ref"))
    logp.requires_grad_()
    if (
        case["loss_type"] == "bco_pair"
    ):  # computed with 0 for the mean reward, which the trainer behind the values had not seen yet
        pairs = pair_ratios(logp, ref, given["mask"] != 0, "bco_pair")
        loss = pair_terms(pairs, kind="bco_pair", others_2N=torch.zeros(2, 2)).mean()
    else:
        loss = golden_preference_loss(case, logp, ref, given["mask"])
    value, gradient = differentiated(loss, logp)
    assert value == pytest.approx(case["loss"], abs=1e-5)
    for row, expected in zip(gradient, case["grad_logp"], strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def golden_preference_loss(case: dict[str, Any], logp_BS: Tensor, ref_BS: Tensor, mask_BS: Tensor) -> Tensor:
    return preference_loss(
        logp_BS,
        ref_BS,
        mask_BS,
        kind=case["loss_type"],
        beta=case.get("beta", 0.1),
        smoothing=case.get("smoothing", 0.0),
        divergence=case.get("f_div", "reverse_kl"),
        ld_alpha=case.get("ld_alpha", 1.0),
    )


def test_preference_losses_that_trl_does_not_have() -> None:
    """NanoVLM-Lab sums IPO's log-ratios and smooths the labels of sigmoid."""
    given, other = fixture("pairs"), GOLDEN["not_trl"]
    pairs = (given["logp"], given["ref"], given["mask"])
    assert preference_loss(*pairs, kind="ipo_sum", beta=0.1).item() == pytest.approx(23.05, abs=1e-5)
    assert preference_loss(*pairs, kind="ipo_sum", beta=0.5).item() == pytest.approx(0.65, abs=1e-5)
    smoothed = other["sigmoid_label_smoothing_not_by_trl"]["loss"]
    assert preference_loss(*pairs, smoothing=0.1).item() == pytest.approx(smoothed, abs=1e-6)


def test_preference_losses_at_the_first_step() -> None:
    """Where the policy is the reference: ln 2, ln 2, 1 and 1 / (4 beta^2); of whole answers 2 ln 2 and 2 / (4 beta^2); and so on."""
    given, ln2 = fixture("pairs_first_step"), math.log(2)
    expected = {"sigmoid": ln2, "sigmoid_norm": ln2, "robust": ln2, "aot": ln2, "aot_unpaired": ln2, "hinge": 1.0, "ipo": 25.0,
                "nca_pair": 2 * ln2, "bco_pair": 2 * ln2, "sppo_hard": 50.0, "apo_zero": 1.0, "apo_down": 1.0,
                "discopop": ln2 / 2 + 0.5}  # fmt: skip
    for kind, value in expected.items():
        loss = preference_loss(given["logp"], given["ref"], given["mask"], kind=kind)  # type: ignore[arg-type]
        assert loss.item() == pytest.approx(value), kind


def pairs_of(chosen: list[float], rejected: list[float], ref_margin: list[float] | None = None) -> PairRatios:
    numbers = (chosen, rejected, ref_margin or [0.0] * len(chosen))
    chosen_N, rejected_N, ref_margin_N = (torch.tensor(each, dtype=torch.float64) for each in numbers)
    return PairRatios(chosen_N.requires_grad_(), rejected_N.requires_grad_(), ref_margin_N)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_losses_of_whole_answers_by_hand() -> None:
    """The golden file has no sppo_hard, apo_zero and discopop: c = 2, r = -1 at beta .5, so 1 / (2 beta) = 1 and z = 1.5."""
    pairs = pairs_of([2.0], [-1.0])
    for kind, expected in {
        "sppo_hard": 1.0 + 0.0,
        "apo_zero": 1 - sigmoid(1.0) + sigmoid(-0.5),
        "discopop": (1 - sigmoid(30)) * -math.log(sigmoid(1.5)) + sigmoid(30) * math.exp(-1.5),
    }.items():
        assert pair_terms(pairs, kind=kind, beta=0.5).item() == pytest.approx(expected, abs=1e-12)  # type: ignore[arg-type]
    far = preference_terms(torch.tensor([-1000.0, 1000.0]), kind="discopop", beta=1.0)
    assert far.tolist() == [1000.0, 0.0], "no infinity times 0"


@pytest.mark.parametrize("kind", ["aot", "aot_unpaired", "bco_pair"])
def test_losses_that_compare_pairs_are_of_the_whole_step(kind: Any) -> None:
    """What one pair takes from the others is a constant in its own term, and yet value and gradient are those of the definition:
    lists sorted with gradient, as the papers write them. The pairs are in different orders in both lists."""
    numbers = ([0.4, -0.7, 0.1], [0.3, 0.5, -0.2], [0.3, 0.9, -0.5])
    pairs = pairs_of(*numbers)
    loss = pair_terms(pairs, kind=kind, beta=0.5, others_2N=others_of(pairs, kind, 0.5)).sum()
    found = torch.autograd.grad(loss, (pairs.chosen_N, pairs.rejected_N))
    plain = pairs_of(*numbers)
    c, r, ref = plain.chosen_N, plain.rejected_N, plain.ref_margin_N
    if kind == "bco_pair":
        mean = (0.5 * torch.cat([c, r]).mean()).detach()
        expected = -(0.5 * c - mean).sigmoid().log().sum() - (mean - 0.5 * r).sigmoid().log().sum()
    else:
        one, two = (c - r + ref, ref) if kind == "aot" else (c, r)
        expected = -(0.5 * (one.sort().values - two.sort().values)).sigmoid().log().sum()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (c, r)), rtol=1e-12, atol=1e-12)
    if kind != "bco_pair":
        assert loss.item() != pytest.approx(preference_terms(pairs.margin_N, beta=0.5).sum().item(), abs=1e-3)


def test_what_cannot_act_or_does_not_fit_is_refused() -> None:
    rows, adv = torch.zeros(2, 3), torch.zeros(2)
    with pytest.raises(ValueError, match=r"dr_grpo .* max_completion_length"):
        policy_loss(rows, rows, adv, rows, kind="dr_grpo")
    with pytest.raises(ValueError, match=r"beta = 0\.1 .* give ref_BS"):
        policy_loss(rows, rows, adv, rows, beta=0.1)
    with pytest.raises(ValueError, match="kind = 'ppo': must be one of grpo"):
        policy_loss(rows, rows, adv, rows, kind="ppo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level = 'word'"):
        policy_loss(rows, rows, adv, rows, level="word")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"logp \(2, 3\).*\(2, 2\)"):
        policy_loss(rows, rows[:, :2], adv, rows)
    with pytest.raises(ValueError, match="`cap` divides by rows"):
        weigh(rows, "cap")
    with pytest.raises(ValueError, match=r"mask \(2, 3\), weight \(3,\)"):
        weigh(rows, "token", weight_B=torch.ones(3))
    with pytest.raises(ValueError, match="3 rows are no pairs"):
        preference_loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"ref \(2, 2\)"):
        preference_loss(rows, rows[:, :2], rows)
    with pytest.raises(ValueError, match=r"smoothing = 0\.1 with kind 'hinge'"):
        preference_terms(adv, kind="hinge", smoothing=0.1)
    with pytest.raises(ValueError, match="exo_pair needs it above 0"):
        preference_terms(adv, kind="exo_pair")
    with pytest.raises(ValueError, match="divergence = forward_kl with kind 'hinge': acts in sigmoid alone"):
        preference_loss(rows, rows, rows, kind="hinge", divergence="forward_kl")
    with pytest.raises(ValueError, match="kind 'aot' compares a pair with the others of its step: give others_2N"):
        pair_terms(pairs_of([0.0], [0.0]), kind="aot")
    with pytest.raises(ValueError, match="kind = 'best'"):
        preference_terms(adv, kind="best")  # type: ignore[arg-type]
