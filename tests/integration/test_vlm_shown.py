"""What a run of a policy that writes leaves to be looked at: answers in samples and evaluation, its metrics, its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer_runs import read_metrics
from tests.support.vlm_prompts import prepare
from trainer.config import Config
from trainer.config.file import load_config
from trainer.evaluation.files import read_outcomes
from trainer.loop import train


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return prepare(tmp_path_factory.mktemp("vlm"))


def run(path: Path) -> Config:
    config = load_config(path, Config)
    assert train(config) == 0
    return config


def evaluations(config: Config) -> dict[int, dict[str, Any]]:
    """What was measured of the weights after each step, without times."""
    rows = [row for row in read_metrics(config.run_dir) if any(key.startswith("eval/") for key in row)]
    kept = ("eval/", "stats/heldout/", "alarm/")
    return {
        int(row.get("eval/step", row["step"])): {
            key: value for key, value in row.items() if key.startswith(kept) and key != "eval/step"
        }
        for row in rows
    }


def test_answers_are_scored_in_the_background_as_when_they_are_waited_for(
    recipe: Callable[..., Path], prepared: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = run(recipe("waiting", **prepared))
    background = run(recipe("background", **prepared, evaluation__wait=False, evaluation__max_in_flight=2))
    assert evaluations(waiting) == evaluations(background) and sorted(evaluations(waiting)) == [0, 2, 4]
    folders = [config.run_dir / "eval" / "step_000002" for config in (waiting, background)]
    outcomes = [[outcome.as_dict() for outcome in read_outcomes(folder)] for folder in folders]
    assert outcomes[0] == outcomes[1] and len(outcomes[0]) == 4
    assert [len(list(folder.glob("heldout/*.text.json"))) for folder in folders] == [0, 4]
    samples = [json.loads((c.run_dir / "samples/step_000002.json").read_text()) for c in (waiting, background)]
    assert [r["text"] for r in samples[0]] == [r["text"] for r in samples[1]]
    check_what_is_left(background, samples[1], capsys.readouterr().err)


def check_what_is_left(config: Config, samples: list[dict[str, Any]], told: str) -> None:
    """Lengths, entropy and tokens a second in the rows; images of prompts beside the answers; a page that speaks of answers."""
    assert [len(record["sources"]) for record in samples] == [0, 1, 2, 0]
    assert all((config.run_dir / name).is_file() for record in samples for name in record["sources"])
    assert {"text", "length", "finished", "scores", "targets"} <= samples[0].keys() and samples[0]["image"] is None
    rows = read_metrics(config.run_dir)[1:]
    for row in rows:
        assert 0 < row["text/length"] <= row["text/length_max"] <= 6 and 0 <= row["text/truncated_share"] <= 1
        assert row["text/entropy"] > 0
        assert not any(key.startswith("stats/") and key.count("/") == 1 for key in row)
    written = (config.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    assert all("tokens_per_s" in json.loads(line) and "images_per_s" not in json.loads(line) for line in written)
    assert "tok/s" in told and "img/s" not in told and "report's answers" in told
    page = (config.run_dir / "report.html").read_text(encoding="utf-8")
    assert "Answers before and after" in page and "What the images look like" not in page
    assert "the likeliest token each time" in page
