"""Held-out sets of a policy with tasks: which task each is of, how it is drawn, what it is scored by, and the alarm when one half
pays for the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.task_configs import UNDERSTAND, held_out, task_config, task_tree
from tests.support.two_tasks import write_pairs
from trainer.config import AlarmsConfig, Config, RewardsConfig
from trainer.evaluation.alarms import Alarm, find_alarms
from trainer.evaluation.outcomes import Outcome, score_metrics
from trainer.evaluation.rounds import shown_sets
from trainer.evaluation.sets import EvaluationSet, load_sets
from trainer.types import Prompt

TASKS = {"answers": "understand", "images": "generate"}


def test_a_set_is_drawn_as_its_task_is_trained_and_scored_by_its_rewards(tmp_path: Path) -> None:
    path = str(write_pairs(tmp_path, "heldout", range(4)))
    sets = [held_out("answers", "understand", path=path), held_out("images", "generate", path=path)]
    answers, images = load_sets(task_config(evaluation={"sets": sets}), [])
    assert (answers.task, answers.temperature, answers.rewards) == ("understand", 0.7, ("letter",))
    assert (images.task, images.temperature, images.guidance_scale, images.rewards) == ("generate", 1.0, 3.0, ("hps",))
    assert [prompt.task for prompt in images.prompts] == ["generate"] * 4
    assert answers.prompts[0].source_images and not images.prompts[0].source_images
    assert shown_sets([answers, images], 24) == {"answers": 24, "images": 24}


def test_every_kind_of_set_is_shown_and_controls_are_not() -> None:
    """`num_pictures` of a task are shared by the first set of each kind: words alone, images beside them, a thought first."""
    words, picture = (Prompt("p", "draw"),), (Prompt("e", "make", source_images=("a.png",)),)
    sets = [
        EvaluationSet("drawn", words, 1, 1, 1.0, ()),
        EvaluationSet("more", words, 1, 1, 1.0, ()),
        EvaluationSet("edited", picture, 1, 1, 1.0, ()),
        EvaluationSet("control", words, 1, 1, 1.0, (), think=4, alarms=False),
        EvaluationSet("riddles", words, 1, 1, 1.0, (), think=4),
    ]
    assert shown_sets(sets, 24) == {"drawn": 8, "edited": 8, "riddles": 8}
    assert shown_sets(sets, 5) == {"drawn": 2, "edited": 2, "riddles": 1}
    assert shown_sets(sets[3:4], 4) == {"control": 4}


def test_a_task_that_is_not_trained_is_drawn_as_its_section_would_have_it(tmp_path: Path) -> None:
    path = str(write_pairs(tmp_path, "heldout", range(2)))
    sets = [held_out("images", "generate", "hps", path=path)]
    (images,) = load_sets(task_config({"understand": UNDERSTAND}, evaluation={"sets": sets}), [])
    assert (images.guidance_scale, images.temperature, images.rewards) == (5.0, 1.0, ("hps",))


@pytest.mark.parametrize(
    ("evaluation", "tasks", "told"),
    [
        ({"sets": [held_out("a", None)]}, None, r"evaluation\.sets\.0 names no task"),
        ({"path": "x.jsonl"}, None, "evaluation.path = x.jsonl is a set of one task"),
        (
            {"sets": [held_out("i", "generate")]},
            {"understand": UNDERSTAND},
            r"which is not trained.*name it in evaluation\.sets\.0\.rewards",
        ),
        (
            {"sets": [held_out("a", "understand"), held_out("i", "generate")], "final_rewards": ["other"]},
            None,
            r"evaluation\.final_rewards is asked for of every set.*generate and understand",
        ),
    ],
    ids=["no task", "plain set", "no rewards", "rewards of all"],
)
def test_what_says_not_which_half_is_meant_is_refused(
    evaluation: dict[str, object], tasks: dict[str, object] | None, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        task_config(tasks, evaluation=evaluation)


def test_a_task_is_refused_where_there_are_none() -> None:
    tree = task_tree()
    tree |= {"policy": {"type": "tiny"}, "sampling": {}, "objective": {"type": "flow_grpo"}}
    tree["data"] = {"train": [{"path": "x.jsonl", "rewards": {"hps": 1.0}}]}
    tree["evaluation"] = {"sets": [{"name": "i", "path": "y.jsonl", "task": "generate"}]}
    with pytest.raises(ValueError, match=r"evaluation\.sets\.0\.task = generate is read for a policy with tasks"):
        Config.model_validate(tree)


def outcomes(set_name: str, reward: str, scores: list[float]) -> list[Outcome]:
    return [Outcome(set_name, n, 0, f"{set_name}{n}", {reward: score}) for n, score in enumerate(scores)]


def alarms(answers: list[float], images: list[float], *, other_half: bool = True) -> list[Alarm]:
    """Ten prompts of each half, all at 0.5 in the beginning, with what they score now."""
    start = outcomes("answers", "letter", [0.5] * 10) + outcomes("images", "hps", [0.5] * 10)
    now = outcomes("answers", "letter", answers) + outcomes("images", "hps", images)
    config = AlarmsConfig.model_validate({"other_half": other_half})
    return find_alarms(score_metrics(now, start), start, now, {"letter", "hps"}, config, RewardsConfig(), TASKS)


FALLS, STAYS, RISES = [0.3, 0.4] * 5, [0.4, 0.6] * 5, [0.7, 0.8] * 5


def test_one_half_that_falls_while_the_other_rises_raises_an_alarm_with_both_numbers() -> None:
    """Answers lose 0.15 on average, images win 0.25. Both are trained on: it is no matter of held-out rewards."""
    [alarm] = alarms(FALLS, RISES)
    assert alarm.name == "other_half/answers/letter"
    assert "answers/letter (understand) fell by 0.15 since the start (95 % interval 0.12 to 0.18)" in alarm.text
    assert "while images/hps (generate) rose by 0.25" in alarm.text
    assert "sampling.tasks.understand.loss_weight" in alarm.text
    [alarm] = alarms(RISES, FALLS)
    assert alarm.name == "other_half/images/hps"
    assert alarms(FALLS, RISES, other_half=False) == []


@pytest.mark.parametrize(
    ("answers", "images"),
    [(FALLS, STAYS), (STAYS, RISES), (RISES, RISES), (FALLS, FALLS)],
    ids=["nothing surely rises", "nothing surely falls", "both rise", "both fall"],
)
def test_no_alarm_otherwise(answers: list[float], images: list[float]) -> None:
    assert alarms(answers, images) == []


def test_a_fall_within_the_same_half_is_none_of_the_other() -> None:
    start = outcomes("answers", "letter", [0.5] * 10) + outcomes("more", "letter", [0.5] * 10)
    now = outcomes("answers", "letter", FALLS) + outcomes("more", "letter", RISES)
    both = {"answers": "understand", "more": "understand"}
    row = score_metrics(now, start)
    assert find_alarms(row, start, now, {"letter"}, AlarmsConfig(), RewardsConfig(), both) == []
    assert find_alarms(row, start, now, {"letter"}, AlarmsConfig(), RewardsConfig(), {"answers": "", "more": ""}) == []


def test_a_half_that_rises_in_another_set_pays_for_nothing() -> None:
    """Sampled answers and images win, greedy answers lose: seen in the first steps of a real run."""
    sets = {**TASKS, "greedy": "understand"}
    start = [
        o
        for name, reward in (("answers", "letter"), ("greedy", "letter"), ("images", "hps"))
        for o in outcomes(name, reward, [0.5] * 10)
    ]
    for answers, names in ((RISES, []), (STAYS, ["other_half/greedy/letter"])):
        now = (
            outcomes("answers", "letter", answers)
            + outcomes("greedy", "letter", FALLS)
            + outcomes("images", "hps", RISES)
        )
        row = score_metrics(now, start)
        found = find_alarms(row, start, now, {"letter", "hps"}, AlarmsConfig(), RewardsConfig(), sets)
        assert [alarm.name for alarm in found] == names
