"""DeepGen-RL's YAML files of data sets, where a recipe names them, as the recipe's own fields."""

from __future__ import annotations

from typing import Any

from rewards.shipped import shipped
from trainer.config.base import ConfigError
from trainer.migration.deepgen.dataset_yaml import prompt_format, read_dataset_yaml
from trainer.migration.deepgen.eval_yaml import read_eval_yaml

_FIELD = "dataset_config"  # of the sections data and evaluation


def translate_files(raw: dict[str, Any]) -> list[str]:
    """Replace `data.dataset_config` and `evaluation.dataset_config` in a recipe by what the files say, in place.

    Args:
        raw: the recipe's fields, unchecked: a section may be missing or be no mapping.

    Returns:
        A sentence for each section that comes from such a file: where a message names a field that the user never wrote,
        it says where that field is from.

    Raises:
        ConfigError: a file cannot be read or used, or the recipe says the same in its own fields, too.
    """
    origins = []
    for section, translate in (("data", _train), ("evaluation", _evaluation)):
        fields = raw.get(section)
        if not isinstance(fields, dict) or not isinstance(path := fields.get(_FIELD), str) or not path:
            continue  # nothing named, or what the check will refuse
        origins.append(translate(fields, shipped(path)))
        fields[_FIELD] = None
    return origins


def _train(data: dict[str, Any], path: str) -> str:
    for field in ("train", "sampling_mode"):
        if data.get(field):
            raise ConfigError(
                f"data.dataset_config and data.{field} are both given; the file says both: keep one of them"
            )
    data |= read_dataset_yaml(path)
    if data.get("overlap", "auto") == "auto":
        data["overlap"] = "drop"  # public sets overlap a little
    return f"(data.train is what data.dataset_config = {path} says)"


def _evaluation(evaluation: dict[str, Any], path: str) -> str:
    own = evaluation.get("sets") or []
    if not isinstance(own, list | tuple):
        return ""  # the check says that this is no list
    evaluation["sets"] = (
        *own,
        *(
            {
                "name": each.name,
                "path": str(each.path),
                **prompt_format(str(each.path)),
                "duplicates": each.duplicates,
                "num_inference_steps": each.num_inference_steps,
                "guidance_scale": 1.0 if each.cfg_scale == 0 else each.cfg_scale,
                "scoring": each.scoring,
            }
            for each in read_eval_yaml(path, must_exist=False)
        ),
    )
    return f"(evaluation.sets from {len(own)} on are what evaluation.dataset_config = {path} says)"
