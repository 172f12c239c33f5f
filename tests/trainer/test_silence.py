"""What has nothing to teach any more is said: a reward that turned constant, a gradient that is 0."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.records.silence import SilenceWatch


def row(step: int, *, flat: float = 0.0, std: float = 0.1, mean: float = 0.5, grad: float = 1.0) -> dict[str, Any]:
    return {
        "step": step,
        "reward/r/mean": mean,
        "reward/r/std": std,
        "adv/r/zero_group_share": flat,
        "grad_norm": grad,
    }


def said(rows: list[dict[str, Any]], after: int = 3) -> dict[int, list[str]]:
    watch = SilenceWatch(after)
    return {each["step"]: sentences for each in rows if (sentences := watch.add(each))}


def test_a_reward_that_turns_constant_is_said_after_so_many_steps_and_when_it_has_lasted_twice_as_long() -> None:
    told = said([row(1), *(row(step, flat=1.0, std=0.0, mean=0.25) for step in range(2, 9))])
    assert list(told) == [4, 7]
    assert told[4] == [
        "every score of the reward r was 0.25 in the 3 steps from 2 to 4: it is saturated, or its service gives everything "
        "the same score, and it teaches nothing"
    ]
    assert "in the 6 steps from 2 to 7" in told[7][0]


def test_a_constant_of_each_group_is_as_silent() -> None:
    """It differs between prompts, or from step to step, and tells no two samples of a group apart."""
    between_groups = said([row(step, flat=1.0, std=0.2) for step in (1, 2, 3)])
    from_step_to_step = said([row(step, flat=1.0, std=0.0, mean=step / 10) for step in (1, 2, 3)])
    for told in (between_groups, from_step_to_step):
        assert told == {
            3: ["the reward r told no two samples of a group apart in the 3 steps from 1 to 3: it teaches nothing"]
        }


def test_a_gradient_of_0() -> None:
    told = said([row(1), *(row(step, grad=0.0) for step in (2, 3, 4, 5))])
    assert list(told) == [4] and told[4][0].startswith(
        "the gradient was 0 in the 3 steps from 2 to 4: nothing is learned"
    )


@pytest.mark.parametrize("middle", [row(2), row(2, flat=0.9, std=0.01)])
def test_what_speaks_between_starts_the_count_anew(middle: dict[str, Any]) -> None:
    assert said([row(1, flat=1.0), middle, row(3, flat=1.0), row(4, flat=1.0)]) == {}


def test_a_step_that_did_not_ask_for_the_reward_says_nothing_about_it() -> None:
    told = said([row(1, flat=1.0), {"step": 2, "grad_norm": 1.0}, row(3, flat=1.0), row(4, flat=1.0)], after=3)
    assert list(told) == [3]


def test_an_evaluation_that_turns_constant_is_said_once() -> None:
    def evaluated(step: int, low: float, high: float) -> dict[str, Any]:
        return {"step": step, "eval/r": 1.0, "eval/r/low": low, "eval/r/high": high}

    told = said([evaluated(0, 0.2, 0.8), evaluated(5, 1.0, 1.0), evaluated(10, 1.0, 1.0), evaluated(15, 0.9, 1.0)])
    assert list(told) == [5]
    assert "in the evaluation after step 5 every held-out prompt scores 1 by r" in told[5][0]
    assert said([evaluated(0, 0.0, 0.0)]) == {}, "a base that scores 0 everywhere has not turned constant"


def test_those_that_ended_are_remembered_for_the_report() -> None:
    watch = SilenceWatch(2)
    for each in [row(1, flat=1.0), row(2, flat=1.0), row(3, flat=1.0), row(4), row(5, grad=0.0), row(6, grad=0.0)]:
        watch.add(each)
    assert [(s.subject, s.first, s.last) for s in watch.found] == [("r", 1, 3), ("gradient", 5, 6)]


def texts(step: int, entropy: float = 1.0, cut: float = 0.0) -> dict[str, Any]:
    return {"step": step, "text/entropy": entropy, "text/truncated_share": cut}


def test_answers_that_are_all_alike_are_said_by_the_entropy_of_the_first_steps() -> None:
    """0.9, 1.0 and 1.1 at first: below 0.1 it has collapsed, at 0.11 not yet."""
    first = [texts(step, entropy) for step, entropy in enumerate((0.9, 1.0, 1.1), 1)]
    told = said([*first, texts(4, 0.11), *(texts(step, 0.09) for step in (5, 6, 7))])
    assert list(told) == [7] and told[7][0].startswith(
        "the entropy of the answers was below a tenth of the first steps' 1 in the 3 steps from 5 to 7"
    )
    assert said([*first, *(texts(step, 0.11) for step in range(4, 20))]) == {}


def test_answers_that_are_mostly_cut_off_are_said() -> None:
    told = said([texts(step, cut=0.6) for step in (1, 2, 3)])
    assert list(told) == [3] and "more than half of the answers were cut off in the 3 steps from 1 to 3" in told[3][0]
    assert told[3][0].endswith("Raise sampling.max_new_tokens, or reward shorter answers")
    assert said([texts(step, cut=0.5) for step in range(1, 9)]) == {}


def test_what_is_cut_off_is_named_with_the_field_of_its_task() -> None:
    """Of a policy with tasks, answers and the plans before images have lengths of their own."""
    tasks = {"understand/adv/mean": 0.0, "generate/adv/mean": 0.0}
    told = said([{**texts(step, cut=0.6), **tasks, "plan/truncated_share": 0.7} for step in (1, 2, 3)])
    answers, plans = told[3]
    assert answers.startswith("more than half of the answers were cut off in the 3 steps from 1 to 3")
    assert answers.endswith("Raise sampling.tasks.understand.max_new_tokens, or reward shorter answers")
    assert plans.startswith("more than half of the plans were cut off in the 3 steps from 1 to 3")
    assert plans.endswith("Raise sampling.tasks.generate.think.max_new_tokens, or reward shorter plans")


def test_a_reward_of_a_task_is_named_with_it() -> None:
    flat = {"understand/adv/r/zero_group_share": 1.0, "generate/adv/r/zero_group_share": 0.0, "reward/r/std": 0.1}
    told = said([{"step": step, "grad_norm": 1.0, **flat} for step in (1, 2, 3)])
    assert told[3][0].startswith("the reward r of understand told no two samples of a group apart")
    assert len(told[3]) == 1


def test_images_that_are_all_alike_are_said() -> None:
    rows = [{"step": step, "image/entropy": 2.0 if step < 4 else 0.1, "text/entropy": 1.0} for step in range(1, 7)]
    told = said(rows)
    assert list(told) == [6]
    assert told[6][0].startswith(
        "the entropy of the images was below a tenth of the first steps' 2 in the 3 steps from 4 to 6"
    )
    assert "nearly the same image every time" in told[6][0]
