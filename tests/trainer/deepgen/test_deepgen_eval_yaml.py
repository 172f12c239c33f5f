"""DeepGen-RL's evaluation YAML: read as it is; what that project passes over is an error that names the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.config import ConfigError
from trainer.migration.deepgen.eval_yaml import EvalDataset, read_eval_yaml

SHIPPED = """
datasets:
  - name: unigenbench_en
    path: unigenbench/test_prompts_en.csv
    cfg_scale: 4.0
    num_inference_steps: 50
    duplicates: 4
    scoring: unigenbench/en
  # - name: unigenbench_zh
  #   path: unigenbench/test_prompts_zh.csv
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "unigenbench").mkdir()
    (tmp_path / "unigenbench/test_prompts_en.csv").write_text("index,prompt,sub_dims\n")
    (tmp_path / "a.txt").write_text("a cat\n")
    return tmp_path


def read(folder: Path, text: str) -> list[EvalDataset]:
    (folder / "eval.yaml").write_text(text)
    return read_eval_yaml(folder / "eval.yaml")


def test_the_shipped_file_is_read_as_it_is(folder: Path) -> None:
    (dataset,) = read(folder, SHIPPED)
    path = folder / "unigenbench/test_prompts_en.csv"
    assert dataset == EvalDataset("unigenbench_en", path, 4, 4.0, 50, "unigenbench/en")


def test_all_but_name_and_path_may_be_left_out_and_the_order_is_the_files(folder: Path) -> None:
    first, second = read(folder, f"datasets: [{{name: b, path: {folder}/a.txt}}, {{name: a, path: a.txt}}]")
    assert first == EvalDataset("b", folder / "a.txt", 1, None, None, None)
    assert second.name == "a"


def test_a_name_that_cannot_be_ours_is_changed_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read(folder, "datasets: [{name: my set, path: a.txt}, {name: my_set, path: a.txt}]")
    assert [each.name for each in found] == ["my_set_2", "my_set"]
    assert "eval.yaml: datasets.0.name: 'my set' is called my_set_2 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scoring", "expected"),
    [
        ("unigenbench", "unigenbench/en"),
        ("unigenbench/zh", "unigenbench/zh"),
        ("{type: unigenbench}", "unigenbench/en"),
        ("{type: unigenbench, language: zh}", "unigenbench/zh"),
        ("{type: unigenbench/zh}", "unigenbench/zh"),
        ("[{type: unigenbench, language: zh}]", "unigenbench/zh"),
        ("null", None),
    ],
)
def test_every_way_to_write_a_scoring(folder: Path, scoring: str, expected: str | None) -> None:
    (dataset,) = read(folder, f"datasets: [{{name: a, path: a.txt, scoring: {scoring}}}]")
    assert dataset.scoring == expected


ENTRY = "datasets: [{{name: a, path: a.txt, {}}}]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ENTRY.format("duplicates: 0"), ["datasets.0.duplicates", "from 1 to 1000", "given: 0"]),
        (ENTRY.format("duplicates: '4'"), ["datasets.0.duplicates", "given: '4'"]),
        (ENTRY.format("duplicates: true"), ["datasets.0.duplicates", "given: True"]),
        (ENTRY.format("cfg_scale: high"), ["datasets.0.cfg_scale", "at least 0", "'high'"]),
        (ENTRY.format("cfg_scale: .inf"), ["datasets.0.cfg_scale", "inf"]),
        (ENTRY.format("num_inference_steps: 0"), ["datasets.0.num_inference_steps", "from 1 to 1000"]),
        (ENTRY.format("num_inference_steps: 2.5"), ["datasets.0.num_inference_steps", "2.5"]),
        (ENTRY.format("scoring: geneval"), ["datasets.0.scoring", "'geneval' is no scoring", "unigenbench/zh"]),
        (ENTRY.format("scoring: unigenbench/de"), ["datasets.0.scoring", "unigenbench/de"]),
        (ENTRY.format("scoring: unigenbench_v2"), ["datasets.0.scoring", "unigenbench_v2"]),
        (ENTRY.format("scoring: {type: unigenbench, lang: zh}"), ["datasets.0.scoring", "lang"]),
        (ENTRY.format("scoring: {type: unigenbench/en, language: zh}"), ["contradict", "'zh'"]),
        (ENTRY.format("scoring: [unigenbench, unigenbench/zh]"), ["datasets.0.scoring"]),
        (ENTRY.format("duplicate: 4"), ["datasets.0.duplicate: unknown key", "duplicates"]),
        ("datasets: [{name: a, path: b.txt}]", ["datasets.0.path: no file at", "from the YAML file"]),
        ("datasets: [{name: a, path: a.json}]", ["datasets.0.path", "none of .txt, .jsonl, .parquet, .csv"]),
        ("datasets: [{path: a.txt}]", ["datasets.0.name", "None is no text"]),
        ("datasets: [{name: a}]", ["datasets.0.path", "None is no text"]),
        ("datasets: [{name: a, path: a.txt}, {name: a, path: a.txt}]", ["datasets.1.name: 'a' comes twice"]),
        ("datasets: [a.txt]", ["datasets.0: 'a.txt' is not an entry"]),
        ("datasets: {a: a.txt}", ["datasets: must be a list"]),
        ("datasets: []", ["datasets: must be a list", "at least one"]),
        ("data: []", ["data: unknown key", "`datasets`"]),
        ("[]", ["not a mapping"]),
    ],
)
def test_what_was_passed_over_is_an_error(folder: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        read(folder, text)
    for word in words:
        assert word in str(raised.value), str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file at .*eval\.yaml"):
        read_eval_yaml(tmp_path / "eval.yaml")
