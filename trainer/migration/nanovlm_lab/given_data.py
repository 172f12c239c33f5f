"""What a YAML of NanoVLM-Lab trains on, and by which rewards: its section `dataset` in our fields."""

from __future__ import annotations

from typing import Any

from trainer.migration.nanovlm_lab.files import HOLD_OUT, RewardFile, data_path, must_find, reward_file
from trainer.migration.nanovlm_lab.reading import Lab
from trainer.migration.recipe_text import Line

_LONGEST = 8192  # tokens of a conversation there


def data_lines(lab: Lab, gpus: int) -> dict[str, Line]:
    """Data and rewards. Raises ConfigError: a file that is not here, or without a reward."""
    if lab.training == "grpo":
        return _prompts(lab)
    section = "conversations" if lab.training == "sft" else "preferences"
    rows = lab.get("training", "per_device_train_batch_size")
    accumulated = lab.get("training", "gradient_accumulation_steps")
    lines = {
        **({"preferences.type": Line("answers")} if section == "preferences" else {}),
        f"{section}.path": Line(data_path(lab, "train_data_path")),
        **{f"{section}.{name}": line for name, line in _rows(lab, "train").items()},
        **_held_out(lab, f"{section}.hold_out"),
        f"{section}.batch_size": Line(
            rows * accumulated * gpus, f"{rows} at once, {accumulated} times, on {gpus} device{'s' * (gpus > 1)}"
        ),
        f"{section}.micro_batch_size": Line(rows),
    }
    if section == "conversations":
        lines[f"{section}.max_tokens"] = Line(_LONGEST, "there every batch was padded to it")
    return lines


def _rows(lab: Lab, which: str) -> dict[str, Line]:
    """Which rows are read, and how; `which` is train or eval."""
    most, renamed = lab.get("dataset", "max_samples"), lab.get("dataset", "rename_columns")
    lines = {"split": Line(lab.get("dataset", f"{which}_split"))}
    if most and most > 0:
        lines["max_samples"] = Line(most)
    if renamed:
        lines["rename_columns"] = Line(dict(renamed))
    if lab.get("dataset", "preprocessing_fn"):
        lines["preprocessing"] = Line(str(must_find(lab, "dataset", "preprocessing_fn")), "run for every row")
    return lines


def _held_out(lab: Lab, field: str) -> dict[str, Line]:
    """The share of the rows that is kept from training where no evaluation set is named."""
    said = "the rows that train_test_split(test_size=0.2, seed=42) held out there"
    return {} if lab.get("dataset", "eval_data_path") else {field: Line(HOLD_OUT, said)}


def _prompts(lab: Lab) -> dict[str, Line]:
    rewards = reward_file(lab)
    train: dict[str, Any] = {
        "path": data_path(lab, "train_data_path"),
        "format": "questions",
        **{name: line.value for name, line in _rows(lab, "train").items()},
        "rewards": dict.fromkeys(rewards.rewards, 1.0),
    }
    lines = {**_rewards(rewards), "data.train": Line([train]), **_held_out(lab, "evaluation.hold_out")}
    if lab.get("dataset", "eval_data_path"):
        held_out = {"name": "eval", "path": data_path(lab, "eval_data_path"), "format": "questions"}
        held_out |= {name: line.value for name, line in _rows(lab, "eval").items()}
        lines["evaluation.sets"] = Line([held_out])
    return lines


def _rewards(file: RewardFile) -> dict[str, Line]:
    """The user's file as a service that this run starts, and a column for each of its rewards."""
    left_out = f"; there {', '.join(file.others)} of the file became rewards, too" if file.others else ""
    columns = {
        f"rewards.columns.{name}": Line({"service": "rules", "reward": name, "canary": "none"}) for name in file.rewards
    }
    lines = {
        "rewards.launch": Line("local", "the file is served by a process of its own"),
        "rewards.services.rules.module": Line("rules"),
        "rewards.services.rules.args": Line(
            {"functions": f"{file.path}:{','.join(file.rewards)}"}, f"functions of completions{left_out}"
        ),
        **columns,
    }
    for role, words in (("accuracy", ("accuracy", "correct")), ("format", ("format",))):
        named = [name for name in file.rewards if any(word in name.lower() for word in words)]
        if len(named) == 1 and named != [role]:
            lines[f"rewards.roles.{role}"] = Line(named[0], "for the split of the reward that the report shows")
    return lines
