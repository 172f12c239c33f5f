"""What UniReason's flags mean in our fields, with a comment wherever the two differ."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rewards.shipped import FOLDER
from trainer.config.base import ConfigError
from trainer.data.formats.unireason.grouping import read_grouping
from trainer.data.prompts.checks import DataError
from trainer.migration.command_line import CommandLine, gpus_of
from trainer.migration.recipe_text import Line
from trainer.migration.unireason.flags import FIXED, flags

_OURS = FOLDER / "configs" / "deepspeed"
_STAGES = {"FULL_SHARD": "zero3", "HYBRID_SHARD": "zero3", "SHARD_GRAD_OP": "zero2", "NO_SHARD": None}
_REGISTRY = "data/dataset_info.py"
_INSTRUCTIONS = "data/interleave_datasets"
_KEEP = 5  # as its code does; its help says 3


def translate(line: CommandLine) -> tuple[dict[str, Line], list[str]]:
    """Our fields, dotted, in the order of a recipe, and a sentence for everything that was given and does not act.

    Raises:
        ConfigError: a value that we have nothing for, or a file that is not here.
    """
    _check_fixed(line)
    folder = Path(line.path(line["checkpoint_dir"]))
    lines = {
        "program": Line("supervised"),
        "run_name": Line(folder.name),
        "output_dir": Line(str(folder.parent)),
        "seed": Line(line["global_seed"]),
        "max_steps": Line(line["total_steps"], "the run ends there, and saves"),
        **_policy(line),
        **_packed(line),
        **_optim(line),
        **_engine(line),
        "checkpoint.save_every": Line(line["save_every"]),
        "checkpoint.keep": Line(_KEEP, "as its code keeps; its help says 3"),
        "logging.report_to": Line([], "W&B is off; [wandb] turns it on, offline unless WANDB_API_KEY is set"),
    }
    return lines, [*line.notes, *_idle(line), *_wrong_tables(lines)]


def _wrong_tables(lines: dict[str, Line]) -> list[str]:
    """A sentence where the two tables cannot be used as they are, such as one with a class that is not read: the recipe is
    right, and a run would be refused until they are mended."""
    try:
        read_grouping(Path(lines["packed.grouping"].value), Path(lines["packed.registry"].value))
    except DataError as error:
        return [f"the tables of data cannot be used as they are, and a run would stop there: {error}"]
    return []


def _check_fixed(line: CommandLine) -> None:
    """Raises ConfigError: a value that the published model does not have, or a way to start that is not read."""
    known = flags()
    for name in FIXED:
        if line[name] != known[name].default:
            raise ConfigError(
                f"--{name} {line[name]}: the published model has {known[name].default}, and nothing else is read; leave the flag out"
            )
    if not line["finetune_from_hf"]:
        raise ConfigError(
            "--finetune_from_hf false builds a model of llm_path, vit_path and vae_path; here one is read from a BAGEL folder: give "
            "--finetune_from_hf True and --model_path"
        )
    if line["freeze_llm"]:
        raise ConfigError(
            "--freeze_llm True freezes both experts, but none of the generation expert's projections, which is no part here; leave "
            "it out, and name parts as policy.freeze in the recipe"
        )
    if line["resume_from"] is not None and not line["resume_model_only"]:
        raise ConfigError(
            "--resume_from without --resume_model_only True reads its optimizer's files, which are not read here; give it, and the "
            "weights are taken; a run of ours goes on by itself"
        )


def _policy(line: CommandLine) -> dict[str, Line]:
    size = 64 if "max_latent_size" not in line.given else line["max_latent_size"]
    lines = {
        "policy.type": Line("mot"),
        "policy.pretrained": Line(line.path(line["model_path"])),
        "policy.max_latent_size": Line(
            size, "" if "max_latent_size" in line.given else "32 there, which does not fit the published weights"
        ),
        "policy.interpolate_positions": Line(line["interpolate_pos"]),
        "policy.dtype": Line("bfloat16", "trained weights stay float32"),
        "policy.gradient_checkpointing": Line(True, "always on there"),
        "policy.attention": Line("flex" if line["use_flex"] else "auto"),
    }
    if line["resume_from"] is not None:
        lines["policy.weights"] = Line(line.path(line["resume_from"]))
        lines["policy.use_ema"] = Line(line["finetune_from_ema"])
    frozen = [
        *(["language"] if line["freeze_und"] else []),
        *(["vision"] if line["freeze_vit"] or line["freeze_und"] else []),
    ]
    frozen += ["connector"] if line["freeze_und"] else []
    if frozen:
        lines["policy.freeze"] = Line(frozen)
    if line["freeze_und"]:
        lines["policy.constant_words"] = Line(True)
    return lines


def _packed(line: CommandLine) -> dict[str, Line]:
    gpus = gpus_of(line)
    lines = {
        "packed.grouping": Line(line.path(line["dataset_config_file"])),
        "packed.registry": Line(_registry(line), "read, never run"),
        **_instructions(line),
        "packed.packs": Line(gpus, f"one for each of {gpus} GPU{'s' * (gpus > 1)}"),
        "packed.expected_tokens": Line(line["expected_num_tokens"]),
        "packed.max_tokens": Line(line["max_num_tokens"]),
        "packed.max_row_tokens": Line(line["max_num_tokens_per_sample"]),
        "packed.buffer_below": Line(line["prefer_buffer_before"]),
        "packed.buffer_size": Line(line["max_buffer_size"]),
        "packed.workers": Line(line["num_workers"]),
    }
    for ours, theirs in (("text", "text_cond"), ("clean", "vae_cond"), ("seen", "vit_cond")):
        lines[f"packed.dropout.{ours}"] = Line(line[f"{theirs}_dropout_prob"])
    return {
        **lines,
        "packed.noise.shift": Line(line["timestep_shift"]),
        "packed.loss.ce_weight": Line(line["ce_weight"]),
        "packed.loss.mse_weight": Line(line["mse_weight"]),
        "packed.loss.reduction": Line("square" if line["ce_loss_reweighting"] else "token"),
    }


def _registry(line: CommandLine) -> str:
    """dataset_info.py or our YAML: as --dataset_info says, else beside the table of groups. Raises ConfigError."""
    if line["dataset_info"] is not None:
        return line.path(line["dataset_info"])
    if found := _beside(line, _REGISTRY):
        return found
    raise ConfigError(
        f"no {_REGISTRY} in {' or '.join(map(str, line.folders))}, nor beside {line['dataset_config_file']}; say where it is by "
        "--dataset_info, or give a YAML file of its two tables (docs/migration_unireason.md)"
    )


def _instructions(line: CommandLine) -> dict[str, Line]:
    """The files that hold the fixed sentences, where they are there. Raises ConfigError: --instructions names no such folder."""
    folder = line["instructions"]
    found = line.path(folder) if folder is not None else _beside(line, _INSTRUCTIONS)
    files = {"think": "think_t2i.py", "refine": "think_refine_t2i.py"}
    lines = {
        f"packed.{kind}_instruction": Line(
            os.path.join(found, name), "its sentence, letter for letter; read, never run"
        )
        for kind, name in files.items()
        if found is not None and Path(found, name).is_file()
    }
    if folder is not None and len(lines) < len(files):
        raise ConfigError(f"--instructions {folder}: has not {' and '.join(files.values())}; name the folder with both")
    return lines


def _beside(line: CommandLine, name: str) -> str | None:
    """A path from the folder that the program runs in, or from above the table of groups, which lies in data/configs."""
    if (found := line.find(name)) is not None:
        return str(found)
    config = Path(line.path(line["dataset_config_file"]))
    for above in config.parents[:3]:
        if (above / name).exists():
            return str(above / name)
    return None


def _optim(line: CommandLine) -> dict[str, Line]:
    if (schedule := line["lr_scheduler"]) not in ("constant", "cosine"):
        raise ConfigError(f"--lr_scheduler {schedule}: there are constant and cosine")
    if line["total_steps"] < 1:
        raise ConfigError(f"--total_steps {line['total_steps']} must be at least 1: the run ends there")
    if line["warmup_steps"] >= line["total_steps"]:
        raise ConfigError(
            f"--warmup_steps {line['warmup_steps']} is not below --total_steps {line['total_steps']}; lower it"
        )
    lines = {
        "optim.lr": Line(line["lr"]),
        "optim.schedule": Line(schedule),
        "optim.warmup_steps": Line(line["warmup_steps"]),
        "optim.betas": Line([line["beta1"], line["beta2"]]),
        "optim.weight_decay": Line(0.0),
        "optim.max_grad_norm": Line(line["max_grad_norm"]),
        "optim.ema_decay": Line(line["ema"]),
    }
    if schedule == "cosine":
        lines["optim.min_lr"] = Line(line["min_lr"], "reached at the last step; there the rate climbs again behind it")
    return lines


def _engine(line: CommandLine) -> dict[str, Line]:
    name = line["sharding_strategy"]
    if name not in _STAGES:
        raise ConfigError(f"--sharding_strategy {name}: there are {', '.join(_STAGES)}")
    stage = _STAGES[name]
    if stage is None:
        return {}
    file = f"{stage}_offload.json" if line["cpu_offload"] and stage == "zero3" else f"{stage}.json"
    return {
        "distributed.deepspeed": Line(str(_OURS / file), f"for {name}{' with cpu_offload' * bool(line['cpu_offload'])}")
    }


def _idle(line: CommandLine) -> Iterator[str]:
    """A sentence for every flag that was given and does not act, in the order of the table."""
    reasons: dict[str, str] = {}
    if line["lr_scheduler"] == "constant":
        reasons["min_lr"] = "--lr_scheduler constant keeps the rate"
    if line["resume_from"] is None:
        reasons |= dict.fromkeys(
            ("resume_model_only", "finetune_from_ema"), "without --resume_from the weights are --model_path's"
        )
    if line["cpu_offload"] and _STAGES[line["sharding_strategy"]] != "zero3":
        reasons["cpu_offload"] = f"--sharding_strategy {line['sharding_strategy']} is not ZeRO stage 3"
    for name, flag in flags().items():
        same = name in FIXED and line[name] == flag.default
        if name in line.given and not same and (reason := reasons.get(name) or ("" if flag.fields else flag.remark)):
            yield f"--{name} {line[name]} does nothing here: {reason}"
