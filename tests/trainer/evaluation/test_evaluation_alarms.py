"""The alarms' rules by themselves; a real hacked run is in test_evaluation_hacking.py."""

from __future__ import annotations

import random

import pytest

from trainer.config import AlarmsConfig, RewardsConfig
from trainer.evaluation.alarms import Alarm, find_alarms
from trainer.evaluation.outcomes import Outcome, score_metrics


def outcomes(seed: int, name: str = "", *, scores: dict[str, float], **statistics: float) -> list[Outcome]:
    """Thirty pictures around those means, with a spread of 0.02."""
    rng = random.Random(seed)
    return [
        Outcome(
            name,
            index,
            0,
            f"p{index}",
            {reward: mean + rng.gauss(0, 0.02) for reward, mean in scores.items()},
            statistics={key: mean + rng.gauss(0, 0.02) for key, mean in statistics.items()},
        )
        for index in range(30)
    ]


def alarms(start: list[Outcome], now: list[Outcome], **config: object) -> list[Alarm]:
    row = score_metrics(now, start)
    return find_alarms(row, start, now, {"trained"}, AlarmsConfig.model_validate(config), RewardsConfig())


def test_a_held_out_reward_that_falls_while_a_trained_one_rises_raises_an_alarm_with_both_numbers() -> None:
    start = outcomes(0, scores={"trained": 0.2, "other": 0.8})
    now = outcomes(1, scores={"trained": 0.7, "other": 0.5})
    [alarm] = alarms(start, now)
    assert alarm.name == "heldout/other"
    assert "fell by 0.3" in alarm.text and "trained rose by 0.5" in alarm.text
    assert alarms(start, now, heldout_z=None) == []


@pytest.mark.parametrize(
    ("trained", "other"),
    [(0.7, 0.8), (0.7, 0.9), (0.2, 0.5), (0.1, 0.5)],
    ids=["nothing falls", "both rise", "nothing rises", "all falls"],
)
def test_no_alarm_where_there_is_no_such_pair(trained: float, other: float) -> None:
    start = outcomes(0, scores={"trained": 0.2, "other": 0.8})
    now = outcomes(0, scores={"trained": trained, "other": other})
    assert alarms(start, now) == []


def test_a_fall_that_is_sure_but_small_is_no_alarm() -> None:
    """Every picture loses 0.004, a fifth of the spread: the paired interval is far from 0."""
    start = outcomes(0, scores={"trained": 0.2, "other": 0.8})
    now = [
        Outcome("", o.index, 0, o.prompt_id, {"trained": 0.7, "other": (o.scores["other"] or 0) - 0.004}) for o in start
    ]
    assert score_metrics(now, start)["eval/other/gain_high"] < 0
    assert alarms(start, now) == []
    assert [a.name for a in alarms(start, now, heldout_z=0.1)] == ["heldout/other"]


def test_a_fall_within_its_interval_is_no_alarm() -> None:
    """The same prompts with noise of 0.3: -0.02 is nothing."""
    rng = random.Random(0)
    start = outcomes(0, scores={"trained": 0.2, "other": 0.8})
    now = [
        Outcome(
            "", o.index, 0, o.prompt_id, {"trained": 0.7, "other": (o.scores["other"] or 0) + rng.gauss(-0.02, 0.3)}
        )
        for o in start
    ]
    assert alarms(start, now) == []


def test_drift_is_measured_in_the_spread_at_the_start() -> None:
    """A spread of 0.02 over pictures: 0.1 is five of them, 0.05 two and a half."""
    start = outcomes(0, scores={}, saturation=0.5, edge_density=0.2)
    [alarm] = alarms(start, outcomes(1, scores={}, saturation=0.62, edge_density=0.23))
    assert alarm.name == "drift/saturation" and "from 0.501 to 0.624" in alarm.text and "limit 4" in alarm.text
    assert alarms(start, outcomes(1, scores={}, saturation=0.62), saturation_z=None) == []
    assert [a.name for a in alarms(start, outcomes(1, scores={}, edge_density=0.05))] == ["drift/edge_density"]


def test_only_a_fall_of_diversity_is_an_alarm() -> None:
    start = outcomes(0, "bench", scores={}, diversity=0.3)
    assert [a.name for a in alarms(start, outcomes(1, "bench", scores={}, diversity=0.1))] == ["drift/bench/diversity"]
    assert alarms(start, outcomes(1, "bench", scores={}, diversity=0.6)) == []
    assert alarms(start, outcomes(1, "another", scores={}, diversity=0.0)) == [], "sets are compared with themselves"


@pytest.mark.parametrize(
    ("statistic", "start", "spread", "now", "raised"),
    [
        ("saturation", 0.47, 0.21, 0.05, True),  # grey: 2 of the spread, and 4 would be below 0
        ("saturation", 0.47, 0.21, 0.30, False),
        ("saturation", 0.47, 0.21, 0.95, True),  # 91 % of the way to 1
        ("saturation", 0.47, 0.21, 0.75, False),  # 53 %
        ("edge_density", 0.057, 0.044, 0.01, True),  # blurred
        ("edge_density", 0.057, 0.044, 0.12, False),
        ("edge_density", 0.0025, 0.0009, 0.0, False),  # there were hardly any
        ("diversity", 0.30, 0.12, 0.05, True),
        ("diversity", 0.30, 0.12, 0.95, False),
    ],
)
def test_photographs_drift_to_an_end_within_their_large_spread(
    statistic: str, start: float, spread: float, now: float, raised: bool
) -> None:
    def pictures(mean: float) -> list[Outcome]:
        values = [mean - spread, mean, mean + spread]  # of standard deviation `spread`
        return [Outcome("", i, 0, f"p{i}", {}, statistics={statistic: value}) for i, value in enumerate(values)]

    found = alarms(pictures(start), pictures(now))
    assert [alarm.name for alarm in found] == ([f"drift/{statistic}"] if raised else [])
    assert all("% of the way to" in alarm.text and "(limit 75 %)" in alarm.text for alarm in found)


def test_pictures_that_were_all_alike_at_the_start_cannot_tell() -> None:
    alike = [Outcome("", i, 0, f"p{i}", {}, statistics={"saturation": 0.5}) for i in range(5)]
    assert alarms(alike, outcomes(0, scores={}, saturation=0.9)) == []
