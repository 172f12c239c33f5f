"""Advantage estimators: hand-computed numbers, masks, order, ranks. Axes: B samples, R rewards."""

from __future__ import annotations

import doctest
import math
import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.advantages import (
    ESTIMATORS,
    Reduce,
    add_up,
    dr_grpo,
    gdpo,
    grpo,
    grpo_global_std,
    pair_weight,
    reinforce_pp,
    standardize,
    without_flat_groups,
)
from trainer.advantages import estimators as module
from trainer.advantages.statistics import alike, moments

NAN = math.nan
HALF = math.sqrt(0.5)


def _t(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def _valid_like(scores: Tensor) -> Tensor:
    return torch.ones(scores.shape, dtype=torch.bool)


def on_ranks(num_ranks: int, work: Callable[[int, Reduce], object]) -> list[object]:
    """Run `work(rank, reduce)` on threads whose `reduce` sums over them, as all-reduce does."""
    barrier = threading.Barrier(num_ranks, timeout=20)
    slots: list[Tensor | None] = [None] * num_ranks
    results: list[object] = [None] * num_ranks

    def run(rank: int) -> None:
        def reduce(tensor: Tensor) -> Tensor:
            slots[rank] = tensor
            barrier.wait()
            total = torch.stack([slot for slot in slots if slot is not None]).sum(0)
            barrier.wait()
            return total

        results[rank] = work(rank, reduce)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# ---------------------------------------------------------------------------------------------------- GRPO


def test_grpo_by_hand() -> None:
    """GRPO (arXiv 2402.03300) 4.1.2: group 1, 2, 3 has mean 2 and unbiased std 1; group 0, 4 has 2 and sqrt 8."""
    scores = _t(1, 0, 2, 4, 3)
    adv, weight = grpo(scores, _valid_like(scores), torch.tensor([7, 9, 7, 9, 7]), eps=0.5)
    assert adv.tolist() == pytest.approx([-1 / 1.5, -2 / (8**0.5 + 0.5), 0, 2 / (8**0.5 + 0.5), 1 / 1.5])
    assert weight.tolist() == [1, 1, 1, 1, 1]
    assert adv.dtype == weight.dtype == torch.float32


def test_grpo_statistics_are_of_the_valid_scores_alone() -> None:
    """1, 3 valid beside NaN, infinity and 1e30 invalid: mean 2, std sqrt 2."""
    scores = _t(1, NAN, 3, math.inf, 1e30)
    valid = torch.tensor([True, False, True, False, False])
    adv, weight = grpo(scores, valid, torch.zeros(5, dtype=torch.int64), eps=0.0)
    assert adv.tolist() == pytest.approx([-HALF, 0, HALF, 0, 0])
    assert weight.tolist() == [1, 0, 1, 0, 0]


def test_population_std_on_request() -> None:
    """ddof = 0: the std of 1, 2, 3 is sqrt(2 / 3)."""
    scores = _t(1, 2, 3)
    adv, _ = grpo(scores, _valid_like(scores), torch.zeros(3, dtype=torch.int64), eps=0.0, ddof=0)
    assert adv.tolist() == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)])


def test_grpo_global_std_by_hand() -> None:
    """Flow-GRPO (arXiv 2505.05470), its option of one std: groups 0, 2 and 1, 5; over all, mean 2 and std
    sqrt((4 + 0 + 1 + 9) / 3); eps 0."""
    scores = _t(0, 2, 1, 5)
    adv, _ = grpo_global_std(scores, _valid_like(scores), torch.tensor([0, 0, 1, 1]), eps=0.0)
    std = math.sqrt(14 / 3)
    assert adv.tolist() == pytest.approx([-1 / std, 1 / std, -2 / std, 2 / std])


def test_dr_grpo_by_hand() -> None:
    """Dr. GRPO (arXiv 2503.20783) 3.2: score - group mean, no std; 0, 1, 5 with the 5 invalid."""
    adv, weight = dr_grpo(_t(0, 1, 5), torch.tensor([True, True, False]), torch.zeros(3, dtype=torch.int64))
    assert adv.tolist() == [-0.5, 0.5, 0]
    assert weight.tolist() == [1, 1, 0]


def test_reinforce_pp_by_hand() -> None:
    """REINFORCE++ (arXiv 2501.03262): 0, 1, 2 valid over the batch: mean 1, std 1, groups ignored; eps .25."""
    scores, valid = _t(0, 1, NAN, 2), torch.tensor([True, True, False, True])
    adv, weight = reinforce_pp(scores, valid, torch.tensor([0, 1, 1, 2]), eps=0.25)
    assert adv.tolist() == pytest.approx([-0.8, 0, 0, 0.8])
    assert weight.tolist() == [1, 1, 0, 1]
    too_few, _ = reinforce_pp(scores, valid, torch.tensor([0, 1, 1, 2]), min_valid=4)
    assert too_few.tolist() == [0, 0, 0, 0]


def test_pair_weight() -> None:
    """PairUni: an aligned pair keeps its advantage, a retrieved one is scaled by sqrt(similarity)."""
    similarity = _t(1.0, 0.64, 0.0)
    assert pair_weight(similarity).tolist() == pytest.approx([1, 0.8, 0])
    assert pair_weight(similarity, "linear").tolist() == pytest.approx([1, 0.64, 0])
    assert pair_weight(similarity, "none").tolist() == [1, 1, 1]
    for wrong in (_t(1.2), _t(-0.1), _t(NAN)):
        with pytest.raises(ValueError, match="similarity must lie in"):
            pair_weight(wrong)
    with pytest.raises(ValueError, match="mode = 'cube'"):
        pair_weight(similarity, "cube")  # type: ignore[arg-type]


def _added(values: list[float]) -> float:
    """One after the other: `sum` keeps what is rounded off, from Python 3.12 on."""
    total = 0.0
    for value in values:
        total += value
    return total


@pytest.mark.parametrize("seed", range(4))
def test_groups_of_any_size_are_added_up_from_the_smallest_score(seed: int) -> None:
    """The mean is, bit for bit, what a loop over each group's rising scores gives in Python's float64."""
    draw = torch.Generator().manual_seed(seed)
    group = torch.randint(-4, 9, (61,), generator=draw)
    scores = torch.randn(61, generator=draw) * 10.0 ** torch.randint(-3, 4, (61,), generator=draw)
    valid = torch.rand(61, generator=draw) < 0.8
    relative = standardize(scores[:, None], valid[:, None], group, std_floor=torch.tensor([0.01]))
    for number in set(group.tolist()):
        rows = [row for row in range(61) if group[row] == number and valid[row]]
        values = [float(scores[row]) for row in rows]
        mean = _added(sorted(values)) / max(len(values), 1)
        square = _added(sorted((value - mean) * (value - mean) for value in values))
        std = max(math.sqrt(square / max(len(values) - 1, 1)), float(torch.tensor(0.01).double()))
        told = len(values) > 1
        assert relative.centred_BR[rows, 0].tolist() == [value - mean if told else 0.0 for value in values]
        z = [(value - mean) / (std + 1e-4) if told else 0.0 for value in values]
        assert relative.z_BR[rows, 0].tolist() == pytest.approx(z, rel=1e-15)  # a root's last bit is the machine's
    assert not relative.z_BR[~valid].any()


def test_every_sample_lies_in_one_group() -> None:
    group = torch.tensor([5, -1, 5, 2, 2, 7])
    blocks = [rows.tolist() for rows in alike(group)]
    assert blocks == [[[1], [5]], [[3, 4], [0, 2]]]
    assert alike(group[:0]) == []


# ---------------------------------------------------------------------------------------------------- GDPO


def test_gdpo_by_hand() -> None:
    """GDPO (arXiv 2601.05242): normalise per reward and group, weigh and sum, whiten over the batch; eps 0.

    A pair's unbiased std is |difference| / sqrt 2, so its z is -+ sqrt .5. With weights 1 and .5:
        group 0: r0 = 0, 1 -> -.7071, .7071; r1 = 1, 1 -> 0, 0;             a = -.7071,  .7071
        group 1: r0 = 0, 2 -> -.7071, .7071; r1 = 3, 1 -> .7071, -.7071;    a = -.35355, .35355
    mean 0, variance (.5 + .5 + .125 + .125) / 3 = .416667: divide by .645497.
    """
    scores = _t([0, 1], [1, 1], [0, 3], [2, 1])
    weights = _t([1, 0.5], [1, 0.5], [1, 0.5], [1, 0.5])
    adv, weight = gdpo(scores, _valid_like(scores), torch.tensor([0, 0, 1, 1]), weights, eps=0.0)
    assert adv.tolist() == pytest.approx([-1.0954451, 1.0954451, -0.5477226, 0.5477226], abs=1e-6)
    assert weight.tolist() == [1, 1, 1, 1]


def test_gdpo_default_eps_acts_in_both_normalisations() -> None:
    """One group 0, 1 and eps 1e-4: z = .5 / (.70710678 + 1e-4) = .70700680; std of +-z is z sqrt 2 = .99985859.

    adv = .70700680 / (.99985859 + 1e-4) = .70703609.
    """
    scores = _t([0], [1])
    adv, _ = gdpo(scores, _valid_like(scores), torch.tensor([0, 0]), torch.ones(2, 1))
    assert adv.tolist() == pytest.approx([-0.70703609, 0.70703609], abs=1e-7)


def test_gdpo_uses_each_rewards_own_valid_scores() -> None:
    """r0 = 1, 3, (missing); r1 = (missing), 0, 4; eps 0; weights 1, 1.

    z0 = -.7071, .7071, 0 and z1 = 0, -.7071, .7071: a = -.7071, 0, .7071, mean 0, variance .5, std .7071: -1, 0, 1.
    The fourth sample has nothing and neither counts in the whitening nor in the loss.
    """
    scores = _t([1, NAN], [3, 0], [NAN, 4], [NAN, NAN])
    valid = ~scores.isnan()
    adv, weight = gdpo(scores, valid, torch.zeros(4, dtype=torch.int64), torch.ones(4, 2), eps=0.0)
    assert adv.tolist() == pytest.approx([-1, 0, 1, 0])
    assert weight.tolist() == [1, 1, 1, 0]


def test_gdpo_tells_apart_what_a_sum_confuses() -> None:
    """The paper's point: (1, 0) against (0, 0) and (1, 1) against (0, 0) are alike to GRPO; GDPO gives the second twice."""
    scores = _t([1, 0], [0, 0], [1, 1], [0, 0])
    group, ones = torch.tensor([0, 0, 1, 1]), torch.ones(4, 2)
    summed, _ = ESTIMATORS["grpo"](scores, _valid_like(scores), group, ones, eps=0.0)
    decoupled, _ = gdpo(scores, _valid_like(scores), group, ones, eps=0.0)
    assert summed[0].item() == pytest.approx(summed[2].item())
    assert decoupled[2].item() == pytest.approx(2 * decoupled[0].item())


def test_gdpo_does_not_depend_on_the_units_of_a_reward() -> None:
    """With eps 0 a reward times 100 plus 5 is the same reward; summed GRPO follows the larger one."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(24, 2, generator=generator, dtype=torch.float64)
    group, ones, valid = torch.arange(24) // 6, torch.ones(24, 2), _valid_like(scores)
    plain, _ = gdpo(scores, valid, group, ones, eps=0.0)
    scaled, _ = gdpo(scores * torch.tensor([100.0, 1.0]) + 5, valid, group, ones, eps=0.0)
    torch.testing.assert_close(plain, scaled)


def test_weights_of_zero_and_below() -> None:
    """Weight 0 leaves a reward out, also of `weight_B`; a negative one turns it round."""
    scores = _t([0, 5], [1, 0])
    group, valid = torch.tensor([0, 0]), _valid_like(scores)
    first, weight = gdpo(scores, valid, group, _t([1, 0], [1, 0]))
    assert first[1] > 0 > first[0]
    assert weight.tolist() == [1, 1]
    turned, _ = gdpo(scores, valid, group, _t([-1, 0], [-1, 0]))
    assert turned.equal(-first)
    nothing, no_weight = gdpo(scores, valid, group, torch.zeros(2, 2))
    assert nothing.tolist() == no_weight.tolist() == [0, 0]
    only_worthless = torch.tensor([[False, True], [True, True]])
    _, partial = gdpo(scores, only_worthless, group, _t([1, 0], [1, 0]))
    assert partial.tolist() == [0, 1]


def test_min_valid() -> None:
    """Three valid scores of four: enough at 3, not at 4; then the advantage is 0, but the sample is not masked."""
    scores, valid = _t([0], [1], [2], [NAN]), torch.tensor([[True], [True], [True], [False]])
    arguments = (scores, valid, torch.zeros(4, dtype=torch.int64), torch.ones(4, 1))
    assert gdpo(*arguments, min_valid=3)[0].abs().max() > 0.9
    adv, weight = gdpo(*arguments, min_valid=4)
    assert adv.tolist() == [0, 0, 0, 0]
    assert weight.tolist() == [1, 1, 1, 0]


def test_std_floor_by_hand() -> None:
    """Scores .90, .91 have std .00707; a floor of .1 divides by .1 + eps: z = -+.005 / .1001; the other reward keeps 1."""
    scores = torch.tensor([[0.90, 0.0], [0.91, 2.0]], dtype=torch.float64)
    floor = torch.tensor([0.1, 0.1])
    relative = standardize(scores, _valid_like(scores), torch.tensor([0, 0]), std_floor=floor)
    assert relative.z_BR[:, 0].tolist() == pytest.approx([-0.005 / 0.1001, 0.005 / 0.1001])
    assert relative.z_BR[:, 1].tolist() == pytest.approx([-1 / (2**0.5 + 1e-4), 1 / (2**0.5 + 1e-4)])
    with_floor, _ = gdpo(scores, _valid_like(scores), torch.tensor([0, 0]), _t([1, -1], [1, -1]), std_floor_R=floor)
    assert with_floor[0] > 0 > with_floor[1]  # the second reward decides; without a floor they would cancel


# ------------------------------------------------------------------------------------- degenerate batches


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_group_is_exactly_zero(name: str, dtype: torch.dtype) -> None:
    """0.1 twelve times, whose mean in floating point need not be 0.1, alone in the batch."""
    scores = torch.full((12, 2), 0.1, dtype=dtype)
    adv, weight = ESTIMATORS[name](
        scores, _valid_like(scores), torch.zeros(12, dtype=torch.int64), torch.ones(12, 2), eps=1e-12
    )
    assert adv.tolist() == [0] * 12
    assert weight.tolist() == [1] * 12


@pytest.mark.parametrize("name", ["gdpo", "grpo", "grpo_global_std", "dr_grpo"])
def test_a_constant_group_is_exactly_zero_beside_others(name: str) -> None:
    """Also when the batch is whitened with groups that do have a spread (7 prompts of 5 random scores)."""
    scores = torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    scores[:5] = 0.1
    adv, _ = ESTIMATORS[name](scores, _valid_like(scores), torch.arange(40) // 5, torch.ones(40, 2))
    assert adv[:5].tolist() == [0] * 5
    assert (adv[5:] != 0).all()


@pytest.mark.parametrize("name", ["gdpo", "grpo"])
def test_float_noise_is_no_signal(name: str) -> None:
    """Scores that differ in the last bit of a float32 are alike, however small eps is."""
    score = torch.tensor(0.7)
    scores = torch.stack([score, torch.nextafter(score, torch.tensor(1.0)), score])[:, None]
    adv, _ = ESTIMATORS[name](
        scores, _valid_like(scores), torch.zeros(3, dtype=torch.int64), torch.ones(3, 1), eps=1e-12
    )
    assert adv.tolist() == [0, 0, 0]


def test_the_numbers_in_the_docstrings_are_right() -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_batches_without_a_comparison(name: str) -> None:
    """All invalid, an empty rank, and (but for the estimator without groups) groups of one: zeros, never NaN."""
    nothing = torch.full((4, 2), NAN)
    adv, weight = ESTIMATORS[name](nothing, torch.zeros(4, 2, dtype=torch.bool), torch.arange(4) // 2, torch.ones(4, 2))
    assert adv.tolist() == weight.tolist() == [0] * 4
    empty = torch.zeros(0, 2)
    adv, weight = ESTIMATORS[name](empty, _valid_like(empty), torch.zeros(0, dtype=torch.int64), empty)
    assert adv.shape == weight.shape == (0,)
    if name != "reinforce_pp":
        scores = _t([1, 2], [3, 4], [5, 6])
        adv, weight = ESTIMATORS[name](scores, _valid_like(scores), torch.arange(3), torch.ones(3, 2))
        assert adv.tolist() == [0] * 3
        assert weight.tolist() == [1] * 3


@st.composite
def _batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores with ties and outliers, masks, groups of uneven size, weights of every sign."""
    size, rewards = draw(st.integers(1, 24)), draw(st.integers(1, 3))
    score = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.floats(-1e3, 1e3, width=32))

    def matrix(cell: st.SearchStrategy[object]) -> list[list[object]]:
        return [[draw(cell) for _ in range(rewards)] for _ in range(size)]

    return (
        torch.tensor(matrix(score), dtype=torch.float32),
        torch.tensor(matrix(st.booleans()), dtype=torch.bool),
        torch.tensor([draw(st.integers(0, 4)) for _ in range(size)]),
        torch.tensor(matrix(st.sampled_from([-1.0, 0.0, 0.3, 1.0, 2.0]))),
    )


@settings(max_examples=80, deadline=None)
@given(batch=_batches(), name=st.sampled_from(sorted(ESTIMATORS)), seed=st.integers(0, 100))
def test_permuting_samples_permutes_advantages_bit_for_bit(
    batch: tuple[Tensor, Tensor, Tensor, Tensor], name: str, seed: int
) -> None:
    """Group identity is `group_B`, never position; and sums do not show the order."""
    order = torch.randperm(len(batch[0]), generator=torch.Generator().manual_seed(seed))
    adv, weight = ESTIMATORS[name](*batch)
    permuted_adv, permuted_weight = ESTIMATORS[name](*(tensor[order] for tensor in batch))
    assert permuted_adv.equal(adv[order])
    assert permuted_weight.equal(weight[order])
    assert adv.isfinite().all()


def test_sums_do_not_show_the_order_even_in_float64() -> None:
    """One shuffle of 300 numbers changes the last bits of a plain sum; it must not change these statistics."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(300, 2, generator=generator, dtype=torch.float64)
    valid, group = torch.rand(300, 2, generator=generator) > 0.2, torch.arange(300) % 3
    for _ in range(5):
        order = torch.randperm(300, generator=generator)
        plain = standardize(scores, valid, group)
        shuffled = standardize(scores[order], valid[order], group[order])
        assert shuffled.z_BR.equal(plain.z_BR[order])
        for before, after in zip(
            moments(scores[:, 0], valid[:, 0], None, 1),
            moments(scores[order, 0], valid[order, 0], None, 1),
            strict=True,
        ):
            assert before.equal(after)


@settings(max_examples=60, deadline=None)
@given(batch=_batches(), name=st.sampled_from(sorted(ESTIMATORS)))
def test_what_is_invalid_never_leaks(batch: tuple[Tensor, Tensor, Tensor, Tensor], name: str) -> None:
    """Whatever stands in an invalid place, the result is the same bits, and a sample without weight has no advantage."""
    scores, valid, group, weights = batch
    adv, weight = ESTIMATORS[name](scores, valid, group, weights)
    for garbage in (NAN, math.inf, 1e30):
        dirty = torch.where(valid, scores, garbage)
        again_adv, again_weight = ESTIMATORS[name](dirty, valid, group, weights)
        assert again_adv.equal(adv)
        assert again_weight.equal(weight)
    assert (adv[weight == 0] == 0).all()
    assert (weight[~(valid & (weights != 0)).any(1)] == 0).all()


@settings(max_examples=40, deadline=None)
@given(batch=_batches())
def test_gdpo_agrees_with_a_plain_loop(batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """The definition spelled out with Python floats and `statistics`, sample by sample."""
    from statistics import fmean, stdev

    scores, valid, group, weights = (tensor.tolist() for tensor in batch)
    size, rewards = len(scores), len(scores[0])
    mixed = [0.0] * size
    for r in range(rewards):
        for b in range(size):
            peers = [scores[j][r] for j in range(size) if group[j] == group[b] and valid[j][r]]
            if valid[b][r] and len(peers) >= 2 and max(peers) - min(peers) > 1e-6 * max(map(abs, peers)):
                mixed[b] += weights[b][r] * (scores[b][r] - fmean(peers)) / (stdev(peers) + 1e-4)
    counted = [b for b in range(size) if any(valid[b][r] and weights[b][r] for r in range(rewards))]
    expected = [0.0] * size
    if len(counted) >= 2:
        mean, std = fmean(mixed[b] for b in counted), stdev(mixed[b] for b in counted)
        for b in counted:
            expected[b] = (mixed[b] - mean) / (std + 1e-4)
    adv, weight = gdpo(*batch)
    assert adv.tolist() == pytest.approx(expected, abs=2e-6)
    assert [b for b in range(size) if weight[b]] == counted


# ------------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("bounds", [(0, 12, 24), (0, 18, 24), (0, 24, 24), (0, 6, 12, 24)])
def test_ranks_together_are_one_rank(name: str, bounds: tuple[int, ...]) -> None:
    """Whole groups dealt to ranks, evenly, unevenly, or none to one of them: the advantages of a single rank."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(24, 2, generator=generator)
    valid = torch.rand(24, 2, generator=generator) > 0.2
    batch = (scores, valid, torch.arange(24) // 6, torch.ones(24, 2))
    whole_adv, whole_weight = ESTIMATORS[name](*batch)

    def work(rank: int, reduce: Reduce) -> object:
        rows = slice(bounds[rank], bounds[rank + 1])
        return ESTIMATORS[name](*(tensor[rows] for tensor in batch), reduce=reduce)

    results = on_ranks(len(bounds) - 1, work)
    torch.testing.assert_close(torch.cat([adv for adv, _ in results]), whole_adv, atol=1e-7, rtol=1e-6)
    assert torch.cat([weight for _, weight in results]).equal(whole_weight)


def test_whitening_uses_every_ranks_samples() -> None:
    """Rank 0 has z = -+.7071, rank 1 weighs the same by 3: alone each would be whitened to 1, together they keep 1 : 3."""
    scores, group = _t([0], [1]), torch.tensor([0, 0])

    def work(rank: int, reduce: Reduce) -> object:
        weights = torch.full((2, 1), 3.0 if rank else 1.0)
        return gdpo(scores, _valid_like(scores), group + rank, weights, eps=0.0, reduce=reduce)[0]

    first, second = on_ranks(2, work)
    assert second[1].item() == pytest.approx(3 * first[1].item())


# ---------------------------------------------------------------------------- adding up for single scores


def test_add_up_masks_what_cannot_be_compared() -> None:
    """Weights 1, 2. A sample that lacks what its group has is masked; what the whole group lacks is left out of it.

    group 0: (1, 2) -> 5; (3, missing) -> masked.   group 1: r1 missing throughout: (1) -> 1, (4) -> 4.
    Across groups only the first is complete.
    """
    scores, weights = _t([1, 2], [3, NAN], [1, NAN], [4, NAN]), _t([1, 2], [1, 2], [1, 2], [1, 2])
    group = torch.tensor([0, 0, 1, 1])
    total = add_up(scores, ~scores.isnan(), group, weights)
    assert total.valid_B.tolist() == [True, False, True, True]
    assert total.score_B[total.valid_B].tolist() == [5, 1, 4]
    assert add_up(scores, ~scores.isnan(), group, weights, across_groups=True).valid_B.tolist() == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("name", "weight"), [("grpo", [1, 1]), ("dr_grpo", [1, 1]), ("grpo_global_std", [0, 0]), ("reinforce_pp", [0, 0])]
)
def test_a_group_without_a_reward_trains_only_where_groups_are_judged_alone(name: str, weight: list[int]) -> None:
    """Group 1 lacks r1: its sums compare with each other, but not with the batch that global statistics are made of."""
    scores = _t([1, 2], [3, 4], [1, NAN], [4, NAN])
    _, weight_B = ESTIMATORS[name](scores, ~scores.isnan(), torch.tensor([0, 0, 1, 1]), torch.ones(4, 2))
    assert weight_B.tolist() == [1, 1, *weight]


def test_estimators_of_one_score_on_the_sum() -> None:
    """(0, 1), (1, 3) with weights 1, 2: sums 2 and 7. GRPO -+.7071 (eps 0), Dr. GRPO -+2.5."""
    scores, weights = _t([0, 1], [1, 3]), _t([1, 2], [1, 2])
    arguments = (scores, _valid_like(scores), torch.tensor([0, 0]), weights)
    assert ESTIMATORS["grpo"](*arguments, eps=0.0)[0].tolist() == pytest.approx([-HALF, HALF])
    assert ESTIMATORS["grpo_global_std"](*arguments, eps=0.0)[0].tolist() == pytest.approx([-HALF, HALF])
    assert ESTIMATORS["reinforce_pp"](*arguments, eps=0.0)[0].tolist() == pytest.approx([-HALF, HALF])
    assert ESTIMATORS["dr_grpo"](*arguments)[0].tolist() == [-2.5, 2.5]


@pytest.mark.parametrize("name", ["grpo", "grpo_global_std", "reinforce_pp"])
def test_std_floor_of_a_sum(name: str) -> None:
    """Floors 3 and 2 with weights 1 and 2 add up like independent errors: sqrt(9 + 16) = 5; sums 2 and 7: -+2.5 / 5."""
    scores, weights = _t([0, 1], [1, 3]), _t([1, 2], [1, 2])
    adv, _ = ESTIMATORS[name](
        scores, _valid_like(scores), torch.tensor([0, 0]), weights, eps=0.0, std_floor_R=torch.tensor([3.0, 2.0])
    )
    assert adv.tolist() == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize("name", ["gdpo", "grpo", "grpo_global_std", "dr_grpo"])
def test_flat_groups_may_be_left_out(name: str) -> None:
    """Group 4 is flat, group 7 too but for what failed; 2 tells its samples apart, and keeps the one in the middle."""
    scores = _t([0.0], [1.0], [0.5], [0.3], [0.3], [0.3], [0.8], [0.8], [NAN])
    valid, group = ~scores.isnan(), torch.tensor([2, 2, 2, 4, 4, 4, 7, 7, 7])
    adv, weight = ESTIMATORS[name](scores, valid, group, torch.ones(9, 1))
    assert weight.tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 0]
    assert without_flat_groups(adv, weight, group).tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_a_floor_that_cannot_act_is_refused() -> None:
    scores = _t([0, 1], [1, 3])
    with pytest.raises(ValueError, match="dr_grpo divides by no std"):
        ESTIMATORS["dr_grpo"](
            scores, _valid_like(scores), torch.tensor([0, 0]), torch.ones(2, 2), std_floor_R=torch.ones(2)
        )


@pytest.mark.parametrize("name", ESTIMATORS)
def test_wrong_input_is_named(name: str) -> None:
    scores, group, ones = _t([0, 1], [1, 3]), torch.tensor([0, 0]), torch.ones(2, 2)
    estimate = ESTIMATORS[name]
    with pytest.raises(ValueError, match="marked valid is not finite"):
        estimate(_t([0, NAN], [1, 3]), _valid_like(scores), group, ones)
    with pytest.raises(ValueError, match="a reward weight is not finite"):
        estimate(scores, _valid_like(scores), group, ones * NAN)
    with pytest.raises(ValueError, match=r"scores \(2, 2\), valid \(2, 1\)"):
        estimate(scores, _valid_like(scores)[:, :1], group, ones)
    with pytest.raises(ValueError, match=r"group \(3,\)"):
        estimate(scores, _valid_like(scores), torch.zeros(3), ones)
    with pytest.raises(ValueError, match=r"weights have shape \(1, 2\)"):
        estimate(scores, _valid_like(scores), group, ones[:1])
