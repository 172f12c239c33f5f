"""Keys that a YAML of NanoVLM-Lab names and that do nothing in the recipe, each with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trainer.migration.nanovlm_lab.keys import LORA, SECTIONS, Key
from trainer.migration.nanovlm_lab.reading import Lab

_OF_PARTS = ("lr_mp", "lr_vision_backbone", "lr_language_backbone")
_BOUNDS = {"sapo": ("epsilon", "epsilon_high", "delta"), "cispo": ("epsilon", "delta")}  # which a loss has not


def idle_keys(lab: Lab) -> Iterator[str]:
    """A sentence for every such key, in the order of the table: because of what it is, or of another key."""
    tables: Mapping[str, Mapping[str, Key]] = {**SECTIONS, "lora_config": LORA}
    for section, keys in tables.items():
        where = "model.lora_config" if section == "lora_config" else section
        for name, key in keys.items():
            if (section, name) in lab.given and (reason := _reason(lab, section, name, key)):
                yield f"{where}.{name} does nothing here: {reason}"


def _reason(lab: Lab, section: str, name: str, key: Key) -> str | None:
    if section in ("dpo", "grpo") and section != lab.training:
        return f"training_type is {lab.training}"
    if section == "lora_config" and not lab.uses_lora:
        return "model.use_lora is false"
    others = {"model": _of_model, "dataset": _of_dataset, "training": _of_training, "grpo": _of_grpo}
    because = others[section](lab, name) if section in others else None
    return because or key.idle.get(lab.training)


def _of_model(lab: Lab, name: str) -> str | None:
    if name in ("load_backbone", "vlm_config") and not lab.initializes:
        return "model.initialize_from_config is false"
    return None


def _of_dataset(lab: Lab, name: str) -> str | None:
    given = bool(lab.get("dataset", "eval_data_path"))
    if name == "eval_split" and not given:
        return "dataset.eval_data_path is null, so a fifth of the training rows is held out"
    if name in ("eval_data_path", "eval_split") and given and lab.training != "grpo":
        return (
            "the loss on held-out rows is measured on rows of the training file (hold_out), and with this file named none are "
            "held out; set hold_out in the recipe to see it"
        )
    return None


def _of_training(lab: Lab, name: str) -> str | None:
    if name in _OF_PARTS and lab.training == "sft" and lab.uses_lora:
        return "adapters alone are trained, at lr_lora"
    if name == "lr_lora" and lab.training == "sft" and not lab.uses_lora:
        return "model.use_lora is false"
    if name == "num_train_epochs" and (steps := lab.get("training", "max_steps")) > 0:
        return f"training.max_steps = {steps} says how long the run is"
    return None


def _of_grpo(lab: Lab, name: str) -> str | None:
    loss, is_set = lab.get("grpo", "loss_type"), lab.get("grpo", name) is not None
    if name.startswith("sapo_") and loss != "sapo" and is_set:
        return f"grpo.loss_type is {loss}"
    if name in _BOUNDS.get(loss, ()) and is_set:
        return f"grpo.loss_type = {loss} has no such bound"
    return None
