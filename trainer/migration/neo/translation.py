"""What NEO's flags mean in our fields, with a comment wherever the two differ."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rewards.shipped import FOLDER
from trainer.config.base import ConfigError
from trainer.data.formats.neo.registry import Used, used_sets
from trainer.migration.command_line import CommandLine, gpus_of
from trainer.migration.neo.flags import flags
from trainer.migration.recipe_text import Line

_OURS = FOLDER / "configs" / "deepspeed"
_REGISTRY = "neo/data/__init__.py"
_SCHEDULES = {
    "cosine_with_min_lr": "cosine",
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
_ATTENTION = {"flex_attention": "flex", "eager": "dense", "sdpa": "dense"}
_FLASH = ("flash_attention_2", "flash_attention_3")
_REPORTERS = ("tensorboard", "wandb", "swanlab")
_KEEP_ALL = 1000
_GROWN = ("rope_theta_hw", "rope_theta_vision", "vision_hidden_size", "patch_size", "downsample_ratio")


def translate(line: CommandLine) -> tuple[dict[str, Line], list[str]]:
    """Our fields, dotted, in the order of a recipe, and a sentence for everything that was given and does not act.

    Raises:
        ConfigError: a flag that is missing, a value that we have nothing for, or a file that is not here.
        DataError: the registry cannot be read, or does not have what --dataset_use names.
    """
    if line["output_dir"] is None:
        raise ConfigError("--output_dir is missing: where the run's folder is made")
    if line["max_steps"] < 1:
        raise ConfigError(f"--max_steps {line['max_steps']} must be at least 1: the run ends there")
    folder = Path(os.path.abspath(line["output_dir"]))
    sets, empty = _sets(line)
    lines = {
        "program": Line("supervised"),
        "run_name": Line(folder.name),
        "output_dir": Line(str(folder.parent)),
        "seed": Line(line["seed"]),
        "max_steps": Line(line["max_steps"]),
        **_policy(line),
        **_packed(line, sets),
        **_optim(line),
        **_deepspeed(line),
        "checkpoint.save_every": Line(line["save_steps"]),
        "checkpoint.keep": Line(line["save_total_limit"] or _KEEP_ALL, "" if line["save_total_limit"] else "all, there"),
        **_logging(line),
    }  # fmt: skip
    return lines, [*line.notes, *empty, *_idle(line)]


def _policy(line: CommandLine) -> dict[str, Line]:
    grown, read = line["llm_model_name_or_path"], line["model_name_or_path"]
    if (grown is None) == (read is None):
        given = "neither" if grown is None else "both"
        raise ConfigError(
            f"{given} of --llm_model_name_or_path and --model_name_or_path is given: the first grows a model (stage 1), the second "
            "reads a NEO folder (stages 2 and 3); give one of them"
        )
    lines = {"policy.type": Line("neo")}
    if grown is None:
        lines["policy.pretrained"] = Line(line.path(read))
    else:
        lines["policy.grow.language"] = Line(line.path(grown))
        if line["tokenizer_name_or_path"] is not None:
            lines["policy.grow.tokenizer"] = Line(line.path(line["tokenizer_name_or_path"]))
        lines["policy.grow.extra_layers"] = Line(line["extra_num_layers"])
        lines |= {f"policy.grow.{name}": Line(line[name]) for name in _GROWN}
    if (name := line["dtype"]) not in (None, "bfloat16", "float32"):
        raise ConfigError(f"--dtype {name}: there are bfloat16 and float32")
    if (attention := line["attn_implementation"]) not in (None, *_ATTENTION, *_FLASH):
        raise ConfigError(f"--attn_implementation {attention}: there are {', '.join((*_ATTENTION, *_FLASH))}")
    if (size := line["dynamic_image_size"]) != "native_resolution":
        raise ConfigError(f"--dynamic_image_size {size}: there is native_resolution alone; leave the flag out")
    return {
        **lines,
        "policy.train": Line("stage_1" if line["train_buffer"] else "all"),
        "policy.min_pixels": Line(line["min_pixels"]),
        "policy.max_pixels": Line(line["max_pixels"]),
        "policy.dtype": Line(name or ("bfloat16" if line["bf16"] else "float32")),
        "policy.gradient_checkpointing": Line(line["gradient_checkpointing"]),
        "policy.attention": Line(
            _ATTENTION.get(attention, "auto"), f"{attention} there" if attention in _FLASH else ""
        ),
    }


def _sets(line: CommandLine) -> tuple[list[Used], list[str]]:
    """The data sets with rows, and a sentence for each that has none. Raises ConfigError: no registry, or no data set is left."""
    if line["dataset_registry"] is not None:
        registry = Path(line.path(line["dataset_registry"]))
    elif (found := line.find(_REGISTRY)) is not None:
        registry = found
    else:
        raise ConfigError(
            f"no {_REGISTRY} in {' or '.join(map(str, line.folders))}; say where the data sets are registered by --dataset_registry, "
            "or give a YAML file of them (docs/migration_neo.md)"
        )
    used = used_sets(registry, line["dataset_use"])
    sets = [each for each in used if each.share]
    if not sets:
        raise ConfigError(f"--dataset_use {line['dataset_use']}: takes no row; give a percentage above 0")
    said = [f"--dataset_use: {each.name}%0 takes no row; it is left out" for each in used if not each.share]
    said += [
        f"--dataset_use: {each.name}%{each.asked:g} is more than all rows; it takes all"
        for each in used
        if each.asked > 100
    ]
    return sets, said


def _packed(line: CommandLine, sets: list[Used]) -> dict[str, Line]:
    if (reduction := line["loss_reduction"]) not in ("token", "sample", "square"):
        raise ConfigError(f"--loss_reduction {reduction}: there are token, sample and square")
    gpus, accumulated = gpus_of(line), line["gradient_accumulation_steps"]
    tokens = line["max_seq_length"]
    files: list[dict[str, Any]] = [
        {
            "name": each.name,
            "path": line.path(each.rows),
            "format": "conversations",
            "image_folder": line.path(each.images) if each.images else str(line.home(".")),
            **({"share": each.share} if each.share < 1 else {}),
        }
        for each in sets
    ]
    return {
        "packed.groups": Line([{"name": "all", "sets": files}], "one group: every row is drawn alike"),
        "packed.packs": Line(gpus * accumulated, f"{accumulated} at {gpus} GPU{'s' * (gpus > 1)}"),
        "packed.fill": Line("rows", "whole rows at its end that do not fit are put back; there they are lost"),
        "packed.rows_per_pack": Line(line["per_device_train_batch_size"]),
        "packed.expected_tokens": Line(tokens),
        "packed.max_tokens": Line(tokens),
        "packed.max_row_tokens": Line(tokens, "a longer row is left out by name; there it ends the run"),
        "packed.workers": Line(line["dataloader_num_workers"]),
        "packed.loss.reduction": Line(reduction),
        "packed.loss.per": Line("row"),
    }


def _optim(line: CommandLine) -> dict[str, Line]:
    name, given, ratio, steps = (
        line[each] for each in ("lr_scheduler_type", "warmup_steps", "warmup_ratio", "max_steps")
    )
    if name not in _SCHEDULES:
        raise ConfigError(f"--lr_scheduler_type {name} is not offered; take one of {', '.join(_SCHEDULES)}")
    if not 0 <= ratio <= 1:
        raise ConfigError(f"--warmup_ratio {ratio:g} is no share of --max_steps; give one from 0 to 1")
    asked = 0 if name == "constant" else given or math.ceil(steps * ratio)
    warmup = min(asked, steps - 1)
    lines = {
        "optim.lr": Line(line["learning_rate"]),
        "optim.schedule": Line(_SCHEDULES[name]),
        "optim.warmup_steps": Line(warmup, f"{asked} there, which max_steps cuts off" if asked > warmup else ""),
        "optim.betas": Line([line["adam_beta1"], line["adam_beta2"]]),
        "optim.weight_decay": Line(line["weight_decay"]),
        "optim.max_grad_norm": Line(line["max_grad_norm"] or 1e9),
        "optim.ema_decay": Line(0.0, "there is no average of the weights there"),
    }
    if name == "cosine_with_min_lr":
        # Written as a decimal of few digits: 8e-4 * .1 is 8.000000000000001e-05.
        lines["optim.min_lr"] = Line(float(f"{line['learning_rate'] * line['min_lr_ratio']:.12g}"))
    return lines


def _deepspeed(line: CommandLine) -> dict[str, Line]:
    path = line["deepspeed"]
    if path is None:
        return {}
    if (found := line.find(path)) is not None:
        return {"distributed.deepspeed": Line(str(found))}
    stage = re.search(r"zero_?([0-3])", Path(path).stem)
    if stage is None:
        raise ConfigError(
            f"--deepspeed {path}: no such file in {' or '.join(map(str, line.folders))}, and its name says no stage of ZeRO; give its "
            "path"
        )
    return {"distributed.deepspeed": Line(str(_OURS / f"zero{stage[1]}.json"), f"our file for {Path(path).name}")}


def _logging(line: CommandLine) -> dict[str, Line]:
    asked = [name.strip() for name in str(line["report_to"]).split(",") if name.strip() not in ("", "none")]
    asked = list(_REPORTERS[:2]) if "all" in asked else asked
    if unknown := [name for name in asked if name not in _REPORTERS]:
        raise ConfigError(f"--report_to: {', '.join(unknown)} is none of {', '.join(_REPORTERS)}")
    name = {"logging.name": Line(line["run_name"])} if line["run_name"] else {}
    return {"logging.report_to": Line(asked), **name}


def _idle(line: CommandLine) -> Iterator[str]:
    """A sentence for every flag that was given and does not act, in the order of the table."""
    reasons: dict[str, str] = {}
    if line["model_name_or_path"] is not None:
        reasons |= dict.fromkeys(
            ("tokenizer_name_or_path", "extra_num_layers", *_GROWN),
            "the NEO folder of --model_name_or_path has its own",
        )
    if line["lr_scheduler_type"] != "cosine_with_min_lr":
        reasons["min_lr_ratio"] = f"--lr_scheduler_type {line['lr_scheduler_type']} does not read it, there neither"
    if line["lr_scheduler_type"] == "constant":
        reasons |= dict.fromkeys(
            ("warmup_steps", "warmup_ratio"), "the schedule constant has no warm-up, there neither"
        )
    elif line["warmup_steps"]:
        reasons["warmup_ratio"] = f"--warmup_steps {line['warmup_steps']} says it"
    if line["dtype"] is not None:
        reasons["bf16"] = f"--dtype {line['dtype']} says it"
    for name, flag in flags().items():
        if name in line.given and (reason := reasons.get(name) or ("" if flag.fields else flag.remark)):
            yield f"--{name} {line[name]} does nothing here: {reason}"
