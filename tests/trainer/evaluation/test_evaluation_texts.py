"""Held-out texts: kept as files and read back, scored beside training, measured, and watched for form without content."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.bigram import Bigram
from trainer.config import AlarmsConfig, RewardsConfig
from trainer.evaluation.alarms import find_alarms
from trainer.evaluation.files import discard_samples, has_samples, read_samples, save_samples, step_dir
from trainer.evaluation.outcomes import Alarm, Outcome, score_metrics
from trainer.evaluation.results import Results
from trainer.evaluation.rounds import watched
from trainer.evaluation.sampling import Placed
from trainer.evaluation.scoring import Scorer
from trainer.evaluation.sets import EvaluationSet
from trainer.policies.base import SamplingPlan
from trainer.processes.distributed import World
from trainer.types import Prompt, Sample, Scores

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
PROMPTS = tuple(Prompt(f"p{i}", "x" * (i + 1)) for i in range(3))
REWARDS = RewardsConfig.model_validate(
    {
        "services": {"rules": {"urls": ["http://127.0.0.1:1"]}},
        "columns": {"accuracy": {"service": "rules"}, "format": {"service": "rules"}},
    }
)


def make_set(duplicates: int = 2, prompts: Sequence[Prompt] = PROMPTS) -> EvaluationSet:
    return EvaluationSet("texts", tuple(prompts), duplicates, 2, 1.0, rewards=("accuracy", "format"))


def placed(duplicates: int = 2) -> list[Placed]:
    """Answers of the bigram double to three prompts."""
    plan = SamplingPlan(num_inference_steps=4, micro_batch_size=100)
    (rollout,) = Bigram().sample(PROMPTS, duplicates, list(range(3 * duplicates)), plan)
    return [Placed(*divmod(n, duplicates), sample) for n, sample in enumerate(rollout.samples)]


class Batch:
    """Gives every answer an accuracy of 1 where it is short, and a form where it came to its end."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.samples = list(names), list[Sample]()

    def submit(self, samples: Sequence[Sample]) -> None:
        self.samples += samples

    def collect(self) -> Scores:
        values = [[float(len(s.tokens) < 3), float(s.finished)] for s in self.samples]
        valid = torch.ones(len(values), 2, dtype=torch.bool)
        ids = [sample.id for sample in self.samples]
        return Scores(self.names, ids, torch.tensor(values), valid, valid, valid.float())


class Client:
    def batch(self, columns: Sequence[str] | None = None, step: int = 0) -> Batch:
        return Batch(columns or ())


def score(samples: Sequence[Placed], kept: int = 0, duplicates: int = 2) -> Scorer:
    client: Any = Client()
    scorer = Scorer(client, make_set(duplicates), ["accuracy", "format"], step=0, limit=8, kept=kept, rewards=REWARDS)
    scorer.submit(samples)
    return scorer


def test_written_texts_are_read_back_with_all_that_a_reward_may_see(tmp_path: Path) -> None:
    drawn, chosen = placed(), make_set()
    assert not all(each.sample.finished for each in drawn) and any(each.sample.finished for each in drawn)
    save_samples(tmp_path, chosen, drawn)
    assert has_samples(tmp_path, [chosen])
    again = [each for batch in read_samples(tmp_path, chosen, ALONE, 4) for each in batch]
    assert [(p.index, p.duplicate, p.sample) for p in again] == [(p.index, p.duplicate, p.sample) for p in drawn]
    assert [o.as_dict() for o in score(again).collect()] == [o.as_dict() for o in score(drawn).collect()]


def test_a_sample_may_be_a_text_and_an_image(tmp_path: Path) -> None:
    both = Sample("p0#0", "p0", PROMPTS[0], images=(np.full((8, 8, 3), 7, np.uint8),), text="a drawing")
    save_samples(tmp_path, make_set(1, PROMPTS[:1]), [Placed(0, 0, both)])
    [[back]] = read_samples(tmp_path, make_set(1, PROMPTS[:1]), ALONE, 4)
    assert back.sample.text == "a drawing" and (back.sample.images[0] == both.images[0]).all()
    (tmp_path / "texts" / "0.0.png").unlink()
    with pytest.raises(OSError, match=r"0\.0\.png"):
        list(read_samples(tmp_path, make_set(1, PROMPTS[:1]), ALONE, 4))


@pytest.mark.parametrize(
    "damage", ["", "{", '{"text": "a"}', '{"text": "a", "tokens": ["b"], "finished": 1, "images": 0}']
)
def test_a_damaged_text_is_named(tmp_path: Path, damage: str) -> None:
    save_samples(tmp_path, make_set(), placed())
    (tmp_path / "texts" / "1.0.text.json").write_text(damage)
    with pytest.raises(OSError, match=r"1\.0\.text\.json is damaged"):
        list(read_samples(tmp_path, make_set(), ALONE, 4))


def test_texts_of_older_evaluations_go_and_tables_stay(tmp_path: Path) -> None:
    for step in (0, 2):
        save_samples(step_dir(tmp_path, step), make_set(), placed())
        (step_dir(tmp_path, step) / "texts" / "unigenbench.json").write_text("{}")
    discard_samples(tmp_path, keep=[2])
    assert [path.name for path in (step_dir(tmp_path, 0) / "texts").iterdir()] == ["unigenbench.json"]
    assert has_samples(step_dir(tmp_path, 2), [make_set()]) and not has_samples(step_dir(tmp_path, 0), [make_set()])


def test_length_ends_and_accuracy_given_format_are_counted() -> None:
    drawn = placed()
    outcomes = score(drawn).collect()
    row = Results.of(0, [make_set()], outcomes, ()).row
    lengths = [len(each.sample.tokens) for each in drawn]
    formed = [length for each, length in zip(drawn, lengths, strict=True) if each.sample.finished]
    assert row["stats/texts/length"] == sum(lengths) / 6
    assert row["stats/texts/truncated"] == 1 - len(formed) / 6
    assert row["stats/texts/accuracy_given_format"] == sum(n < 3 for n in formed) / len(formed)
    same = [len({each.sample.text for each in drawn if each.index == i}) / 2 for i in range(3)]
    assert row["stats/texts/distinct"] == sum(same) / 3
    assert not any("saturation" in key for key in row)


def test_what_is_shown_has_the_answer_and_the_images_of_its_prompt(tmp_path: Path) -> None:
    path = tmp_path / "card.png"
    Image.new("RGB", (600, 300), "red").save(path)
    prompt = Prompt("q", "what color ?", targets=("red",), source_images=(str(path), str(tmp_path / "gone.png")))
    sample = Sample("q#0", "q", prompt, text="<think> red </think>", tokens=(4, 5, 6), finished=False)
    scorer = score([Placed(0, 0, sample)], kept=1, duplicates=1)
    scorer.collect()
    [record] = scorer.shown
    assert (record["text"], record["length"], record["finished"]) == ("<think> red </think>", 3, False)
    assert record["targets"] == ["red"] and record["images"] == ()
    small, missing = record["sources"]
    assert small.shape == (128, 256, 3) and (small[0, 0] == (255, 0, 0)).all() and missing is None
    drawn = Sample("q#1", "q", prompt, images=(np.zeros((8, 8, 3), np.uint8),))
    scorer = score([Placed(0, 1, drawn)], kept=1, duplicates=1)
    scorer.collect()
    [record] = scorer.shown
    assert record["text"] is None and record["sources"][0].shape == (128, 256, 3), "of an edit, too"


def outcomes(seed: int, right: float, form: float, *, length: float = 10, truncated: float = 0.0) -> list[Outcome]:
    """200 answers, of which the share `form` has the form, and of those the share `right` is right; no others are."""
    rng = random.Random(seed)
    found = []
    for index in range(200):
        formed = rng.random() < form
        correct = float(formed and rng.random() < right)
        statistics = {"length": rng.gauss(length, 1), "truncated": float(rng.random() < truncated)}
        if formed:
            statistics["accuracy_given_format"] = correct
        scores = {"accuracy": correct, "format": float(formed)}
        found.append(Outcome("", index, 0, f"p{index}", scores, statistics=statistics))
    return found


def alarms(start: list[Outcome], now: list[Outcome], **config: object) -> list[Alarm]:
    limits = AlarmsConfig.model_validate(config)
    return find_alarms(score_metrics(now, start), start, now, {"accuracy", "format"}, limits, REWARDS)


def test_only_form_is_learned() -> None:
    """The form goes from half to all, and of the answers with the form no more are right: accuracy has doubled."""
    start, now = outcomes(0, 0.3, 0.5), outcomes(1, 0.3, 1.0)
    assert score_metrics(now, start)["eval/accuracy/gain_low"] > 0, (
        "by itself, accuracy looks as if something were learned"
    )
    [alarm] = alarms(start, now)
    assert alarm.name == "text/format_only" and "only the form" in alarm.text and "format rose by 0.5" in alarm.text
    assert alarms(start, now, format_only=None) == [] == alarms(start, now, format_only=0.7)


def test_a_control_raises_no_alarm() -> None:
    """Of blank images only the form can be learned: that is what such a set is there to show."""
    control = replace(make_set(), name="", alarms=False)
    both = outcomes(0, 0.3, 0.5), outcomes(1, 0.3, 1.0)
    assert alarms(*(watched([control], each) for each in both)) == []
    assert len(alarms(*(watched([replace(control, alarms=True)], each) for each in both))) == 1


@pytest.mark.parametrize(("right", "form"), [(0.6, 1.0), (0.3, 0.5), (0.2, 0.5)], ids=["both", "nothing", "worse"])
def test_no_alarm_where_the_answers_are_learned_too_or_the_form_is_not(right: float, form: float) -> None:
    assert alarms(outcomes(0, 0.3, 0.5), outcomes(1, right, form)) == []


def test_length_that_brings_nothing_is_running_away() -> None:
    start = outcomes(0, 0.3, 1.0)
    [alarm] = alarms(start, outcomes(1, 0.3, 1.0, length=35))
    assert (
        alarm.name == "text/length" and "from 10 to 35" in alarm.text and "accuracy has not surely risen" in alarm.text
    )
    assert alarms(start, outcomes(1, 0.8, 1.0, length=35)) == [], "a longer thought that helps"
    assert alarms(start, outcomes(1, 0.3, 1.0, length=25)) == []
    assert alarms(start, outcomes(1, 0.3, 1.0, length=35), length_factor=None) == []


def test_many_answers_that_are_cut_off_are_said() -> None:
    [alarm] = alarms(outcomes(0, 0.3, 1.0), outcomes(1, 0.3, 1.0, truncated=0.5))
    assert alarm.name == "text/truncated" and "0 % were at the start" in alarm.text
    assert "of the answers are cut off at sampling.max_new_tokens (limit 20 %" in alarm.text
    assert alarm.text.endswith("Raise it, or reward shorter ones.")
    assert alarms(outcomes(0, 0.3, 1.0), outcomes(1, 0.3, 1.0, truncated=0.1)) == []


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("understand", "of the answers are cut off at sampling.tasks.understand.max_new_tokens (limit 20 %"),
        ("generate", "of the plans are cut off at sampling.tasks.generate.think.max_new_tokens (limit 20 %"),
    ],
)
def test_texts_of_a_task_are_cut_off_at_its_own_field(task: str, told: str) -> None:
    start, now = outcomes(0, 0.3, 1.0), outcomes(1, 0.3, 1.0, truncated=0.5)
    [alarm] = find_alarms(
        score_metrics(now, start), start, now, {"accuracy", "format"}, AlarmsConfig(), REWARDS, {"": task}
    )
    assert told in alarm.text


def test_plans_that_grow_are_not_measured_by_an_accuracy_that_they_have_not() -> None:
    """The column of accuracy is of the other task's set."""
    start, now = (
        [replace(each, set="images", scores={"hps": 0.5}) for each in outcomes(seed, 0.3, 1.0, length=length)]
        for seed, length in ((0, 10), (1, 35))
    )
    [alarm] = find_alarms(
        score_metrics(now, start), start, now, {"hps"}, AlarmsConfig(), REWARDS, {"images": "generate"}
    )
    assert alarm.name == "text/images/length" and alarm.text.startswith("plans have grown from 10 to 35 tokens")
    assert "no column says whether they are right" in alarm.text
