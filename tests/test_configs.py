"""Every recipe in configs/ loads and passes its cross-checks, and what it names in the repository is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards import signs
from trainer.config import Config
from trainer.config.file import dump_config
from trainer.data.datasets import check_disjoint, load_train_prompts
from trainer.evaluation.sets import load_sets
from trainer.migration import load_recipe
from trainer.migration.deepgen.dataset_yaml import read_dataset_yaml
from trainer.migration.deepgen.eval_yaml import read_eval_yaml
from trainer.migration.deepgen.variables import VARIABLES

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started from the repository, as train.sh does, with none of the variables that a recipe may read."""
    monkeypatch.chdir(ROOT)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_recipes_of_the_readme_are_there() -> None:
    wanted = {"quickstart", "quickstart_base", "vlm_quickstart", "vlm_base", "pair_quickstart", "pair_base"}
    wanted |= {"unified_sft_quickstart", "unified_base", "unified_rl_quickstart"}
    wanted |= {
        f"{name}{gpus}"
        for name in (
            "sd35_medium_ocr",
            "sd35_medium_geneval",
            "sd35_medium_pickscore",
            "sd35_medium_multi",
            "deepgen_mr_grpo",
        )
        for gpus in ("", "_1gpu")
    }
    assert wanted <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_says_what_it_is(path: Path, tmp_path: Path) -> None:
    config = load_recipe(path, Config)
    assert path.read_text(encoding="utf-8").startswith("# "), "a recipe begins with what it is and how to run it"
    again = tmp_path / "resolved.yaml"
    again.write_text(dump_config(config), encoding="utf-8")
    assert load_recipe(again, Config) == config


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem.endswith("_1gpu")], ids=lambda path: path.stem)
def test_a_recipe_for_one_gpu_needs_no_deepspeed_and_trains_adapters(path: Path) -> None:
    config = load_recipe(path, Config)
    assert config.distributed.deepspeed is None
    assert config.policy.model_dump()["lora"] is not None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipes_prompts_are_good_and_its_held_out_ones_new(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the recipes whose prompts are in the repository, or written by this program."""
    config = load_recipe(path, Config)
    held = [path for _, path in config.evaluation.prompt_files()]
    named = (*held, *(d.path for d in config.data.train))
    if named and set(named) == {"data/signs"}:
        monkeypatch.chdir(tmp_path)
        signs.write(Path("data/signs"))
    elif not held or not all(name.startswith("assets/") for name in named):
        pytest.skip("its prompts are not part of the repository")
    train = load_train_prompts(config.data)
    for each in load_sets(config, ()):
        check_disjoint([p for d in train for p in d.prompts], each.prompts, may_share=config.evaluation.may_share)
    if config.program == "rl":  # others make what they train on
        assert sum(len(d.prompts) for d in train) >= config.sampling.prompts_per_step


def test_the_data_set_files_of_deepgen_are_in_its_format(tmp_path: Path) -> None:
    """The evaluation file is read beside stand-ins for the prompts, which are not part of the repository."""
    train = read_dataset_yaml(ROOT / "configs/datasets/deepgen_train.yaml")
    assert [entry["weight"] for entry in train["train"]] == [3.0, 1.0, 1.0]
    (tmp_path / "configs/datasets").mkdir(parents=True)
    copy = tmp_path / "configs/datasets/eval.yaml"
    copy.write_text((ROOT / "configs/datasets/deepgen_eval.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "data/unigenbench").mkdir(parents=True)
    (tmp_path / "data/unigenbench/test_prompts_en.csv").touch()
    (dataset,) = read_eval_yaml(copy)
    assert (dataset.duplicates, dataset.scoring) == (4, "unigenbench/en")
