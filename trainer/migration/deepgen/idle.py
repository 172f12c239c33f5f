"""Flags of a command line of DeepGen-RL that do nothing in the recipe, each with the reason."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from trainer.migration.deepgen.flags import FLAGS, Flag
from trainer.migration.recipe_text import Line


def idle_flags(args: argparse.Namespace, lines: Mapping[str, Line]) -> Iterator[str]:
    """A sentence for every flag that was given and does not act, in the order of the table.

    Args:
        args: with `given`, the names of the flags that were typed.
        lines: the recipe, by dotted field.
    """
    for name, flag in FLAGS.items():
        if name not in args.given:
            continue
        reason = _special(name, args, lines) or _general(name, flag, args, lines)
        if reason:
            value = getattr(args, name)
            shown = (
                "" if flag.kind == "switch" else f" {' '.join(map(str, value)) if isinstance(value, list) else value}"
            )
            yield f"--{name}{shown} does nothing here: {reason}"


def _special(name: str, args: argparse.Namespace, lines: Mapping[str, Line]) -> str | None:
    """Where a field is set, and not by this flag."""
    reasons = {"model_config": FLAGS["model_config"].remark}
    if args.dataset_config:
        reasons |= dict.fromkeys(
            ("prompts_file", "reward_funcs"), "--dataset_config says which prompts and rewards there are"
        )
    if args.max_steps > 0:
        reasons["num_train_epochs"] = f"--max_steps {args.max_steps} says how long the run is"
    if args.lr_scheduler_type == "constant" and args.warmup_steps:
        reasons["warmup_steps"] = "the schedule constant has no warm-up, there neither; constant_with_warmup has"
    if (used := lines["optim.micro_batch_size"].value) != args.atrain_micro_batch_size:
        reasons["atrain_micro_batch_size"] = f"{used} is used, all pictures that a GPU has in a step"
    if (pictures := lines.get("evaluation.num_pictures")) is not None:
        for flag in ("eval_wandb_num_upload_images", "eval_swanlab_num_upload_images"):
            if getattr(args, flag) != pictures.value:
                reasons[flag] = f"{pictures.value} are kept, the larger number of W&B's and SwanLab's"
    return reasons.get(name)


def _general(name: str, flag: Flag, args: argparse.Namespace, lines: Mapping[str, Line]) -> str | None:
    if not flag.fields:
        return flag.remark
    if any(line == field or line.startswith(f"{field}.") for field in flag.fields for line in lines):
        return None
    if name == "sftaux_dataset_config" or (name == "eval_freq" and args.eval_freq == 0):
        return None  # said by the supervised loss; or it acts, by leaving evaluation out
    value = getattr(args, name)
    if value in (None, "", 0, False) and not flag.default:
        return None  # it asks for nothing
    return f"the recipe has no {' and no '.join(flag.fields)}{f' ({flag.remark})' if flag.remark else ''}"
