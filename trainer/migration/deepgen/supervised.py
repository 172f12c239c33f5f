"""DeepGen-RL's supervised loss beside the objective, in our fields; or the sentence why the recipe is without it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from trainer.config.base import ConfigError
from trainer.migration.deepgen.mmengine_file import read_picture_sets
from trainer.migration.recipe_text import Line

_JSON = (".json", ".jsonl")


def supervised_lines(args: argparse.Namespace) -> tuple[dict[str, Line], list[str]]:
    """The section `sft`, and what is to be said about it."""
    given, said = args.sftaux_dataset_config or "", []
    if not given or not args.sftaux_coef:
        return {}, []
    asked = "sftaux_dataset_config" in args.given
    lost = f"--sftaux_dataset_config {given}{'' if asked else ', the default there'}: this recipe has no supervised loss, as "
    if given.endswith(_JSON):
        files = {"sft.path": Line(os.path.abspath(given))}
        names = [os.path.abspath(given)]
    else:
        try:
            sets = [_as_set(each) for each in read_picture_sets(Path(given))]
        except ConfigError as error:
            return {}, [f"{lost}{error}; name a JSON array of image_path and txt instead"]
        files = {"sft.sets": Line(sets, f"from {given}, which was read and not run")}
        names = [each["path"] for each in sets]
    missing = [name for name in names if not Path(name).is_file()]
    if missing and not asked:
        root = "" if "DATA_ROOT" in os.environ else "; the variable DATA_ROOT, where they start, is not set"
        return {}, [f"{lost}{len(missing)} of its {len(names)} files are not here, such as {missing[0]}{root}"]
    if missing:
        said = [
            f"--sftaux_dataset_config {given}: {len(missing)} of {len(names)} files are not here: {', '.join(missing)}"
        ]
    return files | _how(args), said


def _as_set(each: Any) -> dict[str, Any]:
    folder = os.path.abspath(each.image_folder or ".")  # paths without a folder count from where it was started
    return {"path": os.path.abspath(each.path), "image_folder": folder, "weight": each.weight}


def _how(args: argparse.Namespace) -> dict[str, Line]:
    micro = args.sftaux_micro_batch_size
    return {
        "sft.coef": Line(args.sftaux_coef),
        "sft.every": Line(args.sftaux_every_n_steps),
        "sft.batch_size": Line(micro * (args.gpus or 1), "" if args.gpus else "of all GPUs; --gpus was not given"),
        "sft.micro_batch_size": Line(micro),
        "sft.size": Line(
            [args.image_height, args.image_width],
            "one size for all; there each keeps its shape at about as many pixels",
        ),
    }
