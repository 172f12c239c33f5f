"""What the flags of PairUni and T2I-R1 mean in our fields, with a comment wherever the two differ."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine.hub import is_hub_id
from rewards.shipped import FOLDER
from trainer.config.base import ConfigError
from trainer.migration.command_line import CommandLine, gpus_of
from trainer.migration.janus_grpo.data import count_rows, data_lines, plan_instruction
from trainer.migration.janus_grpo.flags import flags_of
from trainer.migration.janus_grpo.rewards import reward_lines, rewards_of
from trainer.migration.recipe_text import Line

_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
_REPORTERS = ("tensorboard", "wandb", "swanlab")
_DEEPSPEED = ("zero2", "zero3", "zero3_offload")
_OURS = FOLDER / "configs" / "deepspeed"
_KEEP_ALL = 1000


def translate(line: CommandLine) -> tuple[dict[str, Line], list[str]]:
    """Our fields, dotted, in the order of a recipe, and a sentence for everything that was given and does not act.

    Raises:
        ConfigError: a flag that is missing, or a value that we have nothing for.
    """
    prompts = _prompts_per_step(line)
    steps = _steps(line, prompts.value)
    lines = {
        **_run(line, steps),
        **_policy(line),
        **_sampling(line, prompts),
        "objective.type": Line("grpo", "the mean over a sample's tokens, as the family's code has it; dr_grpo with longest: 1 is the sum"),
        "objective.kl_beta": Line(line["beta"]),
        "advantage.type": Line("grpo", "(r - mean) / (std + 1e-4) of the sum of a task's rewards, in each group of each task"),
        **reward_lines(line),
        **data_lines(line),
        **_optim(line, steps.value),
        **_deepspeed(line),
        "checkpoint.save_every": Line(line["save_steps"]),
        "checkpoint.keep": Line(line["save_total_limit"] or _KEEP_ALL, "" if line["save_total_limit"] else "all, there"),
        **_logging(line),
    }  # fmt: skip
    return lines, [*line.notes, *_idle(line)]


def _prompts_per_step(line: CommandLine) -> Line:
    batch, accumulated, gpus = line["per_device_train_batch_size"], line["gradient_accumulation_steps"], gpus_of(line)
    total = batch * accumulated * gpus
    if total < 1:
        raise ConfigError(
            f"--per_device_train_batch_size {batch} * --gradient_accumulation_steps {accumulated} * {gpus} GPUs must be at least 1"
        )
    what = "pairs" if line.program == "pairuni" else "prompts"
    return Line(total, f"{what}: {batch} at once, {accumulated} times, on {gpus} GPU{'s' * (gpus > 1)}")


def _steps(line: CommandLine, prompts: int) -> Line:
    if line["max_steps"] > 0:
        return Line(line["max_steps"])
    epochs, rows = line["num_train_epochs"], count_rows(line)
    if epochs <= 0:
        raise ConfigError(f"--num_train_epochs {epochs:g} must be above 0, or give --max_steps")
    return Line(max(1, math.ceil(epochs * rows / prompts)), f"{epochs:g} epochs of {rows} rows, {prompts} a step")


def _run(line: CommandLine, steps: Line) -> dict[str, Line]:
    if line["output_dir"] is None:
        raise ConfigError("--output_dir is missing: where the run's folder is made")
    folder = Path(os.path.abspath(line["output_dir"]))
    return {
        "run_name": Line(folder.name),
        "output_dir": Line(str(folder.parent)),
        "seed": Line(line["seed"]),
        "max_steps": steps,
    }


def _policy(line: CommandLine) -> dict[str, Line]:
    name, tokens = line["model_name_or_path"], line["image_token_num_per_image"]
    where = name if line.find(name) is None and is_hub_id(name) else line.path(name)
    longest = line["max_prompt_length"]
    room = (
        Line(longest + tokens + 2, f"{longest} of text, {tokens} of its image and their two tags")
        if line.program == "pairuni"
        else Line(longest)
    )
    return {
        "policy.type": Line("janus"),
        "policy.pretrained": Line(where),
        "policy.freeze": Line(["vision", "aligner", "generation"], "the language model with its head is trained"),
        "policy.dtype": Line("bfloat16" if line["bf16"] else "float32"),
        "policy.gradient_checkpointing": Line(line["gradient_checkpointing"]),
        "policy.max_prompt_tokens": room,
    }


def _sampling(line: CommandLine, prompts: Line) -> dict[str, Line]:
    lines = {"sampling.type": Line("tasks"), "sampling.prompts_per_step": prompts}
    if line.program == "pairuni":
        lines |= {
            "sampling.pair_weight": Line(line["pair_weight"]),
            "sampling.similarity_threshold": Line(line["similarity_threshold"]),
            **_task(line, "understand", line["num_generations_text"]),
            "sampling.tasks.understand.max_new_tokens": Line(line["max_completion_length"]),
        }
        groups = line["num_generations_image"]
    else:
        groups = line["num_generations"]
    return {**lines, **_task(line, "generate", groups), **_drawing(line)}


def _task(line: CommandLine, task: str, group_size: int) -> dict[str, Line]:
    if group_size < 2:
        raise ConfigError(f"a group of {group_size} has nothing to compare; give at least 2 generations")
    where = f"sampling.tasks.{task}"
    return {
        f"{where}.group_size": Line(group_size),
        f"{where}.micro_batch_size": Line(group_size * line["per_device_train_batch_size"]),
        f"{where}.temperature": Line(line["temperature"]),
        f"{where}.rewards": Line(rewards_of(line, task)),
    }


def _drawing(line: CommandLine) -> dict[str, Line]:
    where = "sampling.tasks.generate"
    lines = {
        f"{where}.guidance_scale": Line(line["cfg_weight"]),
        f"{where}.score": Line("guided", "of what was drawn from; there of the conditional branch alone, which is score: conditional"),
    }  # fmt: skip
    if line.program == "t2i-r1" and line["reasoning_prompt_path"] is not None:
        lines |= {
            f"{where}.think.instruction": plan_instruction(line),
            f"{where}.think.max_new_tokens": Line(line["max_completion_length"]),
            f"{where}.think.temperature": Line(line["temperature"]),
        }
    return lines


def _optim(line: CommandLine, steps: int) -> dict[str, Line]:
    name, given, ratio = line["lr_scheduler_type"], line["warmup_steps"], line["warmup_ratio"]
    if name not in _SCHEDULES:
        raise ConfigError(f"--lr_scheduler_type {name} is not offered; take one of {', '.join(_SCHEDULES)}")
    warmup = 0 if name == "constant" else min(given or math.ceil(steps * ratio), steps - 1)
    return {
        "optim.lr": Line(line["learning_rate"]),
        "optim.schedule": Line(_SCHEDULES[name]),
        "optim.warmup_steps": Line(warmup),
        "optim.weight_decay": Line(line["weight_decay"]),
        "optim.max_grad_norm": Line(line["max_grad_norm"] or 1e9),
        "optim.ema_decay": Line(0.0, "there is no average of the weights there"),
    }


def _deepspeed(line: CommandLine) -> dict[str, Line]:
    path = line["deepspeed"]
    if path is None:
        return {}
    if Path(path).stem in _DEEPSPEED:
        return {
            "distributed.deepspeed": Line(str(_OURS / f"{Path(path).stem}.json"), f"our file for {Path(path).name}")
        }
    if (found := line.find(path)) is None:
        raise ConfigError(
            f"--deepspeed {path}: no such file in {' or '.join(map(str, line.folders))}, and configs/deepspeed has "
            f"{', '.join(_DEEPSPEED)} alone"
        )
    return {"distributed.deepspeed": Line(str(found))}


def _logging(line: CommandLine) -> dict[str, Line]:
    asked = [name.strip() for name in str(line["report_to"]).split(",") if name.strip() not in ("", "none")]
    asked = list(_REPORTERS[:2]) if "all" in asked else asked
    if unknown := [name for name in asked if name not in _REPORTERS]:
        raise ConfigError(f"--report_to: {', '.join(unknown)} is none of {', '.join(_REPORTERS)}")
    name: dict[str, Any] = {"logging.name": Line(line["run_name"])} if line["run_name"] else {}
    return {"logging.report_to": Line(asked), **name}


def _idle(line: CommandLine) -> Iterator[str]:
    """A sentence for every flag that was given and does not act, in the order of the table."""
    reasons: dict[str, str] = {}
    if line["max_steps"] > 0:
        reasons["num_train_epochs"] = f"--max_steps {line['max_steps']} says how long the run is"
    if line["lr_scheduler_type"] == "constant":
        reasons |= dict.fromkeys(
            ("warmup_steps", "warmup_ratio"), "the schedule constant has no warm-up, there neither"
        )
    elif line["warmup_steps"]:
        reasons["warmup_ratio"] = f"--warmup_steps {line['warmup_steps']} says it"
    if line.program == "t2i-r1":
        if line["new_generations_image"] != 1:
            raise ConfigError(
                f"--new_generations_image {line['new_generations_image']}: a plan has one image here; leave the flag out"
            )
        if line["reasoning_prompt_path"] is None:
            reasons["max_completion_length"] = "without --reasoning_prompt_path nothing is written before an image"
        if "hps" not in line["reward_funcs"]:
            reasons["hps_ckpt_path"] = "--reward_funcs does not name hps"
        if "orm" not in line["reward_funcs"]:
            reasons["orm_ckpt_path"] = "--reward_funcs does not name orm"
    if line["use_vllm"]:
        raise ConfigError("--use_vllm true: vLLM does not draw image tokens; leave the flag out")
    for name, flag in flags_of(line.program).items():
        if name in line.given and (reason := reasons.get(name) or ("" if flag.fields else flag.remark)):
            yield f"--{name} {line[name]} does nothing here: {reason}"
