"""The page of a policy that writes: questions with their pictures, thoughts and answers before and after, and their curves."""

from __future__ import annotations

import html
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from trainer.config import LoggingConfig
from trainer.records.recorder import Recorder
from trainer.records.starts import keep_start
from trainer.report import build_report
from trainer.report.answers import build_answers, take_apart
from trainer.report.chart_list import charts_of
from trainer.report.charts import figure
from trainer.report.images import build_gallery
from trainer.report.result import how_evaluated, sentence
from trainer.report.run_folder import load_run

CONFIG: dict[str, Any] = {
    "run_name": "cards",
    "seed": 1,
    "max_steps": 40,
    "policy": {"type": "vlm", "pretrained": "base"},
    "sampling": {"type": "tokens", "prompts_per_step": 16, "group_size": 12, "temperature": 1.0},
    "objective": {"type": "grpo"},
    "advantage": {"type": "gdpo"},
    "rewards": {
        "services": {"rules": {"urls": ["http://127.0.0.1:18084"]}},
        "columns": {name: {"service": "rules"} for name in ("right", "format")},
        "roles": {"accuracy": "right", "format": None},
    },
    "data": {"train": [{"path": "train.jsonl", "rewards": {"right": 1.0, "format": 0.5}}]},
    "evaluation": {"path": "heldout.jsonl", "num_inference_steps": 10, "seed": 7},
}
INKS = {"red": (215, 38, 38), "blue": (35, 75, 205), "green": (20, 140, 60), "black": (20, 20, 20)}


def card(rng: random.Random) -> tuple[np.ndarray, str]:
    """A picture with one disc, and its colour."""
    color = rng.choice(list(INKS))
    image = Image.new("RGB", (48, 48), "white")
    x, y = rng.randint(4, 26), rng.randint(4, 26)
    ImageDraw.Draw(image).ellipse([x, y, x + 16, y + 16], fill=INKS[color])
    return np.asarray(image), color


def records(step: int, count: int = 16) -> list[dict[str, Any]]:
    """At the start half of the answers are wrong and without a thought; at the end all think, two of them of something else,
    and one never stops."""
    rng, found = random.Random(7), []
    for n in range(count):
        pixels, color = card(rng)
        wrong = next(each for each in INKS if each != color)
        text, finished = f"<think> disc tl {color} </think> <answer> {color} </answer>", True
        if step == 0:
            text = f"<answer> {wrong if n % 2 else color} </answer>"
        elif n in (1, 3):
            text = f"<think> bar br {wrong} </think> <answer> {color} </answer>"
        elif n == 5:
            text, finished = "<think> tl tl tl tl tl tl tl tl", False
        right = text.endswith(f"<answer> {color} </answer>")
        found.append(
            {
                "id": f"c{n}#0",
                "prompt_id": f"c{n}",
                "prompt": f"<image> what color is disc {n} ?",
                "images": (),
                "text": text,
                "length": len(text.split()),
                "finished": finished,
                "sources": [pixels] if n != 4 else [None],
                "scores": {"right": float(right), "format": float(finished), "late": None},
                "targets": [color],
                "read": None,
            }
        )
    return found


def row(step: int) -> dict[str, float]:
    rise = 1 - math.exp(-step / 10)
    found = {
        "reward/right/mean": 0.3 + 0.5 * rise,
        "reward/right/valid_share": 1.0,
        "reward/format/mean": 0.5 + 0.5 * rise,
        "reward/format/valid_share": 1.0,
        "text/length": 4 + 6 * rise,
        "text/length_max": 16.0,
        "text/truncated_share": 0.1 * (1 - rise),
        "text/entropy": 0.9 - 0.7 * rise,
        "text/accuracy_given_format": 0.5 + 0.3 * rise,
        "tokens_per_s": 3900.0 + step % 3,
        "time/rollout": 0.1,
        "time/reward_wait": 0.01,
        "time/update": 0.2,
        "time/total": 0.32,
    }
    if step % 20 == 0:
        found |= {
            "eval/right": 0.3 + 0.5 * rise,
            "eval/right/valid_share": 1.0,
            "eval/format": 0.5 + 0.5 * rise,
            "eval/format/valid_share": 1.0,
            "stats/heldout/length": 4 + 6 * rise,
            "stats/heldout/truncated": 0.1 * (1 - rise),
            "stats/heldout/accuracy_given_format": 0.5 + 0.3 * rise,
        }
    return found


def fabricate(run_dir: Path, config: dict[str, Any] = CONFIG) -> Path:
    """A run folder as training of texts leaves it."""
    text = yaml.safe_dump(config, sort_keys=False)
    logging = LoggingConfig(progress=False, report_to=())
    with Recorder(run_dir, config_yaml=text, is_main=True, resume_step=None, max_steps=40, logging=logging) as recorder:
        keep_start(run_dir, None, text)
        for step in range(41):
            if step % 20 == 0:
                recorder.save_samples(step, records(step))
            recorder.record({"step": step, **row(step)})
    return run_dir


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("texts") / "run")


@pytest.mark.parametrize(
    ("text", "thought", "answer", "unsaid"),
    [
        ("<think> bar tr red </think> <answer> red </answer>", "bar tr red", "red", False),
        ("<think> bar tr red </think> blue", "bar tr red", "blue", True),
        ("<answer>Red.</answer>", None, "Red.", False),
        ("red disc", None, "red disc", False),
        ("<think> red and so on", "red and so on", "", False),
        ("<think></think>red", "", "red", False),
        ("<think>The disc is RED</think>\n<answer>red", "The disc is RED", "red", False),
        ("<think>a</think> b <think>c</think> <answer>a</answer>", "a\nc", "a", False),
    ],
)
def test_a_text_is_taken_apart(text: str, thought: str | None, answer: str, unsaid: bool) -> None:
    said = take_apart(text)
    assert (said.thought, said.answer, said.unsaid) == (thought, answer, unsaid)


def test_cards_have_the_question_with_its_picture_and_both_answers(finished: Path) -> None:
    problems: list[str] = []
    answers = build_answers(load_run(finished), problems)
    assert answers is not None and problems == []
    assert answers.labels == ("before", "after") and len(answers.cards) == 16
    first, second = answers.cards[:2]
    assert first.prompt == "<image> what color is disc 0 ?" and first.targets in INKS
    assert (
        first.images[0] is not None
        and first.images[0][0].startswith("data:image/png")
        and first.images[0][1:] == (48, 48)
    )
    assert [reply.said.thought for reply in first.replies] == [None, f"disc tl {first.targets}"]
    assert [reply.note for reply in first.replies] == ["3 tokens", "8 tokens"]
    assert second.replies[1].said.unsaid and not first.replies[1].said.unsaid
    assert answers.cards[4].images == (None,)
    assert answers.cards[5].replies[1].note == "9 tokens, cut off"
    rewards = {name: [score.text for score in scores] for name, scores in second.scores}
    assert rewards == {"right": ["0.000", "1.000"], "format": ["1.000", "1.000"], "late": ["no score", "no score"]}
    assert "16 of these 16 answers come with a thought; in 2 of them" in answers.thoughts
    assert build_gallery(load_run(finished), problems) is None, "there is no image of the policy's own"


def test_the_page_speaks_of_answers(finished: Path) -> None:
    page = build_report(finished).read_text(encoding="utf-8")
    run = load_run(finished)
    assert "16 prompts × 12 answers a step" in sentence(run)
    assert "drawn at temperature 1, with the same random numbers each time (seed 7)" in how_evaluated(run)
    assert "3\N{NO-BREAK SPACE}901 training tokens a second" in page and "images a second" not in page
    assert "Answers before and after" in page and "not in the thought" in page and "cut off" in page
    body = page.split("<body>")[1].split("What each metric means")[0]
    for word in ("noise", "ODE", "No samples were kept", "What the images look like", "picture"):
        assert word not in body, word


@pytest.mark.parametrize(("own", "otherwise"), [(0.0, 1.0), (None, 0.0)])
def test_greedy_evaluation_is_called_so(tmp_path: Path, own: float | None, otherwise: float) -> None:
    tree = CONFIG | {
        "evaluation": CONFIG["evaluation"] | {"temperature": own},
        "sampling": CONFIG["sampling"] | {"temperature": otherwise},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert "the likeliest token each time, with" in how_evaluated(load_run(tmp_path))


@pytest.mark.parametrize(("program", "told"), [("supervised", "given answers"), ("preference", "pairs of answers")])
def test_programs_that_are_given_texts_are_named(tmp_path: Path, program: str, told: str) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"program": program}))
    assert told in sentence(load_run(tmp_path)) and "RL" not in sentence(load_run(tmp_path))


def test_curves_split_the_reward_into_form_and_content(finished: Path) -> None:
    charts = dict(charts_of(load_run(finished)))["Form and content"]
    plots = {chart.title: html.unescape(str(figure(chart))) for chart in charts}
    assert list(plots) == [
        "form and content, training",
        "form and content, held-out",
        "length, tokens",
        "share of answers cut off",
        "entropy, nats a token",
    ]
    for name in ("right", "format", "accuracy given format"):
        assert f"</span>{name} <output" in plots["form and content, training"], name
    assert "accuracy given format: 0.500 at 0" in plots["form and content, held-out"]
    assert "longest: 16 at 1" in plots["length, tokens"] and "held-out: 4.000 at 0" in plots["length, tokens"]


def test_hostile_answers_stay_texts(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script><think><img src=x onerror=alert(2)></think><answer>\"'&</answer>"
    with Recorder(
        tmp_path,
        config_yaml=yaml.safe_dump(CONFIG),
        is_main=True,
        resume_step=None,
        max_steps=1,
        logging=LoggingConfig(progress=False, report_to=()),
    ) as recorder:
        recorder.save_samples(0, [records(0, 1)[0] | {"text": hostile, "prompt": hostile, "targets": [hostile]}])
        recorder.record({"step": 0, "text/length": 3.0})
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img src=x" not in page and "&lt;img src=x onerror=alert(2)&gt;" in page
