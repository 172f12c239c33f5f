"""The running spread that floors the std, and the sums behind the per-reward metrics."""

from __future__ import annotations

import json
import math

import pytest
import torch

from trainer.advantages import RunningSpread, gdpo, signal_sums, standardize

VALID = torch.ones(2, 1, dtype=torch.bool)


def test_running_spread_by_hand() -> None:
    """Std of 0, 1 is .70711 and sets it; of 0, 2 it is 1.41421: .9 * .70711 + .1 * 1.41421 = .77782."""
    spread = RunningSpread(1, decay=0.9)
    assert spread.floor(0.3, spread).tolist() == [0]
    spread = spread.after(torch.tensor([[0.0], [1.0]]), VALID)
    assert spread.floor(1.0, spread).tolist() == pytest.approx([0.7071068])
    spread = spread.after(torch.tensor([[0.0], [2.0]]), VALID)
    assert spread.floor(0.5, spread).tolist() == pytest.approx([0.3889087])


def test_a_steps_floor_is_of_the_steps_before() -> None:
    """Reward 0 has a spread of .70711, whatever this step says; the others had none and take this step's: 1 was not seen yet, and 2
    told nobody apart so far: .1 of .70711."""
    seen, now = torch.tensor([[0.0, math.nan, 1], [1.0, math.nan, 1]]), torch.tensor([[0.0, 0, 0], [2.0, 1, 1]])
    before = RunningSpread(3, decay=0.9).after(seen, ~seen.isnan())
    assert before.known().tolist() == [True, False, False]
    after = before.after(now, torch.ones(2, 3, dtype=torch.bool))
    assert before.floor(0.5, after).tolist() == pytest.approx([0.3535534, 0.3535534, 0.03535534])


def test_too_few_scores_leave_the_spread() -> None:
    """One valid score has no std; the NaN in the invalid place is not looked at."""
    spread = RunningSpread(1)
    lone = torch.tensor([[True], [False]])
    spread = spread.after(torch.tensor([[5.0], [math.nan]]), lone)
    assert spread.floor(1.0, spread).tolist() == [0]
    spread = spread.after(torch.tensor([[0.0], [1.0]]), VALID)
    spread = spread.after(torch.tensor([[5.0], [math.nan]]), lone)
    assert spread.floor(1.0, spread).tolist() == pytest.approx([0.7071068])


def test_spread_is_of_all_ranks() -> None:
    """Two ranks with the scores 0, 1 each, so a reduce that doubles: 0, 1, 0, 1 has the variance 4 * .25 / 3."""
    spread = RunningSpread(1)
    spread = spread.after(torch.tensor([[0.0], [1.0]]), VALID, reduce=lambda tensor: 2 * tensor)
    assert spread.floor(1.0, spread).tolist() == pytest.approx([math.sqrt(1 / 3)])


def test_spread_resumes_bit_for_bit() -> None:
    """Also through JSON, where a checkpoint may keep it as lists."""
    generator = torch.Generator().manual_seed(0)
    steps = [torch.rand(8, 2, generator=generator) for _ in range(6)]
    valid = torch.ones(8, 2, dtype=torch.bool)
    whole, first, second = RunningSpread(2), RunningSpread(2), RunningSpread(2)
    for scores in steps:
        whole = whole.after(scores, valid)
    for scores in steps[:3]:
        first = first.after(scores, valid)
    saved = json.loads(json.dumps({key: value.tolist() for key, value in first.state_dict().items()}))
    second.load_state_dict({key: torch.tensor(value, dtype=torch.float64) for key, value in saved.items()})
    for scores in steps[3:]:
        second = second.after(scores, valid)
    assert second.floor(0.3, second).equal(whole.floor(0.3, whole))
    assert second.state_dict()["seen_R"].equal(whole.state_dict()["seen_R"])


def test_saved_state_is_not_shared() -> None:
    spread = RunningSpread(1)
    state = spread.state_dict()
    spread = spread.after(torch.tensor([[0.0], [1.0]]), VALID)
    assert state["std_R"].tolist() == [0]
    other = RunningSpread(1)
    other.load_state_dict(state)
    other = other.after(torch.tensor([[0.0], [1.0]]), VALID)
    assert state["std_R"].tolist() == [0]
    assert state["seen_R"].tolist() == [False]


def test_spread_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="decay = 1"):
        RunningSpread(1, decay=1.0)
    with pytest.raises(ValueError, match="2 rewards, but the spread of 1 is kept"):
        RunningSpread(1).after(torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="saved spread is of 2 rewards, this run has 1"):
        RunningSpread(1).load_state_dict(RunningSpread(2).state_dict())
    with pytest.raises(ValueError, match="marked valid is not finite"):
        RunningSpread(1).after(torch.tensor([[0.0], [math.nan]]), VALID)


def test_floor_keeps_a_saturated_reward_quiet() -> None:
    """A reward that has come down to noise of .01 around .9 gets a fifteenth of its full weight by a floor of .3 of .5.

    Without it, normalisation makes that noise as loud as the reward that still tells samples apart.
    """
    spread = RunningSpread(2, decay=0.9)
    spread = spread.after(
        torch.tensor([[0.0, 0.0], [0.7071068, 0.7071068]]), torch.ones(2, 2, dtype=torch.bool)
    )  # std .5 each
    scores = torch.tensor([[0.905, 0.0], [0.895, 0.7071068]])
    valid, group = torch.ones(2, 2, dtype=torch.bool), torch.tensor([0, 0])
    loud = standardize(scores, valid, group).z_BR.abs()[0]
    quiet = standardize(scores, valid, group, std_floor=spread.floor(0.3, spread)).z_BR.abs()[0]
    assert loud[0].item() == pytest.approx(loud[1].item(), rel=0.02)
    assert quiet[0].item() == pytest.approx(0.005 / 0.1501, rel=1e-3)
    assert quiet[1].item() == pytest.approx(loud[1].item())
    adv, _ = gdpo(scores, valid, group, torch.ones(2, 2), std_floor_R=spread.floor(0.3, spread))
    assert adv[1] > 0.5 > -0.5 > adv[0]


def test_signal_sums_by_hand() -> None:
    """Reward 0: group 0 = 0, 1 (|z| = .7071 twice, eps 0), group 1 flat, group 2 has one valid score.

    Reward 1: flat, too few, flat.
    """
    scores = torch.tensor([[0.0, 3.0], [1.0, 3.0], [2.0, 1.0], [2.0, math.nan], [9.0, 4.0], [math.nan, 4.0]])
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    sums = signal_sums(standardize(scores, ~scores.isnan(), group, eps=0.0), group)
    assert sums.abs_z_R.tolist() == pytest.approx([2 * math.sqrt(0.5), 0])
    assert sums.samples_R.tolist() == [4, 4]
    assert sums.groups_R.tolist() == [2, 2]
    assert sums.flat_groups_R.tolist() == [1, 2]
