"""Whole runs of a policy with two tasks that is no Janus: both halves are trained, evaluated, compared and shown by the same
machinery, and nothing in it asks which policy it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import reward_servers, two_tasks
from tests.support.reward_servers import ScriptedServer, good
from tests.support.trainer_runs import read_metrics
from tests.support.two_tasks import score, write_pairs
from trainer.__main__ import main
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train
from trainer.rewards import RewardClient

scripted = reward_servers.scripted  # the fixtures
policy = two_tasks.two_tasks

TEXTS, IMAGES = {"rewards": {"letter": 1.0}}, {"rewards": {"colour": 1.0}}


@pytest.fixture
def run(
    recipe: Callable[..., Path], scripted: Callable[..., ScriptedServer], policy: dict[str, Any], tmp_path: Path
) -> Callable[..., Path]:
    """Trains on pairs, with the tasks that are given, and gives the run's folder."""
    url = scripted(lambda request: good(request, lambda item: score(request, item))).url

    def started(tasks: dict[str, Any], **changes: Any) -> Path:
        train_pairs = write_pairs(tmp_path / "pairs", "train", range(8))
        heldout = str(write_pairs(tmp_path / "held", "heldout", range(100, 112)))
        sets = [
            {"name": "answers", "path": heldout, "format": "pairs", "task": "understand", "rewards": ["letter"]},
            {"name": "images", "path": heldout, "format": "pairs", "task": "generate", "rewards": ["colour"]},
        ]
        each = {"group_size": 4, "micro_batch_size": 8}
        more = {"understand": {"max_new_tokens": 3}, "generate": {"guidance_scale": 2.0}}
        sections: dict[str, Any] = {
            "policy": policy,
            "sampling": {
                "prompts_per_step": 4,
                "tasks": {t: {**each, **more[t], **given} for t, given in tasks.items()},
            },
            "rewards": {
                "services": {"scripted": {"urls": [url]}},
                "columns": {
                    "letter": {"service": "scripted", "canary": "none"},
                    "colour": {"service": "scripted", "canary": "none"},
                },
            },
            "data": {"train": [{"path": str(train_pairs), "format": "pairs"}]},
            "evaluation": {"sets": sets, "every": 2, "batch_size": 8, "num_pictures": 4},
            "max_steps": 2,
            "optim": {"lr": 0.05},
        }
        for key, value in changes.items():
            section, _, field = key.partition("__")
            sections[section] = {**sections[section], field: value} if field else value
        config = load_config(recipe("run", **sections), Config)
        assert train(config) == 0
        return config.run_dir

    return started


def test_both_halves_are_trained_evaluated_and_shown(run: Callable[..., Path]) -> None:
    folder = run({"understand": TEXTS, "generate": IMAGES})
    rows = read_metrics(folder)
    first, last = rows[0], rows[-1]
    assert {"eval/answers/letter", "eval/images/colour"} <= set(first)
    assert {"eval/answers/letter/gain_low", "eval/images/colour/gain_high"} <= set(last)
    assert "eval/images/letter" not in last and "eval/answers/colour" not in last
    for task in ("understand", "generate"):
        assert last[f"{task}/ratio/mean"] == pytest.approx(1.0, abs=1e-6)
        assert last[f"{task}/adv/trained_share"] == 1.0
    # What is of one kind of sample is of its own task: both draw from four tokens (ln 4 = 1.39 nats, estimated), texts at most three.
    assert (
        0.5 < last["image/entropy"] < 2
        and 0.5 < last["text/entropy"] < 2
        and last["image/entropy"] != last["text/entropy"]
    )
    assert 1 <= last["text/length"] <= 3 and last["text/length_max"] <= 3 and "plan/length" not in last
    assert last["understand/loss_share"] + last["generate/loss_share"] == pytest.approx(1.0)
    assert last["understand/adv/letter/zero_group_share"] < 1 and "generate/adv/letter/zero_group_share" not in last
    assert not [key for key in last if key.startswith("understand/reward")]
    records = json.loads((folder / "samples" / "step_000002.json").read_text(encoding="utf-8"))
    answered, drawn = ([each for each in records if each["task"] == task] for task in ("understand", "generate"))
    assert len(answered) == len(drawn) == 4 and len(records) == 8
    assert [record["pair"] for record in answered] == [record["pair"] for record in drawn]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('class="both"') == 4 and "4 answers and 4 images a step" in page


def test_the_half_that_is_not_trained_is_evaluated_all_the_same_also_beside_training(run: Callable[..., Path]) -> None:
    """Images alone are trained; held-out answers are drawn, scored and compared, from files, while training goes on."""
    folder = run({"generate": IMAGES}, evaluation__wait=False, evaluation__every=1, max_steps=3)
    rows = read_metrics(folder)
    evaluated = [row for row in rows if "eval/answers/letter" in row]
    assert len(evaluated) >= 2 and all("eval/images/colour" in row for row in evaluated)
    assert {"eval/answers/letter/gain_low", "eval/images/colour/gain_low", "generate/ratio/mean"} <= set(evaluated[-1])
    assert not [key for key in evaluated[-1] if key.startswith(("understand/", "reward/letter", "text/"))]
    assert evaluated[-1]["stats/answers/length"] >= 1 and evaluated[-1]["stats/images/saturation"] > 0


def test_a_reward_that_both_tasks_ask_for_has_a_mean_of_each(
    run: Callable[..., Path], scripted: Callable[..., ScriptedServer]
) -> None:
    by_kind = scripted(lambda request: good(request, lambda item: 0.25 if item.get("images") else 0.75))
    services = {"scripted": {"urls": [by_kind.url]}}
    last = read_metrics(run({"understand": TEXTS, "generate": TEXTS}, max_steps=1, rewards__services=services))[-1]
    assert last["understand/reward/letter/mean"] == 0.75 and last["generate/reward/letter/mean"] == 0.25
    assert last["reward/letter/mean"] == pytest.approx(0.5)


def test_a_half_that_pays_for_the_other_is_said_wherever_one_looks(
    run: Callable[..., Path], scripted: Callable[..., ScriptedServer], capfd: pytest.CaptureFixture[str]
) -> None:
    """Answers lose what is measured, as their reward has a weight below 0, while images win: whoever looks at one half alone sees
    success."""

    def marked(request: dict[str, Any], item: dict[str, Any]) -> float:
        """Whether anything is answered, or which share of an image is red, whatever was asked for."""
        if item.get("completion") is not None:
            return float(bool(item["completion"]))
        return score(request, {**item, "prompt": "red"})

    url = scripted(lambda request: good(request, lambda item: marked(request, item))).url
    folder = run(
        {"understand": {"rewards": {"letter": -1.0}}, "generate": IMAGES},
        rewards__services={"scripted": {"urls": [url]}},
        evaluation__every=20,
        max_steps=20,
        optim={"lr": 0.1},
    )
    last = read_metrics(folder)[-1]
    assert last["eval/answers/letter/gain_high"] < 0 < last["eval/images/colour/gain_low"]
    assert last["alarm/other_half/answers/letter"] == 1.0 and "alarm/other_half/images/colour" not in last
    alarms = json.loads((folder / "eval" / "step_000020" / "alarms.json").read_text(encoding="utf-8"))
    (told,) = [each["text"] for each in alarms if each["name"] == "other_half/answers/letter"]
    assert "what generate gains, understand pays for" in told
    assert told in (folder / "report.html").read_text(encoding="utf-8")
    assert f"ALARM other_half/answers/letter after step 20: {told}" in capfd.readouterr().err


def test_a_finished_run_is_evaluated_again_and_its_rewards_are_probed_as_what_they_score(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run({"understand": TEXTS, "generate": IMAGES}, max_steps=1)
    asked: list[Any] = []

    class Watched(RewardClient):
        def __init__(self, *args: Any, **given: Any) -> None:
            asked.append(given.get("requests"))
            super().__init__(*args, **given)

    monkeypatch.setattr("trainer.programs.evaluate.RewardClient", Watched)
    assert main(["evaluate", str(folder / "config.yaml")]) == 0
    told = json.loads((folder / "evaluations" / "step_000001-average" / "evaluation.json").read_text(encoding="utf-8"))
    last = read_metrics(folder)[-1]
    for key in ("eval/answers/letter", "eval/images/colour"):
        assert told[key] == pytest.approx(last[key])
    assert [each.texts for each in asked] == [{"letter"}], "pictures are no probes of letters"
