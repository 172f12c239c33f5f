"""DeepGen-RL's training YAML as it is: what it means here, equal shares, and its silent defects as errors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from trainer.config import Config, ConfigError, DataConfig
from trainer.config.file import dump_config
from trainer.data.datasets import DataError, load_train_prompts
from trainer.data.sampler import PromptSampler
from trainer.migration import load_recipe
from trainer.migration.deepgen.recipe_files import translate_files

SHIPPED = """
sampling_mode: sample_proportional

datasets:
  - name: text
    path: text.txt
    sample_weight: 3.0
    rewards:
      - unifiedreward_think: 0.2
      - clip_sim: 0.1
      - ocr: 0.7
  - name: general
    path: general.txt
    sample_weight: 1.0
    rewards:
      - unifiedreward_think: 0.7
      - clip_sim: 0.3
"""
RECIPE = """
run_name: test
max_steps: 10
sampling: {prompts_per_step: 4, group_size: 4, micro_batch_size: 4}
policy: {type: tiny}
rewards:
  services: {a: {urls: ["http://127.0.0.1:1"]}}
  columns: {unifiedreward_think: {service: a}, ocr: {service: a}}
data:
  dataset_config: DATASETS
  ignore_rewards: [clip_sim]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("".join(f'a sign "{i}"\n' for i in range(20)))
    (tmp_path / "general.txt").write_text("".join(f"a cat {i}\n" for i in range(100)))
    (tmp_path / "rows.jsonl").write_text('{"caption": "a dog", "source": "x"}\n\n{"prompt": "a cow", "source": "y"}\n')
    return tmp_path


def data_of(folder: Path, text: str, **fields: object) -> DataConfig:
    (folder / "train.yaml").write_text(text)
    raw = {"data": {"dataset_config": str(folder / "train.yaml"), **fields}}
    translate_files(raw)
    return DataConfig.model_validate(raw["data"])


def test_the_shipped_file_becomes_our_training_sets(folder: Path) -> None:
    text, general = data_of(folder, SHIPPED).train
    assert (text.name, text.path, text.weight) == ("text", str(folder / "text.txt"), 3.0)
    assert text.rewards == {"unifiedreward_think": 0.2, "clip_sim": 0.1, "ocr": 0.7}
    assert (general.weight, general.rewards) == (1.0, {"unifiedreward_think": 0.7, "clip_sim": 0.3})


def test_a_recipe_names_the_file_and_its_resolved_form_is_complete(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train.yaml").write_text(SHIPPED)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("DATASETS", str(folder / "train.yaml")))
    config = load_recipe(recipe, Config)
    assert [d.rewards for d in config.data.train] == [
        {"unifiedreward_think": 0.2, "ocr": 0.7},
        {"unifiedreward_think": 0.7},
    ]
    assert config.data.sampling_mode == "sample_proportional"
    said = capsys.readouterr().err
    assert (
        "data.train.0 (text) does without clip_sim" in said and "data.train.1 (general) does without clip_sim" in said
    )
    recipe.write_text(dump_config(config))
    assert load_recipe(recipe, Config) == config
    assert capsys.readouterr().err == ""


def test_a_reward_without_a_service_is_refused_with_both_remedies(folder: Path) -> None:
    (folder / "train.yaml").write_text(SHIPPED)
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        RECIPE.replace("DATASETS", str(folder / "train.yaml")).replace("  ignore_rewards: [clip_sim]\n", "")
    )
    with pytest.raises(ConfigError) as raised:
        load_recipe(recipe, Config)
    assert "'clip_sim', which no entry of rewards.columns serves (there: ocr, unifiedreward_think)" in str(raised.value)
    assert "data.ignore_rewards" in str(raised.value)


@pytest.mark.parametrize(
    ("mode", "shares"),
    [
        ("sample_proportional", {"text": 3 * 20 / (3 * 20 + 100), "general": 100 / (3 * 20 + 100)}),
        ("weight_only", {"text": 3 / 4, "general": 1 / 4}),
    ],
)
def test_shares_of_the_draws_are_theirs(folder: Path, mode: str, shares: dict[str, float]) -> None:
    """DeepGen-RL draws set d with probability N_d w_d / sum(N w), or w_d / sum(w); ours keeps these shares exactly."""
    datasets = load_train_prompts(data_of(folder, SHIPPED.replace("sample_proportional", mode)))
    sampler = PromptSampler(datasets, prompts_per_step=4, seed=1, rank=0, world=1)
    drawn = Counter(prompt.dataset for _ in range(200) for prompt in sampler.draw())
    for name, share in shares.items():
        assert abs(drawn[name] - 800 * share) <= 1


def test_equal_weights_are_a_share_by_size_in_both_of_their_forms(folder: Path) -> None:
    """All weights 1 and no mode: every prompt is as likely as any other."""
    datasets = load_train_prompts(
        data_of(folder, SHIPPED.replace("3.0", "1.0").replace("sampling_mode: sample_proportional", ""))
    )
    assert [(d.name, d.weight) for d in datasets] == [("text", 20.0), ("general", 100.0)]


def test_their_jsonl_is_read_with_prompt_or_caption(folder: Path) -> None:
    config = data_of(folder, "datasets: [{path: rows.jsonl, rewards: [{ocr: 1}]}]")
    (dataset,) = load_train_prompts(config)
    assert (dataset.name, [p.text for p in dataset.prompts]) == ("rows", ["a dog", "a cow"])
    assert dataset.prompts[0].metadata == {"source": "x"}


def test_a_name_that_cannot_be_ours_is_changed_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["my set", "my_set", "my/set", "训练", "a.b-c_d", "x" * 101, ""]
    entries = [{"path": f"{i}.txt", "name": name, "rewards": [{"ocr": 1.0}]} for i, name in enumerate(names)]
    found = data_of(folder, yaml.safe_dump({"datasets": [*entries, {"path": "set.txt", "rewards": [{"ocr": 1.0}]}]}))
    assert [each.dataset_name for each in found.train] == [
        "my_set_2",
        "my_set",
        "my_set_3",
        "set__",
        "a.b-c_d",
        "x" * 90,
        "set_2",
        "set",
    ]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5
    assert said[0] == (
        f"config: {folder / 'train.yaml'}: datasets.0.name: 'my set' is called my_set_2 here; names hold letters, digits, "
        "dot, dash and underscore"
    )


def test_a_missing_prompt_file_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no prompt file at .*/none\.txt"):
        load_train_prompts(data_of(folder, "datasets: [{path: none.txt, rewards: [{ocr: 1}]}]"))


def entry(rewards: str, more: str = "") -> str:
    return f"datasets: [{{path: text.txt, rewards: {rewards}{more}}}]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (entry("{ocr: 0.7}"), ["datasets.0.rewards: {'ocr': 0.7} is not a list", "`- ocr: 0.7`"]),
        (entry("[]"), ["datasets.0.rewards: [] is not a list"]),
        (entry("[ocr]"), ["datasets.0.rewards: 'ocr' has no weight"]),
        (entry("[{ocr: much}]"), ["ocr: 'much' is no number"]),
        (entry("[{ocr: true}]"), ["ocr: True is no number"]),
        (entry("[{ocr: 1}, {ocr: 2}]"), ["ocr comes twice, with 1 and 2"]),
        (entry("[{ocr: 1}]", ", sample_weight: 0"), ["datasets.0.sample_weight: must be a number above 0; given: 0"]),
        (entry("[{ocr: 1}]", ", sample_weight: '2'"), ["datasets.0.sample_weight", "'2'"]),
        (entry("[{ocr: 1}]", ", weight: 2"), ["datasets.0.weight: unknown key", "sample_weight"]),
        (entry("[{ocr: 1}]", ", name: 7"), ["datasets.0.name: 7 is no text"]),
        ("datasets: [{rewards: [{ocr: 1}]}]", ["datasets.0.path: None is no path"]),
        ("datasets: [text.txt]", ["datasets.0: 'text.txt' is not an entry"]),
        ("datasets: {}", ["datasets: must be a list"]),
        ("sampling_mode: uniform\ndatasets: []", ["sampling_mode: 'uniform' is neither"]),
        ("dataset: []", ["dataset: unknown key"]),
    ],
)
def test_a_defect_is_refused_with_the_entry_and_the_field(folder: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as raised:
        data_of(folder, text)
    for word in [str(folder / "train.yaml"), *words]:
        assert word in str(raised.value), str(raised.value)


@pytest.mark.parametrize("field", ["train", "sampling_mode"])
def test_the_file_and_what_it_replaces_are_not_both_taken(folder: Path, field: str) -> None:
    given = {"train": ({"path": "a.txt", "rewards": {"ocr": 1.0}},), "sampling_mode": "weight_only"}[field]
    with pytest.raises(ValueError, match=rf"data\.dataset_config and data\.{field} are both given"):
        data_of(folder, SHIPPED, **{field: given})
