"""The report page, built from fabricated run folders."""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import json
import math
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from mimetypes import guess_extension
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw, ImageFont
from safetensors.numpy import save_file

from trainer.__main__ import main
from trainer.config import ConfigError, LoggingConfig
from trainer.records.keys import SENTENCES
from trainer.records.recorder import Recorder
from trainer.records.starts import keep_start
from trainer.report import away_from_its_folder, build_report
from trainer.report.charts.axis import tick
from trainer.report.images import build_gallery, read_correctly
from trainer.report.page import render
from trainer.report.result import headlines, state
from trainer.report.rows import MAX_POINTS
from trainer.report.run_folder import load_run
from trainer.report.tables import MAX_TABLE_ROWS, evaluations, failures

ABOUT = (
    "A 2.4 M-parameter SD3 transformer, trained from scratch in minutes on rendered words with noisy captions: 20 % of "
    "the characters and 30 % of the colours were wrong, as web data is. RL removes that noise."
)
CONFIG: dict[str, Any] = {
    "run_name": "quickstart",
    "output_dir": "outputs",
    "seed": 1,
    "max_steps": 100,
    "policy": {"type": "tiny", "checkpoint": "assets/quickstart/base.safetensors"},
    "sampling": {"prompts_per_step": 8, "group_size": 12},
    "objective": {"type": "flow_grpo", "clip_range": 1e-4, "kl_beta": 0.0},
    "advantage": {"type": "gdpo"},
    "rewards": {
        "services": {"ocr": {"urls": ["http://user:secret@ocr.example:18082"]}},
        "columns": {
            "ocr": {"service": "ocr", "reward": "flow_grpo"},
            "color": {"service": "rules", "reward": "color_match"},
            "ocr_independent": {"service": "ocr_independent", "reward": "flow_grpo"},
        },
        "shuffle_control": False,
    },
    "data": {"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"ocr": 1.0, "color": 1.0}}]},
    "optim": {"lr": 1e-4, "ema_decay": 0.9},
    "evaluation": {"path": "assets/quickstart/heldout.jsonl", "num_inference_steps": 10, "seed": 1234},
}
INK = {"red": (215, 38, 38), "green": (20, 140, 60), "blue": (35, 75, 205), "purple": (130, 40, 160)}


def training_row(step: int, rng: random.Random) -> dict[str, float]:
    """Numbers as a step of the quickstart has them."""
    rise = 1 - math.exp(-step / 25)
    wait, update, rollout = 0.02 + 0.03 * rng.random(), 0.5 + 0.04 * rng.random(), 0.42 + 0.03 * rng.random()
    total = wait + update + rollout + 0.004
    row = {
        "ratio/mean": 1 + rng.gauss(0, 2e-6),
        "ratio/min": 1 - abs(rng.gauss(4e-5, 1e-5)),
        "ratio/max": 1 + abs(rng.gauss(4e-5, 1e-5)),
        "ratio/replay_error": 0.0,
        "clip_share": 0.01 * rng.random(),
        "loss/policy": rng.gauss(0, 1e-3),
        "loss/kl": 0.0,
        "kl": 0.0,
        "grad_norm": 0.4 + 0.2 * rng.random(),
        "lr": 1e-4 * (1 - (step - 1) / 100),
        "adv/mean": 0.0,
        "adv/std": 1.0,
        "adv/abs_mean": 0.78 + 0.03 * rng.random(),
        "adv/clip_share": 0.0,
        "adv/trained_share": 1.0,
        "time/rollout": rollout,
        "time/reward_wait": wait,
        "time/update": update,
        "time/total": total,
        "reward_wait_share": wait / total,
        "wait/last_latency_s": wait - 0.002,
        "wait/excess_s": 0.002 * rng.random(),
        "images_per_s": 96 / total,
    }
    for name, low, high in (("ocr", 0.80, 0.955), ("color", 0.66, 0.93)):
        row |= {
            f"reward/{name}/mean": min(1.0, low + (high - low) * rise + rng.gauss(0, 0.015)),
            f"reward/{name}/std": 0.2,
            f"reward/{name}/valid_share": 1.0 if step != 40 else 0.94,
            f"adv/{name}/abs_mean": 0.7 - 0.2 * rise + rng.gauss(0, 0.02),
            f"adv/{name}/zero_group_share": min(1.0, max(0.0, 0.5 * rise + rng.gauss(0, 0.05))),
            f"latency_ms/{name}/p50": 30 + 10 * rng.random(),
            f"latency_ms/{name}/p95": 60 + 20 * rng.random(),
            f"latency_ms/{name}/max": 90 + 30 * rng.random(),
        }
    return row


def evaluation_row(step: int, *, final: bool) -> dict[str, float]:
    rise = 1 - math.exp(-step / 25)
    row = {"eval/ocr": 0.678 + 0.24 * rise, "eval/color": 0.63 + 0.275 * rise, "time/evaluate": 6.1}
    row |= {"eval/ocr/valid_share": 1.0, "eval/color/valid_share": 1.0}
    if final:
        row |= {"eval/ocr_independent": 0.715 + 0.235 * rise, "eval/ocr_independent/valid_share": 1.0}
    return row


def sample_records(step: int, count: int = 24) -> list[dict[str, Any]]:
    """Words that are spelled better and coloured better the later it is."""
    prompts, luck = random.Random(7), random.Random(11)
    font = ImageFont.load_default(17)
    records = []
    for n in range(count):
        word = "".join(prompts.choices("ACDEFHJKLMNPRTUVWXY34679", k=prompts.choice([3, 4])))
        color = prompts.choice(list(INK))
        wrong, wrong_color = luck.random() < (0.6 if step == 0 else 0.15), luck.random() < (0.35 if step == 0 else 0.1)
        read = word[:-1] + "I" if wrong else word
        image = Image.new("RGB", (48, 24), "white")
        ink = INK[next(c for c in INK if c != color)] if wrong_color else INK[color]
        ImageDraw.Draw(image).text((24, 12), read, fill=ink, font=font, anchor="mm")
        scores: dict[str, float | None] = {"ocr": 1 - int(wrong) / len(word), "color": 0.04 if wrong_color else 1.0}
        if n == 5:
            scores["color"] = None
        records.append(
            {
                "id": f"word-{word}#0",
                "prompt_id": f"word-{word}",
                "prompt": f'the word "{word}" in {color}',
                "images": [np.asarray(image)],
                "scores": scores,
                "read": read,
            }
        )
    return records


def fabricate(
    run_dir: Path, *, steps: int = 100, every: int = 25, finished: bool = True, config: dict[str, Any] | None = None
) -> Path:
    """A run folder as training leaves it after `steps` steps."""
    rng = random.Random(3)
    text = yaml.safe_dump(config or CONFIG, sort_keys=False)
    with Recorder(
        run_dir,
        config_yaml=text,
        is_main=True,
        resume_step=None,
        max_steps=100,
        logging=LoggingConfig(progress=False, report_to=()),
    ) as recorder:
        keep_start(run_dir, None, text)
        for step in range(steps + 1):
            row: dict[str, Any] = {} if step == 0 else training_row(step, rng)
            if step == 40:
                row["failed/ocr/timeout"] = 6.0
            if step % every == 0:
                row |= evaluation_row(step, final=step in (0, 100))
                recorder.save_samples(step, sample_records(step))
            recorder.record({"step": step, **row})
        if finished:
            ends = {"before": evaluation_row(0, final=True), "after": evaluation_row(steps, final=True)}
            recorder.write_summary(
                {
                    "eval": {
                        end: {k.removeprefix("eval/"): v for k, v in row.items() if k.count("/") == 1 and k[0] == "e"}
                        for end, row in ends.items()
                    },
                    "steps": steps,
                    "wall_s": 127.0,
                    "reward_wait_share": 0.04,
                    "failed_rewards": 6,
                    "seed": 1,
                    "stopped": None,
                    "about_base": ABOUT,
                    "hardware": "2 CPU cores (x86_64), 2 torch threads per process",
                    "eval_prompts": 192,
                }
            )
    return run_dir


class Page(HTMLParser):
    """A page as a reader finds it: tags that balance, attributes, text by element."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag not in {"b", "code", "span"}:
            self.text += " "

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self) -> str:
        return " ".join(self.text.split())


def page(run_dir: Path) -> Page:
    return Page(build_report(run_dir).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(scope="module")
def built(finished: Path) -> Page:
    return page(finished)


def test_the_result_comes_first_with_what_it_stands_on(built: Page) -> None:
    words = built.words()
    for text in (
        "finished, 100 steps",
        "The policy “tiny” was post-trained by RL (GDPO), 8 prompts × 12 images a step, on the rewards "
        "ocr (weight 1) and color (weight 1).",
        "ocr trained on before 0.678 → after 0.914 ▲ +0.236 at step 100",
        "ocr_independent never trained on before 0.715 → after 0.946 ▲ +0.231 at step 100",
        "192 held-out prompts that training never sees",
        "Seed 1",
        "Duration 2 min 07 s",
        "2 CPU cores (x86_64), 2 torch threads per process",
        "Failed scores 6 (masked, never a number)",
        ABOUT,
    ):
        assert text in words, text
    places = [
        words.index(text)
        for text in ("0.914", "Before and after", "Duration", "What the base model is", "gradient norm")
    ]
    assert places == sorted(places), "the result, then pictures, then the rest"


def test_the_page_stands_alone(finished: Path, built: Page) -> None:
    """Nothing but its one script, and no address but data URIs, places in the page and files of the run folder."""
    [script] = [each for each in built.named("script") if "type" not in each]
    assert script == {} and not built.named("iframe") and not built.named("object")
    assert all(each == {"type": "application/json"} for each in built.named("script") if each)
    assert not [name for _, attributes in built.elements for name in attributes if name.startswith("on")]
    assert all(image["src"].startswith("data:image/png;base64,") for image in built.named("img"))
    addresses = [
        attributes[name] for _, attributes in built.elements for name in ("href", "xlink:href") if name in attributes
    ]
    relative = [address for address in addresses if not address.startswith(("#", "data:"))]
    assert relative == ["config.yaml", "starts", "metrics.jsonl", "summary.json", "samples", "logs"]
    assert all((finished / address).exists() for address in relative)
    text = (finished / "report.html").read_text()
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style and "style" not in {n for _, a in built.elements for n in a}
    [policy] = [meta["content"] for meta in built.named("meta") if "http-equiv" in meta]
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'" and parts["img-src"] == "data:"
    own = text.rsplit("<script>", 1)[1].split("</script>")[0]
    for name, said in (("style-src", style), ("script-src", own)):
        assert parts[name] == f"'sha256-{base64.b64encode(hashlib.sha256(said.encode()).digest()).decode()}'"


def test_the_page_is_small_and_valid(finished: Path, built: Page) -> None:
    assert (finished / "report.html").stat().st_size < 1_500_000
    ids = Counter(attributes["id"] for _, attributes in built.elements if "id" in attributes)
    assert not [name for name, count in ids.items() if count > 1]
    contents = [a["href"].removeprefix("#") for a in built.named("a") if a["href"].startswith("#")]
    assert set(contents) <= set(ids) and {"samples", "about", "rewards", "update", "failures", "more"} <= set(contents)
    assert (finished / "report.html").stat().st_size < 600_000
    assert "<title>quickstart: run report</title>" in (finished / "report.html").read_text()


def test_every_picture_and_plot_is_said_in_words(built: Page) -> None:
    assert all(image["alt"] for image in built.named("img"))
    plots = [svg for svg in built.named("svg") if "aria-hidden" not in svg]
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    [ocr] = [plot["aria-label"] for plot in plots if plot["aria-label"].startswith("ocr over step.")]
    assert "held-out: 0.678 at 0, 0.914 at 100." in ocr


def test_before_and_after_stand_side_by_side(built: Page) -> None:
    assert len(built.named("img")) == 48
    assert all(image["class"] == "pixelated" for image in built.named("img"))
    words = built.words()
    assert "The first 24 held-out prompts in file order, not chosen." in words
    assert re.search(r"Read as asked: (\d+) of 24 before, (\d+) of 24 after", words)
    assert "12 more" in words
    marks = Counter(a["aria-label"] for _, a in built.elements if "mark" in a.get("class", "").split())
    assert marks["right"] and marks["wrong"] and marks["right"] + marks["wrong"] == 48


def test_curves_cover_what_was_recorded(built: Page) -> None:
    words = built.words()
    for title in (
        "ocr_independent",
        "share of valid scores",
        "mean |advantage| per reward",
        "groups without signal",
        "ratio − 1",
        "clip share",
        "gradient norm",
        "learning rate",
        "time per step, seconds",
        "share of a step spent waiting",
        "waiting for rewards, seconds",
        "ocr: latency, ms",
    ):
        assert title in words, title
    assert "Clipped beyond ±0.0001. Before an update, replayed log-probabilities are exactly the sampled ones." in words
    assert re.search(r"at most 0\.00\d+ s, 0\.\d % of step \d+\.", words)
    assert "0 by construction: objective.kl_beta is 0, so that no divergence is computed." in words


def test_a_replay_that_differs_is_not_called_exact(tmp_path: Path) -> None:
    with recording(tmp_path) as recorder:
        for step, error in enumerate([0.0, 3e-4, 0.0]):
            recorder.record({"step": step, "ratio/mean": 1.0, "ratio/replay_error": error})
    assert "replayed log-probabilities differ from the sampled by up to 0.0003." in page(tmp_path).words()


def test_failures_are_counted_by_code(finished: Path, built: Page) -> None:
    assert failures(load_run(finished)) == [("ocr", [("timeout", 6)])]
    assert "reward code count ocr timeout 6" in built.words()


def test_no_failures_are_said_to_be_none(tmp_path: Path) -> None:
    words = page(fabricate(tmp_path / "run", steps=3)).words()
    assert "No score failed in training." in words
    assert "share of valid scores" not in words  # nothing to see when all are valid


def test_every_recorded_key_is_in_the_glossary(finished: Path, built: Page) -> None:
    rewards = "|".join(load_run(finished).rewards())
    generic = {re.sub(rf"/({rewards})(?=/|$)", "/<reward>", key) for key in load_run(finished).keys}
    told = " ".join([*SENTENCES, *SENTENCES.values()])
    for key in generic - {"latency_ms/<reward>/p95", "latency_ms/<reward>/max", "failed/<reward>/timeout"}:
        assert key in told, key
    assert "exactly 1 before a step's first update" in built.words()


KEY = re.compile(r"(?:adv|dpo|importance|loss|memory|nft|perf|ratio|rollout|sft|text|time|wait)/[a-z_]+")


def test_every_key_that_is_written_out_in_the_code_is_in_the_glossary() -> None:
    """A row's keys are literals, but for names; `ratio/square` becomes `ratio/std`, `importance/square` a share, and `loss/flow` is of `sft`."""
    told, found = " ".join([*SENTENCES, *SENTENCES.values()]), set()
    for path in (Path(__file__).parents[2] / "trainer").rglob("*.py"):
        if "report" not in path.parts:
            constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
            found |= {value for value in constants if isinstance(value, str) and KEY.fullmatch(value)}
    found = {key for key in found if not key.startswith("text/") or guess_extension(key) is None}  # text/css is none
    assert len(found) > 25
    assert [key for key in sorted(found - {"ratio/square", "importance/square", "loss/flow"}) if key not in told] == []


def test_the_configuration_is_shown_without_credentials(finished: Path, built: Page) -> None:
    assert "noise_level" not in built.text and "clip_range: 0.0001" in built.text
    assert "http://ocr.example:18082" in built.text
    assert "secret" not in (finished / "report.html").read_text()


HOSTILE = "<script>document.title='taken'</script><img src=x onerror=alert(1)>\"'><b>&amp;"


def before_its_first_evaluation(run_dir: Path, *, rows: int = 3) -> Path:
    """A run that has made some steps, and has evaluated nothing; of 0 rows there is the configuration alone."""
    made = fabricate(run_dir, steps=rows, finished=False)
    for name in ("samples", "eval", "logs"):
        shutil.rmtree(made / name, ignore_errors=True)
    path = made / "metrics.jsonl"
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    trained = [{k: v for k, v in row.items() if not k.startswith(("eval/", "alarm/"))} for row in kept if row["step"]]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in trained))
    if not rows:
        path.unlink()
    return made


def test_before_the_first_evaluation_the_first_screen_says_how_training_goes(tmp_path: Path) -> None:
    page = build_report(before_its_first_evaluation(tmp_path / "run")).read_text(encoding="utf-8")
    said = re.search(r'<p class="none">(There is no held-out[^<]*)</p>', page)
    assert said and re.fullmatch(
        r"There is no held-out evaluation yet\. In training: ocr 0\.\d{3} at step 1, 0\.\d{3} at step 3; color .*",
        said[1],
    )
    page = build_report(before_its_first_evaluation(tmp_path / "none", rows=0)).read_text(encoding="utf-8")
    assert '<p class="none">There is no held-out evaluation yet.</p>' in page


def hostile_run(run_dir: Path) -> Path:
    """A run in which every text that comes from outside tries to be markup."""
    evil = HOSTILE
    config = CONFIG | {
        "run_name": evil,
        "rewards": {"columns": {evil: {"service": evil, "reward": evil}}},
        "data": {"train": [{"rewards": {evil: 1.0}}]},
        "evaluation": {"path": "x", "num_inference_steps": evil, "seed": evil},
        "policy": {"type": evil},
    }
    row = {
        f"reward/{evil}/mean": 0.5,
        f"eval/{evil}": 0.5,
        f"failed/{evil}/{evil}": 2,
        f"latency_ms/{evil}/p50": 1.0,
        f"adv/{evil}/abs_mean": 0.5,
    }
    with Recorder(
        run_dir,
        config_yaml=yaml.safe_dump(config),
        is_main=True,
        resume_step=None,
        max_steps=2,
        logging=LoggingConfig(progress=False, report_to=()),
    ) as recorder:
        keep_start(run_dir, None, yaml.safe_dump(config))
        for step in range(3):
            recorder.record({"step": step, **row, "$x^$": 1})
        sample = sample_records(0, 1)[0] | {"prompt": evil, "read": evil, "scores": {evil: 0.5}}
        recorder.save_samples(0, [sample])
        recorder.save_samples(2, [sample])
        recorder.write_summary(
            {"steps": 2, "stopped": evil, "about_base": evil, "hardware": evil, "eval_prompts": evil}
        )
    return run_dir


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    built = page(hostile_run(tmp_path / "run"))
    assert [each for each in built.named("script") if each != {"type": "application/json"}] == [{}]
    assert all(image["src"].startswith("data:") for image in built.named("img"))
    assert not [name for _, attributes in built.elements for name in attributes if name.startswith("on")]
    assert built.text.count("document.title='taken'") > 10
    text = (tmp_path / "run" / "report.html").read_text()
    assert HOSTILE not in text and html.escape("<script>", quote=False) in text and "<script>document" not in text


@pytest.mark.parametrize(
    "text",
    [
        "data: {train: 3}\nrewards: {columns: [1]}\nsampling: no\nmax_steps: x",
        "data: {train: [1, {rewards: {ocr: much}}]}\npolicy: 1\noptim: {ema_decay: x}\nevaluation: {path: 1}",
        "[1, 2]",
        "",
        "rewards: {columns: {ocr: 7}}\nseed: [1]",
    ],
)
def test_a_configuration_of_another_shape_does_not_stop_the_page(tmp_path: Path, text: str) -> None:
    run = fabricate(tmp_path / "run", steps=2)
    (run / "config.yaml").write_text(text)
    assert "0.678" in page(run).words()


def test_a_reward_named_like_a_formula_is_drawn_as_it_is(tmp_path: Path) -> None:
    with recording(tmp_path) as recorder:
        for step in range(3):
            recorder.record(
                {
                    "step": step,
                    "adv/$x^$/abs_mean": 0.5,
                    "reward/$x^$/mean": 1.0,
                    "adv/a_b$/abs_mean": 1.0,
                    "reward/a_b$/mean": 1.0,
                }
            )
    assert "$x^$" in page(tmp_path).text


def recording(run_dir: Path) -> Recorder:
    text = yaml.safe_dump(CONFIG, sort_keys=False)
    run_dir.mkdir(exist_ok=True)
    keep_start(run_dir, None, text)
    return Recorder(
        run_dir,
        config_yaml=text,
        is_main=True,
        resume_step=None,
        max_steps=100,
        logging=LoggingConfig(progress=False, report_to=()),
    )


def test_a_run_before_its_first_row(tmp_path: Path) -> None:
    with recording(tmp_path):
        words = page(tmp_path).words()
    assert "step 0 of 100" in words
    assert "There is no held-out evaluation yet." in words and "No samples were kept yet." in words
    assert words.count("Nothing was recorded yet.") == 3


def test_a_run_with_the_first_evaluation_only(tmp_path: Path) -> None:
    words = page(fabricate(tmp_path / "run", steps=0, finished=False)).words()
    assert "ocr trained on before 0.678 evaluated once so far" in words
    assert "Images" in words and "Before and after" not in words


def test_a_run_that_goes_on_shows_what_there_is(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", steps=60, finished=False)
    words = page(run).words()
    assert "step 60 of 100 quickstart" in words
    assert "The run has no summary yet: it is going on, or was cut off. Its last row was written" in words
    assert "before 0.678 → after 0.886" in words  # the evaluation after step 50
    assert "before" in words and "step 50" in words
    assert "Waiting for rewards" in words


def test_an_earlier_finish_is_not_this_runs_result(tmp_path: Path) -> None:
    """A finished run that is trained on: the old summary's numbers are stale, its facts are not."""
    run = fabricate(tmp_path / "run", steps=25)
    summary = json.loads((run / "summary.json").read_text())
    summary["eval"]["after"]["ocr"] = 0.111
    (run / "summary.json").write_text(json.dumps(summary))
    assert "0.111" in page(run).words()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 26, "kl": 0.5}\n')
    words = page(run).words()
    assert "0.111" not in words and "step 26 of 100" in words
    assert ABOUT in words


def test_the_base_is_told_from_its_checkpoint_while_there_is_no_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = fabricate(tmp_path / "run", steps=0, finished=False)
    checkpoint = tmp_path / CONFIG["policy"]["checkpoint"]
    assert f"It is {CONFIG['policy']['checkpoint']}; how that was made is not recorded." in page(run).words()
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"damaged")
    assert "how that was made is not recorded." in page(run).words()
    save_file({"w": np.zeros(1, dtype=np.float32)}, str(checkpoint), metadata={"about": "Made from noisy captions."})
    assert "Made from noisy captions." in page(run).words()
    (checkpoint.parent / "about_base.md").write_text("Made by hand.")
    assert "Made by hand." in page(run).words()


def test_the_base_of_any_policy_is_told_from_the_fields_that_name_its_files(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", steps=0, finished=False)
    written = yaml.safe_load((run / "config.yaml").read_text())
    for policy, words in (
        ({"type": "sd3", "pretrained": "models/sd3"}, "It is models/sd3; how that was made is not recorded."),
        (
            {"type": "tiny", "checkpoint": None},
            "The configuration names no file to start from: the weights were random.",
        ),
        ({"type": "gone", "checkpoint": "a.pt"}, "Where its weights come from is not recorded."),
    ):
        (run / "config.yaml").write_text(yaml.safe_dump({**written, "policy": policy}))
        assert words in page(run).words()


@pytest.mark.parametrize(
    ("summary", "kind", "text"),
    [
        ({"steps": 100, "stopped": None}, "finished", "finished, 100 steps"),
        ({"steps": 50, "stopped": None}, "going", "saved at step 50 of 100"),
        ({"steps": 50, "stopped": "ocr is down"}, "stopped", "stopped after step 50 of 100"),
        ({"steps": 49}, "going", "step 50 of 100"),
        ({}, "going", "step 50 of 100"),
    ],
)
def test_state(tmp_path: Path, summary: dict[str, Any], kind: str, text: str) -> None:
    with recording(tmp_path) as recorder:
        recorder.record({"step": summary["steps"] if summary.get("steps", 0) > 50 else 50})
        if summary:
            recorder.write_summary(summary)
    found = state(load_run(tmp_path), datetime.now(UTC))
    assert (found.kind, found.text) == (kind, text)
    if kind == "stopped":
        assert found.detail == "ocr is down"


def test_the_age_of_the_last_row_is_told(tmp_path: Path) -> None:
    with recording(tmp_path) as recorder:
        recorder.record({"step": 1})
    later = datetime.now(UTC) + timedelta(minutes=10, seconds=1)
    assert "written 10 min 0" in state(load_run(tmp_path), later).detail


def test_a_fall_is_shown_as_a_fall_and_a_part_scored_is_said(tmp_path: Path) -> None:
    with recording(tmp_path) as recorder:
        recorder.record({"step": 0, "eval/ocr": 0.9, "eval/color": 0.5, "eval/ocr/valid_share": 0.75})
        recorder.record({"step": 1, "eval/ocr": 0.4, "eval/color": 0.5002, "eval/ocr/valid_share": 1.0})
    ocr, color = headlines(load_run(tmp_path))
    assert (ocr.verdict, ocr.change, color.verdict) == ("down", "−0.500 at step 1", "same")
    assert ocr.warning == "In an evaluation only 75.0\N{NO-BREAK SPACE}% of the samples got a score."
    words = page(tmp_path).words()
    assert "▼ −0.500" in words and "no change" in words


def test_a_control_run_says_so(tmp_path: Path) -> None:
    config = CONFIG | {"rewards": CONFIG["rewards"] | {"shuffle_control": True}}
    assert "Control run." in page(fabricate(tmp_path / "run", steps=2, config=config)).words()
    assert "Control run." not in page(fabricate(tmp_path / "other", steps=2)).words()


def test_missing_and_damaged_parts_are_named_and_do_not_stop_the_page(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", steps=25)
    (run / "samples" / "step_000000" / "3.png").unlink()
    (run / "samples" / "step_000025" / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n garbage")
    (run / "summary.json").write_text("{")
    (run / "config.yaml").write_text("a: [")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 26, "to')
    words = page(run).words()
    for text in (
        "image missing",
        "samples/step_000000/3.png",
        "samples/step_000025/4.png",
        "summary.json is not JSON",
        "config.yaml is not YAML",
    ):
        assert text in words, text
    assert "0.678" in words


def test_a_sample_outside_the_run_folder_is_not_read(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", steps=0)
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    listing = run / "samples" / "step_000000.json"
    records = json.loads(listing.read_text())
    records[0]["image"] = "../private.png"
    listing.write_text(json.dumps(records))
    problems: list[str] = []
    gallery = build_gallery(load_run(run), problems)
    assert gallery is not None and gallery.cards[0].shots[0].uri is None
    assert problems == ["sample ../private.png: it lies outside the run folder"]


def test_large_pictures_are_scaled_down(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1024, 512, 3), dtype=np.uint8)
    with recording(tmp_path) as recorder:
        recorder.save_samples(0, [sample_records(0, 1)[0] | {"images": [noise]}])
    gallery = build_gallery(load_run(tmp_path), [])
    assert gallery is not None
    [shot] = gallery.cards[0].shots
    assert (shot.width, shot.height, shot.pixelated) == (128, 256, False)
    assert shot.uri is not None and shot.uri.startswith("data:image/webp;base64,") and len(shot.uri) < 60_000


def test_a_text_policy_has_no_pictures(tmp_path: Path) -> None:
    with recording(tmp_path) as recorder:
        recorder.save_samples(0, [sample_records(0, 1)[0] | {"images": [], "read": None}])
    assert "no image" in page(tmp_path).words()


def test_bars_only_where_a_reward_goes_from_0_to_1_and_arrows_against_before(tmp_path: Path) -> None:
    record = sample_records(0, 1)[0]
    with recording(tmp_path) as recorder:
        recorder.save_samples(0, [record | {"scores": {"ocr": 0.5, "hps": 0.28, "raw": 3.0, "late": None}}])
        recorder.save_samples(100, [record | {"scores": {"ocr": 1.0, "hps": 0.27, "raw": None, "late": 0.9}}])
    gallery = build_gallery(load_run(tmp_path), [])
    assert gallery is not None and gallery.labels == ("before", "after")
    shown = {name: [(s.text, s.level, s.change) for s in scores] for name, scores in gallery.cards[0].scores}
    assert shown == {
        "ocr": [("0.500", 0.5, "same"), ("1.000", 1.0, "up")],
        "hps": [("0.280", None, "same"), ("0.270", None, "down")],
        "raw": [("3.000", None, "same"), ("no score", None, "")],
        "late": [("no score", None, ""), ("0.900", 0.9, "")],
    }


@pytest.mark.parametrize(
    ("read", "targets", "right"),
    [
        ("K7QX", ["K7QX"], True),
        ("k7 qx", ["K7QX"], True),
        ("K7QXI", ["K7QX"], False),
        ("", ["K7QX"], False),
        ("ＡＢ", ["AB"], True),
        ("HELLO WORLD", ["Hello", "World"], True),
        ("生日快乐", ["生日 快乐"], True),
    ],
)
def test_read_correctly(read: str, targets: list[str], right: bool) -> None:
    assert read_correctly(read, targets) is right


def test_a_long_run_is_thinned_and_keeps_its_spikes(tmp_path: Path) -> None:
    rng = random.Random(3)
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(10_001):
            row = {**training_row(step, rng), "grad_norm": 25.0 if step == 6000 else 0.1 * (step % 7)} if step else {}
            row |= evaluation_row(step, final=step in (0, 10_000)) if step % 10 == 0 else {}
            row |= {"failed/ocr/timeout": 4.0} if step == 7000 else {}
            file.write(json.dumps({"step": step, **row}) + "\n")
    run = load_run(tmp_path)
    norm = run.trained("grad_norm")
    assert len(norm.steps) <= MAX_POINTS and norm.steps[-1] == 10_000 and max(norm.values) < 2  # the mean hides it
    assert max(norm.high) == 25.0 and max(run.counted("failed/ocr/timeout").high) == 4.0
    started = time.process_time()
    path = build_report(tmp_path)
    assert time.process_time() - started < 30  # two seconds on an idle core
    text = path.read_text(encoding="utf-8")
    assert len(text) < 2_000_000
    [plot] = re.findall(r"<h3>gradient norm</h3>(.*?)</svg>", text, re.S)
    assert ">20<" in plot  # the axis reaches the spike
    words = Page(text).words()
    assert "Each point is the mean of 32 steps; shaded: from their least to their largest." in words
    assert "ocr: failed scores of a step" in words
    assert len(evaluations(run)[1]) == MAX_TABLE_ROWS
    assert [evaluations(run)[1][n][0] for n in (0, -1)] == [0, 10_000]


def test_data_sets_phases_and_hardware_have_their_curves(tmp_path: Path) -> None:
    with recording(tmp_path) as recorder:
        for step in (1, 2):
            row = {f"dataset/{name}/ocr/mean": 0.5 for name in ("words", "scenes")}
            row |= {"time/rollout": 2.0, "time/encode": 0.1, "time/denoise": 1.5, "time/decode": 0.4, "time/total": 3.0}
            row |= {"time/reward_wait": 0.0, "time/update": 1.0, "reward/ocr/mean": 0.5, "eval/more/ocr": 0.25}
            row |= {"eval/more/ocr/valid_share": 1.0, "eval/step": 2.0, "memory/peak_gib": 60.0, "perf/mfu_update": 0.4}
            recorder.record({"step": step, **row})
    words = page(tmp_path).words()
    for title in ("ocr by data set", "rollout, seconds", "GPU memory, GiB", "model FLOPs utilization", "more/ocr"):
        assert title in words, title
    assert load_run(tmp_path).rewards() == ["ocr", "more/ocr"]  # eval/step is no reward


def test_numbers_that_were_null_leave_a_gap(tmp_path: Path) -> None:
    with recording(tmp_path) as recorder:
        for step, value in enumerate([1.0, math.nan, 3.0]):
            recorder.record({"step": step, "grad_norm": value})
    line = load_run(tmp_path).trained("grad_norm")
    assert list(line.steps) == [1, 2] and math.isnan(line.values[0]) and line.values[1] == 3.0
    page(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.25, "0.25"),
        (-5e-5, "−5e−5"),
        (1e-10, "1e−10"),
        (12000.0, "12000"),
        (2.5e6, "2.5e6"),
        (0.0025, "0.0025"),
    ],
)
def test_ticks_are_whole_in_themselves(value: float, text: str) -> None:
    assert tick(value) == text


def test_building_again_replaces_the_page_whole(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", steps=2)
    (run / "report.html").write_text("old")
    assert build_report(run) == run / "report.html"
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert not list(run.glob(".*"))


def test_a_page_that_cannot_be_replaced_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fabricate(tmp_path / "run", steps=2)
    (run / "report.html").mkdir()
    assert main(["report", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"error: the report {run / 'report.html'} cannot be written: Is a directory; correct the owner of" in error
    assert error.count("\n") == 1 and not list(run.glob(".*"))


def test_the_same_folder_gives_the_same_page(finished: Path) -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert render(load_run(finished), now) == render(load_run(finished), now)


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run folder at .*missing; a run is a folder under outputs/"):
        build_report(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"holds no run: config.yaml, metrics.jsonl and summary.json are all missing"):
        build_report(tmp_path)


def test_importing_the_report_loads_no_plotting_and_no_torch() -> None:
    """The trainer imports it at the start of every run on every rank."""
    code = "import sys, trainer.report; print(*(n for n in ('matplotlib', 'torch', 'tensorboard') if n in sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_away_from_its_folder_no_link_leads_out_of_the_page(finished: Path) -> None:
    page = build_report(finished).read_text(encoding="utf-8")
    assert 'href="metrics.jsonl"' in page
    shown = away_from_its_folder(page)
    assert {link[0] for link in re.findall(r'<a [^>]*href="([^"]*)"', shown)} == {"#"}
    assert "<li><code>metrics.jsonl</code> every number" in shown and shown.count("<li>") == page.count("<li>")
