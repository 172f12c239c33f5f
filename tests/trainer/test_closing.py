"""The last words of a run: means before and after, with intervals, and what to do next, on a terminal of 100 columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer_runs import ROOT
from trainer.config import Config
from trainer.migration import load_recipe
from trainer.programs.closing import closing_lines


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(ROOT)
    return load_recipe("configs/quickstart.yaml", Config, ["output_dir=my runs", "run_name=words"])


def summary(**changes: Any) -> dict[str, Any]:
    evaluation = {
        "before": {"ocr": 0.635, "color": 0.566, "ocr_independent": 0.612},
        "after": {"ocr": 0.887, "color": 0.561, "ocr_independent": 0.849},
        "interval": {"ocr": [0.8691, 0.9042], "color": [0.54, 0.58]},
        "gain": {
            "ocr": {"gain": 0.252, "low": 0.22, "high": 0.28},
            "color": {"gain": -0.005, "low": -0.03, "high": 0.02},
        },
    }
    whole = {"eval": evaluation, "steps": 60, "wall_s": 151.0, "failed_by_reward": {}, "stopped": None, "owed": None}
    return whole | changes


def told(config: Config, **changes: Any) -> str:
    text = "\n".join(closing_lines(config, summary(**changes)))
    assert all(len(line) <= 80 for line in text.splitlines()), text
    return text


def test_a_finished_run_says_before_after_and_what_next(config: Config) -> None:
    text = told(config, failed_by_reward={"ocr": {"timeout": 3, "internal": 1}})
    assert text.splitlines() == [
        "",
        "Finished: 60 steps in 2 min 31 s.",
        "Held-out means, before → after (95 % interval), gain on the same prompts:",
        "  ocr              0.635 → 0.887 (0.869 to 0.904)  +0.252 (+0.220 to +0.280)",
        "  color            0.566 → 0.561 (0.540 to 0.580)  −0.005 (−0.030 to +0.020)",
        "  ocr_independent  0.612 → 0.849",
        "Failed scores, masked: ocr timeout 3, ocr internal 1",
        "Report: my runs/words/report.html",
        "Next: look at the report's pictures; then take the weights with you:",
        "  python -m trainer export 'my runs/words' --to safetensors --output my_model",
    ]


def test_a_run_that_was_asked_to_stop_says_how_it_goes_on(config: Config) -> None:
    text = told(config, steps=25)
    assert "Saved after step 25 of 60." in text and text.endswith("Next: the same command goes on from there")
    text = told(config, steps=60, owed=60)
    assert "Saved after step 60 of 60." in text and "Finished" not in text
    assert text.endswith("Next: the same command makes the evaluation after step 60, and goes on")


def test_a_run_that_stopped_says_why(config: Config) -> None:
    text = told(config, steps=25, stopped="reward ocr: out of order.")
    assert "Stopped after step 25: reward ocr: out of order." in text
    assert text.endswith("Next: see to that; the same command then goes on from the newest checkpoint")


def test_one_evaluation_or_none_is_no_comparison(config: Config) -> None:
    once = {"before": {"ocr": 0.5}, "after": {"ocr": 0.5}, "interval": {"ocr": [0.4, 0.6]}, "gain": {}}
    assert "Held-out means (95 % interval):\n  ocr  0.500 (0.400 to 0.600)\n" in told(config, steps=1, eval=once)
    none: dict[str, Any] = {"before": {}, "after": {}, "interval": {}, "gain": {}}
    assert "Held-out" not in told(config, steps=1, eval=none)


def test_means_that_did_not_move_are_compared_all_the_same(config: Config) -> None:
    same = {"before": {"ocr": 1.0}, "after": {"ocr": 1.0}, "interval": {"ocr": [1.0, 1.0]}}
    still = same | {"gain": {"ocr": {"gain": 0.0, "low": 0.0, "high": 0.0}}}
    assert "\n  ocr  1.000 → 1.000 (1.000 to 1.000)  0.000 (0.000 to 0.000)\n" in told(config, eval=still)


@pytest.mark.parametrize(
    ("recipe", "form"),
    [("sd35_medium_ocr", "diffusers"), ("sd35_medium_ocr_1gpu", "lora"), ("deepgen_mr_grpo", "deepgen")],
)
def test_the_export_is_one_that_the_policy_has(monkeypatch: pytest.MonkeyPatch, recipe: str, form: str) -> None:
    monkeypatch.chdir(ROOT)
    config = load_recipe(f"configs/{recipe}.yaml", Config)
    assert f"--to {form} " in "\n".join(closing_lines(config, summary(steps=config.max_steps)))
