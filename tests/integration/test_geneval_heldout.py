"""GenEval as a held-out set of a run: a real detector judges the pictures while training goes on, then the official table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.support.service_process import ready_service
from tests.support.tiny_services import SHAPES_DETECTOR
from tests.support.trainer_runs import ROOT, read_metrics
from trainer.config import Config
from trainer.config.file import load_config
from trainer.evaluation.files import read_outcomes
from trainer.loop import train

pytestmark = pytest.mark.slow
INKS = ("red", "green", "blue")
# Small pictures of words hold no shapes as a rule: what must not be there is right, what must be is wrong.
TASKS = (
    ("single_object", {"include": [{"class": "circle", "count": 3}]}),
    ("two_object", {"include": [], "exclude": [{"class": "triangle", "count": 3}]}),
)


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Rows as GenEval's file has them, whose prompts the tiny policy can draw."""
    path = tmp_path / "evaluation_metadata.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for index in range(6):
            tag, asked = TASKS[index % 2]
            row = {"tag": tag, **asked, "prompt": f'the word "QX{index + 2}Z" in {INKS[index % 3]}'.replace("5", "W")}
            file.write(json.dumps(row) + "\n")
    return path


def run_config(recipe: Callable[..., Path], prompts: Path, url: str) -> Config:
    """Two steps on the rules' colour; GenEval is asked of the held-out rows alone, two pictures a row."""
    written = recipe()
    config = load_config(written, Config)
    tree = config.model_dump(mode="json")
    tree["max_steps"], tree["evaluation"]["wait"] = 2, False
    tree["rewards"]["services"]["geneval"] = {"urls": [url], "timeout_s": 120.0}
    tree["rewards"]["columns"]["geneval"] = {"service": "geneval", "reward": "geneval"}
    bench = {"name": "bench", "path": str(prompts), "duplicates": 2, "rewards": ["geneval"]}
    tree["evaluation"]["sets"] = [bench]
    path = written.with_name("geneval.json")
    path.write_text(json.dumps(tree))
    return load_config(path.rename(path.with_suffix(".yaml")), Config)


def test_a_run_evaluates_on_genevals_rows_and_its_pictures_make_the_table(
    recipe: Callable[..., Path], prompts: Path, tmp_path: Path
) -> None:
    flags = ("--detector", SHAPES_DETECTOR, "--device", "cpu", "--threads", "1")
    with ready_service("geneval", *flags) as url:
        config = run_config(recipe, prompts, url)
        assert train(config) == 0
    found = {int(row.get("eval/step", row["step"])): row for row in read_metrics(config.run_dir) if "eval/color" in row}
    assert sorted(found) == [0, 2]
    for row in found.values():
        assert row["eval/bench/geneval/valid_share"] == 1 and 0 < row["eval/bench/geneval"] < 1
        assert row["eval/bench/geneval/low"] <= row["eval/bench/geneval"] <= row["eval/bench/geneval/high"]
        assert "reward/geneval/mean" not in row, "it is not trained on"
    assert "eval/bench/geneval/gain" in found[2]
    folder = config.run_dir / "eval" / "step_000002"
    scores = {
        (each.index, each.duplicate): each.scores["geneval"] for each in read_outcomes(folder) if each.set == "bench"
    }
    assert len(scores) == 12

    command = [sys.executable, "-m", "services.geneval", "run", "--prompts", str(prompts), "--images", folder / "bench"]
    more = ["--out", tmp_path / "table", "--detector", SHAPES_DETECTOR, "--device", "cpu", "--resamples", "200"]
    done = subprocess.run([*map(str, [*command, *more])], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    table = {line["name"]: line for line in json.loads((tmp_path / "table/table.json").read_text())["rows"]}
    assert table["Images that are right"]["value"] == pytest.approx(found[2]["eval/bench/geneval"])
    for place, (tag, _) in enumerate(TASKS):
        own = [score for (index, _), score in scores.items() if index % 2 == place and score is not None]
        assert table[tag]["judged"] == 6 and table[tag]["value"] == pytest.approx(sum(own) / 6)
    tasks = [table[tag]["value"] for tag, _ in TASKS]
    assert table["Overall, mean of tasks"]["value"] == pytest.approx(sum(tasks) / 2)
