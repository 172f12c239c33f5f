"""YAMLs of NanoVLM-Lab: what each key becomes, what does nothing and why, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.__main__ import main
from trainer.config import Config, ConfigError
from trainer.config.file import checked
from trainer.config.vlm import VlmConfig
from trainer.migration import load_recipe
from trainer.migration.nanovlm_lab.command import final_model, from_nanovlm_lab
from trainer.migration.nanovlm_lab.keys import LORA, SECTIONS, TYPES, Key, TrainingType
from trainer.migration.nanovlm_lab.reading import read_lab
from trainer.migration.nanovlm_lab.translation import translate
from trainer.migration.recipe_text import Line, nested

REWARDS = """
import re


def read_answer(text):
    return re.findall("<answer>(.*?)</answer>", text)


def accuracy_reward(prompts, completions, completion_ids, answer, **kwargs):
    return [None if a is None else float(a in read_answer(c)) for c, a in zip(completions, answer)]


def format_reward(completions, **kwargs):
    return [float(c.count("<answer>") == 1) for c in completions]


def _helper(completions):
    return completions
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Their folders with forty rows, a file of rewards, one of preprocessing, and a model's folder."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "rlvlm").mkdir()
    rows = [{"prompt": f"what color is {n} ?", "answer": "red", "chosen": "red", "rejected": "blue"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rlvlm" / "reward_functions.py").write_text(REWARDS)
    (tmp_path / "rlvlm" / "preprocessing.py").write_text("def first(row):\n    return row\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"lm_hidden_dim": 64}')
    return tmp_path


def write(project: Path, training: str, **changes: Any) -> Path:
    """A YAML of theirs; `section__key` sets a key, a value of ... leaves it out."""
    tree: dict[str, Any] = {
        "training_type": training,
        "model": {"model_name_or_path": "model"},
        "dataset": {"train_data_path": "rows.jsonl"},
        "training": {},
    }
    if training == "grpo":
        tree["dataset"]["reward_functions_fn"] = "reward_functions.py"
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if value is ...:
            tree[section].pop(name)
        elif name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    path = project / "configs" / f"{training}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def lines_of(path: Path, gpus: int = 1) -> tuple[dict[str, Line], list[str]]:
    return translate(read_lab(path, yaml.safe_load(path.read_text())), gpus)


def values(path: Path, gpus: int = 1) -> dict[str, Any]:
    return {field: line.value for field, line in lines_of(path, gpus)[0].items()}


@pytest.mark.parametrize("training", TYPES)
def test_a_short_yaml_is_a_whole_recipe(project: Path, training: TrainingType) -> None:
    """What it leaves out has their defaults, and the recipe passes our own checks."""
    path = write(project, training)
    config = load_recipe(path, Config)
    assert config.program == {"sft": "supervised", "dpo": "preference", "grpo": "rl"}[training]
    assert config.policy.type == "vlm" and config.run_dir == project / f"{training}_output"
    assert config.seed == 42 and config.optim.weight_decay == 0.01 and config.optim.ema_decay == 0


def test_defaults_of_sft(project: Path) -> None:
    found = values(write(project, "sft"))
    rows = str(project / "rows.jsonl")
    expected = {
        "conversations.path": rows,
        "conversations.split": "train",
        "conversations.hold_out": 0.2,
        "conversations.batch_size": 4,
        "conversations.micro_batch_size": 4,
        "conversations.max_tokens": 8192,
        "optim.lr": 5e-3,
        "optim.groups.projector.lr": 5e-3,
        "optim.groups.vision.lr": 5e-5,
        "optim.groups.language.lr": 5e-5,
        "optim.schedule": "cosine",
        "max_steps": 24,  # 3 epochs of the 32 rows that are not held out, 4 at once
        "optim.warmup_steps": 3,
        "checkpoint.save_every": 500,
        "checkpoint.keep": 3,
        "evaluation.every": 500,
        "policy.pretrained": str(project / "model"),
        "policy.dtype": "bfloat16",
        "logging.report_to": ["tensorboard"],
        "distributed.device": "auto",
    }
    assert {field: found.get(field) for field in expected} == expected


def test_defaults_of_dpo(project: Path) -> None:
    found = values(write(project, "dpo"))
    expected = {
        "preferences.type": "answers",
        "preferences.batch_size": 4,
        "objective.type": "dpo",
        "objective.kind": "sigmoid",
        "objective.beta": 0.1,
        "optim.lr": 5e-5,
        "max_steps": 24,
    }
    assert {field: found.get(field) for field in expected} == expected
    assert "objective.smoothing" not in found and "preferences.max_tokens" not in found


def test_defaults_of_grpo(project: Path) -> None:
    found = values(write(project, "grpo"))
    functions = f"{project / 'rlvlm' / 'reward_functions.py'}:accuracy_reward,format_reward"
    expected = {
        "sampling.type": "tokens",
        "sampling.prompts_per_step": 4,
        "sampling.group_size": 4,
        "sampling.micro_batch_size": 4,
        "sampling.max_new_tokens": 256,
        "sampling.temperature": 1.0,
        "sampling.top_p": 1.0,
        "sampling.top_k": 0,
        "policy.max_prompt_tokens": 512,
        "objective.type": "grpo",
        "objective.level": "token",
        "objective.clip_range": [-0.2, 0.2],
        "objective.kl_beta": 0.1,
        "objective.kl_importance": False,
        "objective.mask_truncated": True,
        "advantage.type": "grpo",
        "optim.lr": 5e-6,
        "optim.schedule": "linear",
        "max_steps": 8,  # 1 epoch of 32 rows, 1 at once, 4 times
        "checkpoint.save_every": 100,
        "evaluation.every": 50,
        "evaluation.batch_size": 1,
        "evaluation.num_pictures": 5,
        "rewards.services.rules.args": {"functions": functions},
        "rewards.roles.accuracy": "accuracy_reward",
        "rewards.roles.format": "format_reward",
    }
    assert {field: found.get(field) for field in expected} == expected
    (train,) = found["data.train"]
    assert train["format"] == "questions" and found["evaluation.hold_out"] == 0.2
    assert train["rewards"] == {"accuracy_reward": 1.0, "format_reward": 1.0}


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("sft", {"model__use_lora": True}, {"policy.lora.rank": 16, "policy.lora.alpha": 16, "optim.lr": 5e-4}),
    ("dpo", {"model__use_lora": True, "model__lora_config": {"r": 4}}, {"policy.lora.rank": 4, "optim.lr": 5e-5}),
    ("sft", {"training__lr_vision_backbone": 0}, {"policy.freeze": ["vision"], "optim.groups.vision.lr": None}),
    ("sft", {"training__learning_rate": "5e-6", "training__lr_mp": "1e-3"}, {"optim.groups.projector.lr": 1e-3}),
    ("sft", {"training__max_steps": 7}, {"max_steps": 7, "optim.warmup_steps": 1}),
    ("sft", {"training__max_steps": 1}, {"max_steps": 1, "optim.warmup_steps": 0}),
    ("sft", {"training__num_train_epochs": 0.5}, {"max_steps": 4}),
    ("sft", {"dataset__max_samples": 10, "training__num_train_epochs": 1}, {"max_steps": 2}),
    ("sft", {"dataset__train_split": "train[:50%]"}, {"conversations.split": "train[:50%]", "max_steps": 12}),
    ("sft", {"dataset__preprocessing_fn": "preprocessing.py"}, {"conversations.preprocessing": "PREPROCESSING"}),
    ("dpo", {"dataset__rename_columns": {"q": "prompt"}}, {"preferences.rename_columns": {"q": "prompt"}}),
    ("dpo", {"dataset__eval_data_path": "rows.jsonl"}, {"preferences.hold_out": None, "max_steps": 30}),
    ("sft", {"training__gradient_accumulation_steps": 2}, {"conversations.batch_size": 8, "max_steps": 12}),
    ("sft", {"training__lr_scheduler_type": "constant"}, {"optim.schedule": "constant", "optim.warmup_steps": 0}),
    ("sft", {"training__save_strategy": "epoch"}, {"checkpoint.save_every": 8}),
    ("sft", {"training__save_strategy": "no", "training__eval_strategy": "no"}, {"checkpoint.save_every": 24}),
    ("sft", {"training__bf16": False}, {"policy.dtype": "float32"}),
    ("sft", {"training__bf16": False, "training__fp16": True}, {"policy.dtype": "bfloat16"}),
    ("sft", {"training__device": "cpu"}, {"distributed.device": "cpu"}),
    ("sft", {"training__seed": 7}, {"seed": 7}),
    ("sft", {"logging__use_wandb": True, "logging__wandb_project": "p"}, {"logging.project": "p"}),
    ("sft", {"logging__report_to": ["none"]}, {"logging.report_to": []}),
    ("dpo", {"dpo__dpo_loss_type": "ipo"}, {"objective.kind": "ipo_sum"}),
    ("dpo", {"dpo__dpo_loss_type": "robust", "dpo__label_smoothing": 0.1}, {"objective.smoothing": 0.1}),
    ("dpo", {"dpo__dpo_loss_type": "hinge", "dpo__beta": 0.5}, {"objective.kind": "hinge", "objective.beta": 0.5}),
    ("grpo", {"grpo__epsilon_high": 0.28}, {"objective.clip_range": [-0.2, 0.28]}),
    ("grpo", {"grpo__loss_type": "dapo", "grpo__delta": 10.0}, {"objective.type": "dapo", "objective.delta": 10.0}),
    (
        "grpo",
        {"grpo__loss_type": "sapo", "grpo__sapo_temperature_pos": 1.0, "grpo__sapo_temperature_neg": 1.05},
        {"objective.tau": [1.0, 1.05], "objective.clip_range": None},
    ),
    ("grpo", {"grpo__loss_type": "cispo", "grpo__epsilon_high": 5}, {"objective.cap": 5, "objective.clip_range": None}),
    ("grpo", {"grpo__importance_sampling_level": "sequence"}, {"objective.level": "sequence"}),
    ("grpo", {"grpo__scale_rewards": "batch"}, {"advantage.type": "grpo_global_std"}),
    ("grpo", {"grpo__scale_rewards": "none"}, {"advantage.type": "dr_grpo"}),
    ("grpo", {"grpo__beta": 0.0}, {"objective.kl_beta": 0.0, "objective.kl_importance": None}),
    ("grpo", {"grpo__top_p": 0.9, "grpo__top_k": 40}, {"sampling.top_p": 0.9, "sampling.top_k": 40}),
    ("grpo", {"grpo__max_prompt_length": 64, "grpo__max_completion_length": 8}, {"policy.max_prompt_tokens": 64}),
    ("grpo", {"grpo__mask_truncated_completions": False}, {"objective.mask_truncated": False}),
    ("grpo", {"training__lr_scheduler_type": "cosine"}, {"optim.schedule": "cosine"}),
    ("grpo", {"training__max_grad_norm": 0.5}, {"optim.max_grad_norm": 0.5}),
    ("grpo", {"training__save_total_limit": 1}, {"checkpoint.keep": 1}),
]


@pytest.mark.parametrize(("training", "changes", "expected"), CASES, ids=[f"{c[0]}-{next(iter(c[1]))}" for c in CASES])
def test_a_key_becomes_a_field(project: Path, training: str, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    """And the recipe passes our own checks, whatever the key."""
    path = write(project, training, **changes)
    found = values(path)
    wanted = {
        k: str(project / "rlvlm" / "preprocessing.py") if v == "PREPROCESSING" else v for k, v in expected.items()
    }
    assert {field: found.get(field) for field in wanted} == wanted
    checked(path, Config, nested(lines_of(path)[0]))


def test_several_devices_take_more_rows_a_step(project: Path) -> None:
    found = values(write(project, "grpo"), gpus=2)
    assert found["sampling.prompts_per_step"] == 8 and found["max_steps"] == 4
    assert values(write(project, "sft"), gpus=2)["conversations.batch_size"] == 8


def test_held_out_prompts_of_their_own_file_are_a_set(project: Path) -> None:
    found = values(write(project, "grpo", dataset__eval_data_path="rows.jsonl", dataset__eval_split="test[:5]"))
    (held_out,) = found["evaluation.sets"]
    assert held_out == {
        "name": "eval",
        "path": str(project / "rows.jsonl"),
        "format": "questions",
        "split": "test[:5]",
    }
    assert "evaluation.hold_out" not in found


@pytest.mark.parametrize(
    ("training", "changes", "words"),
    [
        ("sft", {"training__learing_rate": 1e-4}, "training.learing_rate is unknown: did you mean learning_rate"),
        ("sft", {"model__lora_config": {"rank": 4}}, "model.lora_config.rank is unknown: known are: r, lora_alpha"),
        ("sft", {"trainig": {}}, "trainig is no section: did you mean training"),
        ("sft", {"training__num_generations": 4}, "training.num_generations is unknown: it belongs under grpo"),
        ("grpo", {"grpo__beta": "much"}, "grpo.beta = 'much' must be a number"),
        ("grpo", {"grpo__num_generations": 2.5}, "grpo.num_generations = 2.5 must be a whole number"),
        ("sft", {"model__use_lora": "yes"}, "model.use_lora = 'yes' must be true or false"),
        ("sft", {"model": ["a"]}, r"model = \['a'\] must be a section with fields"),
        ("ppo", {}, "training_type = 'ppo' is none of sft, dpo, grpo"),
        ("sft", {"dataset__train_data_path": ...}, "dataset.train_data_path is missing"),
        ("sft", {"model__model_name_or_path": ...}, "model.model_name_or_path is missing"),
        (
            "sft",
            {"dataset__train_data_path": "no/such/rows.jsonl"},
            r"no/such/rows\.jsonl' is not here: it was looked for",
        ),
        ("sft", {"dataset__preprocessing_fn": "no.py"}, r"dataset\.preprocessing_fn = 'no\.py' is not here"),
        ("grpo", {"dataset__reward_functions_fn": ...}, "dataset.reward_functions_fn is missing"),
        ("grpo", {"dataset__reward_functions_fn": "preprocessing.py"}, "no function with a parameter `completions`"),
        ("grpo", {"grpo__num_generations": 1}, "num_generations = 1 makes groups without a comparison"),
        ("grpo", {"grpo__loss_type": "sapo"}, "sapo_temperature_neg must both be given"),
        ("grpo", {"grpo__loss_type": "cispo"}, "epsilon_high = 0.2 is the largest ratio itself"),
        ("grpo", {"grpo__loss_type": "ppo"}, "loss_type = 'ppo' is none of grpo, bnpo"),
        ("grpo", {"grpo__scale_rewards": "all"}, "scale_rewards = 'all' is none of group, batch, none"),
        ("grpo", {"grpo__importance_sampling_level": "word"}, "importance_sampling_level = 'word' is none of token"),
        ("dpo", {"dpo__dpo_loss_type": "kto"}, "dpo_loss_type = 'kto' is none of sigmoid, hinge, ipo, robust"),
        ("sft", {"training__lr_scheduler_type": "polynomial"}, "lr_scheduler_type = 'polynomial' is not offered"),
        ("sft", {"training__save_strategy": "best"}, "save_strategy = 'best' is none of steps, epoch, no"),
        ("sft", {"training__eval_strategy": "best"}, "eval_strategy = 'best' is none of steps, epoch, no"),
        ("sft", {"logging__report_to": ["mlflow"]}, "report_to: mlflow is none of tensorboard, wandb, swanlab"),
        ("sft", {"model__use_lora": True, "model__lora_config": {"use_dora": True}}, "DoRA is not offered"),
        ("sft", {"training__num_train_epochs": 0}, "num_train_epochs = 0 must be above 0"),
        ("sft", {"dataset__train_split": "train[:0]"}, "the rows are counted, which failed"),
        (
            "sft",
            {"training__lr_mp": 0, "training__lr_vision_backbone": 0, "training__lr_language_backbone": 0},
            "are all 0: nothing is trained",
        ),
    ],
)
def test_what_cannot_be_used_is_named(project: Path, training: str, changes: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe(write(project, training, **changes), Config)


def _value(key: Key, training: TrainingType) -> Any:
    """A value that a file may give a key: the default, or what stands for it."""
    default = key.default_of(training)
    return default if default is not None else {"text": "x", "whole": 3, "number": 1.5}[key.kind]


@pytest.mark.parametrize("training", TYPES)
def test_every_key_acts_or_is_said(project: Path, training: TrainingType) -> None:
    """A key that the file names either has a field in our recipe or a sentence, in every kind of training."""
    for section, keys in {**SECTIONS, "lora_config": LORA}.items():
        for name, key in keys.items():
            changes: dict[str, Any] = {f"{section}__{name}": _value(key, training)}
            if section == "lora_config":
                changes = {"model__lora_config": {name: _value(key, training)}}
            if (section, name) in {("dataset", "eval_data_path"), ("dataset", "train_data_path")}:
                changes = {f"dataset__{name}": "rows.jsonl"}
            if name in ("preprocessing_fn", "reward_functions_fn"):
                changes = {f"dataset__{name}": "reward_functions.py"}
            if (section, name) == ("model", "model_name_or_path"):
                changes = {"model__model_name_or_path": "model"}
            told = "\n".join(lines_of(write(project, training, **changes))[1])
            where = f"model.lora_config.{name}" if section == "lora_config" else f"{section}.{name}"
            if key.idle.get(training) or (section in ("dpo", "grpo") and section != training):
                assert f"{where} does nothing here: " in told, where


@pytest.mark.parametrize(
    ("training", "changes", "words"),
    [
        (
            "sft",
            {"training__max_steps": 5, "training__num_train_epochs": 3},
            "num_train_epochs does nothing here: training.max_steps = 5",
        ),
        ("sft", {"model__use_lora": True, "training__lr_mp": 1e-3}, "lr_mp does nothing here: adapters alone"),
        ("sft", {"training__lr_lora": 1e-3}, "lr_lora does nothing here: model.use_lora is false"),
        ("sft", {"model__lora_config": {"r": 4}}, "lora_config.r does nothing here: model.use_lora is false"),
        ("sft", {"dataset__eval_split": "val"}, "eval_split does nothing here: dataset.eval_data_path is null"),
        ("dpo", {"dataset__eval_data_path": "rows.jsonl"}, "eval_data_path does nothing here: the loss on held-out"),
        (
            "sft",
            {"model__vlm_config": {"lm_n_blocks": 2}},
            "vlm_config does nothing here: model.initialize_from_config",
        ),
        ("grpo", {"grpo__sapo_temperature_pos": 1.0}, "sapo_temperature_pos does nothing here: grpo.loss_type is grpo"),
        ("dpo", {"grpo__beta": 0.1}, "grpo.beta does nothing here: training_type is dpo"),
    ],
)
def test_what_another_key_takes_over_is_said(project: Path, training: str, changes: Any, words: str) -> None:
    assert words in "\n".join(lines_of(write(project, training, **changes))[1])


def test_a_fresh_model_is_initialize(project: Path) -> None:
    path = write(
        project,
        "sft",
        model={"model_name_or_path": "initialize", "vlm_config": {"lm_n_blocks": 2}, "load_backbone": False},
    )
    found = values(path)
    assert (
        found["policy.initialize.vlm_config"] == {"lm_n_blocks": 2}
        and found["policy.initialize.load_backbone"] is False
    )
    assert "policy.pretrained" not in found


def test_the_verb_prints_a_recipe_with_comments(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is YAML that says the same, with what differs beside the lines, and how the model is exported."""
    path = write(project, "grpo", dataset__dataset_format="grpo", grpo__top_p=1.0)
    assert main(["from-nanovlm-lab", str(path)]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text) == nested(lines_of(path)[0])
    for words in (
        "top_p: 1.0  # no filter; there 1 became 0.95, and was not scored so",
        "#   dataset.dataset_format does nothing here: there nothing reads it",
        "there read_answer of the file became rewards, too",
        f"--output {project / 'grpo_output' / 'final_model'}",
    ):
        assert words in text, words
    recipe = project / "mine.yaml"
    recipe.write_text(text)
    assert load_recipe(recipe, Config) == load_recipe(path, Config)


def test_a_recipe_of_ours_is_none_of_theirs(project: Path) -> None:
    ours = project / "ours.yaml"
    ours.write_text("run_name: a\nmax_steps: 2\n")
    with pytest.raises(ConfigError, match="has no training_type"):
        from_nanovlm_lab(ours)
    assert final_model(ours) is None


def test_the_final_model_is_in_the_format_it_came_in(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VlmConfig, "formats", ("hf", "lora", "nanovlm"))

    def format_of(training: str, **changes: Any) -> str:
        final = final_model(write(project, training, **changes))
        assert final is not None and final.folder == project / f"{training}_output" / "final_model"
        return final.format

    assert format_of("dpo", model__use_lora=True) == "lora"
    assert format_of("sft") == "nanovlm"
    (project / "model" / "config.json").write_text('{"model_type": "idefics3"}')
    assert format_of("grpo") == "hf"
    assert format_of("sft", model__model_name_or_path="lusxvr/nanoVLM-230M-8k") == "nanovlm"
    monkeypatch.setattr(VlmConfig, "formats", ("hf",))
    assert format_of("dpo", model__use_lora=True) == "hf"
