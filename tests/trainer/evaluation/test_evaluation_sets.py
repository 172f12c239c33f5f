"""Which sets a configuration means, what they ask for, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.config import Config, ConfigError
from trainer.data.datasets import DataError
from trainer.evaluation.sets import EvaluationSet, load_sets, trained_on
from trainer.migration import load_recipe
from trainer.types import Prompt

TRAIN = [Prompt("t", "a train", weights={"ocr": 1.0, "seen": 0.0})]


def config(folder: Path, **evaluation: Any) -> Config:
    (folder / "prompts.txt").write_text("".join(f"prompt {n}\n" for n in range(10)))
    rows = ["index,prompt,sub_dims"]
    for index, points in ((7, ["Style"]), (12, ["Style", "Text Generation"])):
        dims = json.dumps({"Testpoints": points, "Testpoint Description": ["d"] * len(points)}).replace('"', '""')
        rows.append(f'{index},bench {index},"{dims}"')
    (folder / "bench.csv").write_text("\n".join(rows) + "\n")
    columns = {name: {"service": "s"} for name in ("ocr", "seen", "other")}
    columns["judge"] = {"service": "s", "reward": "unigenbench"}
    recipe = {
        "run_name": "r",
        "max_steps": 2,
        "sampling": {"guidance_scale": 2.0},
        "data": {"train": [{"path": "t.txt", "rewards": {"ocr": 1.0, "seen": 0.0}}]},
        "rewards": {"services": {"s": {"urls": ["http://127.0.0.1:1"]}}, "columns": columns},
        "evaluation": {"path": str(folder / "prompts.txt"), **evaluation},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return load_recipe(folder / "recipe.yaml", Config)


def sets_of(folder: Path, **evaluation: Any) -> list[EvaluationSet]:
    return load_sets(config(folder, **evaluation), TRAIN)


def test_the_plain_set_asks_for_what_training_uses(tmp_path: Path) -> None:
    [plain] = sets_of(tmp_path, final_rewards=["other"], num_inference_steps=7)
    assert (plain.name, plain.folder, plain.duplicates, plain.judge) == ("", "heldout", 1, None)
    assert plain.columns(final=False) == ["ocr", "seen"] and plain.columns(final=True) == ["ocr", "seen", "other"]
    assert (plain.num_inference_steps, plain.guidance_scale) == (7, 2.0)
    assert trained_on(TRAIN) == {"ocr"}, "a weight of 0 trains nothing"
    assert load_sets(config(tmp_path, path=None), TRAIN) == []


def test_a_named_set_says_what_differs(tmp_path: Path) -> None:
    bench = {"name": "bench", "path": str(tmp_path / "bench.csv"), "scoring": "unigenbench/en", "duplicates": 4}
    few = {"name": "few", "path": str(tmp_path / "prompts.txt"), "rewards": ["other"], "max_prompts": 4}
    plain, judged, small = sets_of(tmp_path, sets=[bench, {**few, "guidance_scale": 4.5, "num_inference_steps": 50}])
    assert plain.name == ""
    assert (judged.judge, judged.columns(final=False)) == ("judge", ["ocr", "seen", "judge"])
    assert judged.file_names() == ["7", "12"], "the benchmark's own numbers"
    assert [p.text for p in small.prompts] == ["prompt 0", "prompt 2", "prompt 5", "prompt 7"], "evenly over the file"
    assert (small.guidance_scale, small.num_inference_steps) == (4.5, 50) and small.columns(final=True) == ["other"]
    assert small.file_names() == ["0", "1", "2", "3"]


def test_final_rewards_are_asked_of_sets_with_rewards_of_their_own(tmp_path: Path) -> None:
    few = {"name": "few", "path": str(tmp_path / "prompts.txt"), "rewards": ["ocr"]}
    [small] = sets_of(tmp_path, path=None, sets=[few], final_rewards=["other", "ocr"])
    assert small.columns(final=False) == ["ocr"] and small.columns(final=True) == ["ocr", "other"]


def test_deepgens_evaluation_yaml_makes_sets(tmp_path: Path) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text(
        "datasets:\n"
        "  - {name: unigenbench_en, path: bench.csv, duplicates: 4, cfg_scale: 4.0, num_inference_steps: 50,\n"
        "     scoring: unigenbench}\n"
        "  - {name: mine, path: prompts.txt, cfg_scale: 0}\n"
    )
    bench, mine = sets_of(tmp_path, path=None, dataset_config=str(path))
    assert (bench.name, bench.duplicates, bench.guidance_scale, bench.num_inference_steps) == (
        "unigenbench_en",
        4,
        4.0,
        50,
    )
    assert bench.judge == "judge" and len(bench.prompts) == 2
    assert (mine.guidance_scale, mine.num_inference_steps, mine.judge) == (1.0, 10, None), "theirs: 0 is no guidance"
    twice = [{"name": "mine", "path": "x.txt"}]
    with pytest.raises(ConfigError) as raised:
        sets_of(tmp_path, dataset_config=str(path), sets=twice)
    problem, origin = str(raised.value).splitlines()[1:]
    assert "sets.2.name = 'mine' is also the name of sets.0; rename one" in problem
    assert origin == f"  (evaluation.sets from 1 on are what evaluation.dataset_config = {path} says)"


def test_deepgens_jsonl_is_read_as_rows_and_other_sets_may_say_what_they_are(tmp_path: Path) -> None:
    rows = '{"prompt": "a cat", "difficulty": 3}\n'
    (tmp_path / "rows.jsonl").write_text(rows)
    path = tmp_path / "eval.yaml"
    path.write_text("datasets: [{name: rows, path: rows.jsonl}]")
    [theirs] = sets_of(tmp_path, path=None, dataset_config=str(path))
    assert theirs.prompts[0].metadata == {"difficulty": 3}
    named = {"name": "rows", "path": str(tmp_path / "rows.jsonl")}
    with pytest.raises(DataError, match="difficulty: unknown field"):
        sets_of(tmp_path, path=None, sets=[named])
    [ours] = sets_of(tmp_path, path=None, sets=[{**named, "format": "rows"}])
    assert ours.prompts == theirs.prompts


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"sets": [{"name": "ocr", "path": "x.txt"}]}, "also a reward in rewards.columns"),
        ({"sets": [{"name": "heldout", "path": "x.txt"}]}, "used by the run's own files"),
        ({"sets": [{"name": "a", "path": "x.txt", "rewards": ["nobody"]}]}, "names the reward 'nobody'"),
        ({"sets": [{"name": "a", "path": "t.txt"}]}, "evaluation.sets.0.path and data.train.0.path are both t.txt"),
        ({"height": 64}, "give both, or neither"),
        ({"path": None, "rewards": ["ocr"]}, "nothing is evaluated"),
        (
            {"sets": [{"name": "a", "path": "x.csv", "rewards": ["ocr"], "scoring": "unigenbench/en"}]},
            "there are 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(tmp_path: Path, evaluation: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **evaluation)


@pytest.mark.parametrize(
    ("file", "scoring", "message"),
    [
        ("prompts.txt", "unigenbench/en", "has no test points"),
        ("bench.csv", "unigenbench/zh", "set it to unigenbench/en"),
    ],
)
def test_a_table_needs_test_points_in_its_language(tmp_path: Path, file: str, scoring: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        sets_of(tmp_path, sets=[{"name": "b", "path": str(tmp_path / file), "scoring": scoring}])
