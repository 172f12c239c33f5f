"""The page of a run with two tasks: both sides of a pair beside each other before and after, and curves of each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from trainer.config import LoggingConfig
from trainer.records.recorder import Recorder
from trainer.records.reporters import Picture
from trainer.report import build_report
from trainer.report.answers import build_answers
from trainer.report.chart_list import charts_of
from trainer.report.images import build_gallery
from trainer.report.pairs import match_pairs, without_pairs
from trainer.report.result import headlines, how_evaluated, sentence
from trainer.report.run_folder import load_run

CONFIG: dict[str, Any] = {
    "run_name": "pairs",
    "max_steps": 20,
    "policy": {"type": "janus", "pretrained": "base"},
    "sampling": {
        "type": "tasks",
        "prompts_per_step": 8,
        "tasks": {
            "understand": {"group_size": 8, "rewards": {"letter": 1.0}},
            "generate": {"group_size": 4, "rewards": {"hps": 1.0}},
        },
    },
    "rewards": {"columns": {"letter": {"service": "rules"}, "hps": {"service": "hps"}}},
    "data": {"train": [{"path": "train.jsonl", "format": "pairs", "rewards": {}}]},
    "evaluation": {"sets": [{"name": "answers", "task": "understand"}, {"name": "images", "task": "generate"}]},
}


def squares(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((32, 32, 3), (red, green, blue), np.uint8)


def records(step: int) -> list[dict[str, Any]]:
    """Three pairs whose both sides are kept, and one whose image alone is."""
    found = []
    for n in range(3):
        asked = {"task": "understand", "pair": f"pair{n}", "targets": ["A"], "sources": [squares(200, 40 * n, 40)]}
        text = f"{'B' if step == 0 else 'A'}"
        scores = {"letter": float(step > 0)}
        found.append(
            {"id": f"a{n}#0", "prompt_id": f"answers-pair{n}/understand", "prompt": f"What color is {n}?", "images": ()}
            | {"text": text, "length": 2, "finished": True, "scores": scores, **asked}
        )
    for n in range(4):
        image = squares(200, 40 * n, 40) if step else squares(90, 90, 90)
        found.append(
            {
                "id": f"i{n}#0",
                "prompt_id": f"images-pair{n}/generate",
                "prompt": f"draw red square {n}",
                "images": (image,),
            }
            | {"text": "red, one" if n == 3 else None, "scores": {"hps": 0.2 + 0.1 * (step > 0)}}
            | {"task": "generate", "pair": f"pair{n}", "targets": None}
        )
    return found


def row(step: int) -> dict[str, float]:
    found = {"step": step, "reward/letter/mean": 0.4 + step / 50, "reward/hps/mean": 0.2, "grad_norm": 1.0}
    for n, task in enumerate(("understand", "generate")):
        name = ("letter", "hps")[n]
        found |= {
            f"{task}/adv/{name}/abs_mean": 0.8,
            f"{task}/adv/{name}/zero_group_share": 0.1,
            f"{task}/adv/abs_mean": 0.7,
        }
        found |= {
            f"{task}/ratio/mean": 1.0,
            f"{task}/ratio/min": 0.9,
            f"{task}/ratio/max": 1.1,
            f"{task}/kl": 0.01 * step,
        }
        found |= {f"{task}/loss_share": (0.25, 0.75)[n], f"{task}/clip_share": 0.01}
    return found | {"text/length": 2.5, "text/truncated_share": 0.0, "text/entropy": 1.0, "image/entropy": 3.0}


def fabricate(folder: Path) -> Path:
    """A run folder as training of both tasks leaves it."""
    logging = LoggingConfig(report_to=(), progress=False)
    text = yaml.safe_dump(CONFIG)
    with Recorder(folder, config_yaml=text, is_main=True, resume_step=None, max_steps=20, logging=logging) as recorder:
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        for step in range(0, 21, 5):
            evaluated = {
                f"eval/{name}{end}": value + step / 50
                for name, value in (("answers/letter", 0.4), ("images/hps", 0.3))
                for end in ("", "/low", "/high")
            } | {f"eval/{name}/valid_share": 1.0 for name in ("answers/letter", "images/hps")}
            recorder.record(evaluated | (row(step) if step else {"step": 0}))
            if step in (0, 20):
                recorder.save_samples(step, records(step))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("pairs") / "run")


def test_both_sides_of_a_pair_are_together_and_others_by_themselves(folder: Path) -> None:
    problems: list[str] = []
    run = load_run(folder)
    answers, gallery = build_answers(run, problems), build_gallery(run, problems)
    pairs = match_pairs(answers, gallery)
    assert problems == []
    assert [(pair.asked.prompt, pair.drawn.prompt) for pair in pairs] == [
        (f"What color is {n}?", f"draw red square {n}") for n in range(3)
    ]
    assert [reply.said.answer for reply in pairs[0].asked.replies] == ["B", "A"]
    assert pairs[0].asked.images[0] is not None and [shot.label for shot in pairs[0].drawn.shots] == ["before", "after"]
    left, images = without_pairs(answers, gallery, pairs)
    assert left is None and images is not None
    assert [card.prompt for card in images.cards] == ["draw red square 3"]
    assert images.cards[0].shots[1].plan == "red, one"


def test_curves_are_of_each_task(folder: Path) -> None:
    run = load_run(folder)
    charts = {chart.title: chart for _, found in charts_of(run) for chart in found}
    assert {
        "mean |advantage| per reward, understand",
        "mean |advantage| per reward, generate",
        "ratio − 1, understand",
        "ratio − 1, generate",
        "share of the pull",
        "entropy, nats a token",
    } <= set(charts)
    assert [each.label for each in charts["KL to the starting weights"].series] == ["understand", "generate"]
    assert [each.label for each in charts["mean |advantage| per reward, generate"].series] == ["hps"]
    assert [(each.name, each.tag) for each in headlines(run)] == [
        ("answers/letter", "trained on"),
        ("images/hps", "trained on"),
    ]


def test_the_page_says_what_was_trained_and_how_it_was_evaluated(folder: Path) -> None:
    run = load_run(folder)
    assert (
        "8 prompts × 4 images and 8 answers a step, on the rewards hps (weight 1) and letter (weight 1)."
        in sentence(run)
    )
    assert "of either task, drawn with the same random numbers each time" in how_evaluated(run)


def test_reporters_show_what_was_drawn_beside_the_image_that_was_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Picture] = []
    logging = LoggingConfig(report_to=(), progress=False)
    with Recorder(
        tmp_path / "r", config_yaml="{}", is_main=True, resume_step=None, max_steps=1, logging=logging
    ) as recorder:
        monkeypatch.setattr(recorder._reporters, "pictures", lambda step, pictures: shown.extend(pictures))
        recorder.save_samples(0, records(20))
    assert len(shown) == 4
    first, alone = shown[0], shown[3]
    assert first.pixels_HWC.shape == (32, 66, 3) and alone.pixels_HWC.shape == (32, 32, 3)
    assert (first.pixels_HWC[:, :32] == squares(200, 0, 40)).all() and (
        first.pixels_HWC[:, 34:] == squares(200, 0, 40)
    ).all()
    assert first.caption == "draw red square 0 | hps 0.3 || What color is 0? | letter 1 | A"
    assert alone.caption == "draw red square 3 | hps 0.3"


def test_an_edit_has_its_source_beside_it_and_what_was_thought(tmp_path: Path) -> None:
    source, folder = squares(0, 0, 200), tmp_path / "edits"
    logging = LoggingConfig(report_to=(), progress=False)
    config = yaml.safe_dump({"run_name": "edits", "max_steps": 2})
    with Recorder(folder, config_yaml=config, is_main=True, resume_step=None, max_steps=2, logging=logging) as recorder:
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        for step in (0, 2):
            record = {"id": "e#0", "prompt_id": "e", "prompt": "make left like grass", "images": (squares(0, 99, 0),)}
            said = {
                "text": f"thought {step}",
                "scores": {"exact": step / 2},
                "targets": None,
                "sources": [source, None],
            }
            recorder.save_samples(step, [record | said])
            recorder.record({"step": step, "eval/exact": step / 2})
    problems: list[str] = []
    gallery = build_gallery(load_run(folder), problems)
    assert problems == [] and gallery is not None
    (card,) = gallery.cards
    assert [(shot.label, shot.width, shot.missing) for shot in card.given] == [
        ("given", 32, "image missing"),
        ("given", 0, "image missing"),
    ]
    assert [shot.plan for shot in card.shots] == ["thought 0", "thought 2"]
    page = build_report(folder).read_text(encoding="utf-8")
    assert "thought 0" in page and "thought 2" in page and 'alt="given: image for make left like grass"' in page
