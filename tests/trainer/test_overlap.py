"""Prompts that training and evaluation have in common: left out and said, refused, or admitted, as `data.overlap` says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.trainer_runs import run_trainer
from trainer.config import Config, RewardsConfig
from trainer.config.data import DataConfig
from trainer.data.overlap import find_overlaps, readers_of_targets
from trainer.data.prompts import DataError
from trainer.doctor.prompts import check_data
from trainer.migration.deepgen.recipe_files import translate_files
from trainer.programs.rl import read_material
from trainer.types import Prompt

SERVICES = {
    "ocr": {"module": "ocr"},
    "texts": {"module": "ocr"},
    "hps": {"module": "hps"},
    "rules": {"module": "rules"},
    "mine": {"module": "rules", "args": {"functions": "mine.py"}},
    "far": {"urls": ("http://127.0.0.1:9",)},
    "far_ocr": {"urls": ("http://127.0.0.1:9",)},
}
COLUMNS = {
    "text": {"service": "texts"},
    "hps": {"service": "hps"},
    "color": {"service": "rules", "reward": "color_match"},
    "mine": {"service": "mine"},
    "own_color": {"service": "mine", "reward": "color_match"},
    "pickscore": {"service": "far"},
    "strict": {"service": "far", "reward": "strict"},
    "read": {"service": "far_ocr"},
}


def make_config(tmp_path: Path, data: dict[str, Any], evaluation: dict[str, Any], **changes: Any) -> Config:
    raw = {
        "run_name": "run",
        "output_dir": str(tmp_path / "outputs"),
        "max_steps": 10,
        "sampling": {"prompts_per_step": 2, "group_size": 2, "micro_batch_size": 4},
        "rewards": {"launch": "local", "services": SERVICES, "columns": COLUMNS},
        "data": data,
        "evaluation": evaluation,
        **changes,
    }
    translate_files(raw)
    return Config.model_validate(raw, strict=True)


def pickscore(tmp_path: Path, weights: dict[str, float]) -> Config:
    """A folder as flow_grpo's: one prompt is in both splits, and `The` is quoted in both in other prompts."""
    (tmp_path / "pickscore").mkdir()
    (tmp_path / "pickscore" / "train.txt").write_text('a cat\nposter of "The" end\na dog\n')
    (tmp_path / "pickscore" / "test.txt").write_text('A  cat\nlogo with "the" sun\n')
    path = str(tmp_path / "pickscore")
    return make_config(tmp_path, {"train": ({"path": path, "rewards": weights},)}, {"path": path, "rewards": ("hps",)})


def test_which_rewards_look_for_targets() -> None:
    rewards = RewardsConfig.model_validate({"launch": "local", "services": SERVICES, "columns": COLUMNS})
    assert readers_of_targets(rewards) == {"text", "mine", "strict", "read"}


def test_quoted_fragments_count_only_where_a_reward_reads_them(tmp_path: Path) -> None:
    data = read_material(pickscore(tmp_path, {"pickscore": 1.0}))
    assert [prompt.text for prompt in data.datasets[0].prompts] == ['poster of "The" end', "a dog"]
    assert [(each.what, each.train.text) for each in data.overlap.left_out] == [("same prompt", "a cat")]


def test_where_a_reward_reads_them_they_are_left_out_too(tmp_path: Path) -> None:
    data = read_material(pickscore(tmp_path, {"pickscore": 0.5, "text": 0.5}))
    assert [prompt.text for prompt in data.datasets[0].prompts] == ["a dog"]


def test_a_reward_of_weight_nought_trains_on_nothing(tmp_path: Path) -> None:
    assert len(read_material(pickscore(tmp_path, {"pickscore": 0.5, "text": 0.0})).datasets[0].prompts) == 2


def own_files(tmp_path: Path, **data: Any) -> Config:
    rows = [{"prompt": 'a sign "SALE"', "targets": ["SALE"]}, {"prompt": "a cat"}, {"prompt": "a dog"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "heldout.jsonl").write_text(json.dumps({"prompt": 'a mug "Sale"', "targets": ["sale"]}) + "\n")
    return make_config(
        tmp_path,
        {"train": ({"path": str(tmp_path / "train.jsonl"), "rewards": {"text": 1.0}},), **data},
        {"path": str(tmp_path / "heldout.jsonl")},
    )


def test_our_own_files_are_refused_with_both_remedies(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_material(own_files(tmp_path))
    for words in ("1 of 1 held-out", "`data.overlap: drop` to leave 1 training", "`evaluation.may_share: targets`"):
        assert words in str(raised.value)


def test_what_is_asked_for_is_done_to_our_own_files_too(tmp_path: Path) -> None:
    assert len(read_material(own_files(tmp_path, overlap="drop")).datasets[0].prompts) == 2
    data = read_material(own_files(tmp_path, overlap="allow"))
    assert len(data.datasets[0].prompts) == 3 and not data.overlap.left_out
    assert "1 of 3 training prompts are also held out and stay" in str(data.overlap.sentence(3))


def test_foreign_files_can_be_refused(tmp_path: Path) -> None:
    config = pickscore(tmp_path, {"hps": 1.0})
    strict = config.model_copy(update={"data": config.data.model_copy(update={"overlap": "refuse"})})
    with pytest.raises(DataError, match="same prompt 'a cat'"):
        read_material(strict)


def deepgen(tmp_path: Path, **changes: Any) -> Config:
    """A training and an evaluation YAML as DeepGen-RL's: of 6 training prompts 2 are held out."""
    (tmp_path / "t.txt").write_text("one\ntwo\nthree\nfour\n")
    (tmp_path / "u.txt").write_text("five\nsix\n")
    entry = "  - {{name: {0}, path: {0}.txt, rewards: [{{text: 1.0}}], sample_weight: 2.0}}\n"
    (tmp_path / "train.yaml").write_text("datasets:\n" + entry.format("t") + entry.format("u"))
    (tmp_path / "held.txt").write_text("Two\nsix\nseven\n")
    (tmp_path / "eval.yaml").write_text("datasets: [{name: held, path: held.txt}]")
    return make_config(
        tmp_path,
        {"dataset_config": str(tmp_path / "train.yaml")},
        {"dataset_config": str(tmp_path / "eval.yaml")},
        **changes,
    )


def test_their_two_files_start_together(tmp_path: Path) -> None:
    config = deepgen(tmp_path)
    data = read_material(config)
    assert [[prompt.text for prompt in each.prompts] for each in data.datasets] == [["one", "three", "four"], ["five"]]
    assert [each.weight for each in data.datasets] == [6.0, 2.0], (
        "sample_proportional goes by the prompts that are left"
    )
    assert config.data.overlap == "drop", "the run's config.yaml says so"
    found = [finding for finding in check_data(config) if finding.status == "WARN"]
    assert "2 of 6 training prompts are also held out and are left out of training" in found[0].message
    assert "t 1, u 1" in found[0].message


def test_what_the_recipe_says_holds_for_their_file(tmp_path: Path) -> None:
    deepgen(tmp_path)
    raw = {"data": {"dataset_config": str(tmp_path / "train.yaml"), "overlap": "refuse"}}
    translate_files(raw)
    assert DataConfig.model_validate(raw["data"]).overlap == "refuse"


def test_texts_of_a_supervised_loss_are_left_out_too(tmp_path: Path) -> None:
    (tmp_path / "sft.json").write_text(json.dumps([{"image_path": "a.png", "txt": t} for t in ("seven", "eight")]))
    config = deepgen(tmp_path, sft={"path": str(tmp_path / "sft.json")})
    assert read_material(config).overlap.texts() == {"two", "six", "seven"}


def test_a_set_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    config = deepgen(tmp_path)
    (tmp_path / "u.txt").write_text("six\nTWO\n")
    with pytest.raises(DataError, match="data set 'u': all of its 2 prompts are held out, too"):
        read_material(config)


def test_each_training_prompt_is_found_once() -> None:
    train = [Prompt("same", "a cat", targets=("X",))]
    heldout = [Prompt("h", "a cat"), Prompt("same", "other"), Prompt("i", "new", targets=("x",))]
    assert [each.what for each in find_overlaps(train, heldout)] == ["same prompt"]


def test_a_run_says_and_lists_what_it_leaves_out(tmp_path: Path, recipe: Callable[..., Path]) -> None:
    config = recipe(max_steps=1, data__overlap="drop")
    raw = yaml.safe_load(config.read_text())
    held = [json.loads(line)["prompt"] for line in Path(raw["evaluation"]["path"]).read_text().splitlines()]
    own = tmp_path / "own.txt"
    own.write_text("".join(f"{text}\n" for text in [held[0], *(f'the word "W{i}" in red' for i in "ACDEFGHJKL")]))
    raw["data"]["train"] = [raw["data"]["train"][0] | {"path": str(own), "name": "own"}]
    config.write_text(yaml.safe_dump(raw))
    done = run_trainer(config)
    assert "1 of 11 training prompts are also held out and are left out of training" in done.stdout + done.stderr
    (listed,) = (Path(raw["output_dir"]) / raw["run_name"] / "left_out.jsonl").read_text().splitlines()
    assert json.loads(listed) | {"id": "", "heldout_id": "", "heldout_dataset": ""} == {
        "dataset": "own",
        "id": "",
        "prompt": held[0],
        "why": "same prompt",
        "heldout_dataset": "",
        "heldout_id": "",
    }
