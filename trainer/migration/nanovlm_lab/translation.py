"""What a YAML of NanoVLM-Lab means in our fields, with a comment wherever the two differ."""

from __future__ import annotations

import math

from trainer.config.base import ConfigError
from trainer.config.vlm import VlmConfig
from trainer.migration.nanovlm_lab.files import count_rows, find, model_path, output_path
from trainer.migration.nanovlm_lab.given_data import data_lines
from trainer.migration.nanovlm_lab.idle import idle_keys
from trainer.migration.nanovlm_lab.objective import objective_lines
from trainer.migration.nanovlm_lab.reading import Lab
from trainer.migration.recipe_text import Line

_PROGRAMS = {"sft": "supervised", "dpo": "preference", "grpo": "rl"}
_REPORTERS = ("tensorboard", "wandb", "swanlab")
_PARTS = {"lr_mp": "projector", "lr_vision_backbone": "vision", "lr_language_backbone": "language"}
_SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}


def translate(lab: Lab, gpus: int = 1) -> tuple[dict[str, Line], list[str]]:
    """Our fields, dotted, in the order of a recipe, and a sentence for everything that was given and does not act.

    Args:
        gpus: processes in all; sizes there are of one.

    Raises:
        ConfigError: a value that we have nothing for, or a file that is not here.
    """
    steps = _steps(lab, gpus)
    lines = {
        **_run(lab, steps),
        **_policy(lab),
        **objective_lines(lab, gpus),
        **data_lines(lab, gpus),
        **_optim(lab, steps.value),
        **_device(lab),
        **_evaluation(lab, steps.value, gpus),
        **_checkpoint(lab, steps.value, gpus),
        **_logging(lab),
    }
    return lines, list(idle_keys(lab))


def _run(lab: Lab, steps: Line) -> dict[str, Line]:
    written = str(lab.get("training", "output_dir"))
    folder = output_path(lab, written)
    return {
        "run_name": Line(folder.name),
        "output_dir": Line(str(folder.parent), f"{written} there, in nanovlm/, into which its program changes"),
        "seed": Line(lab.get("training", "seed")),
        "max_steps": steps,
        "program": Line(_PROGRAMS[lab.training]),
    }


def _updates_an_epoch(lab: Lab, gpus: int) -> int:
    """Optimizer steps of an epoch, as the Trainer of transformers counts them: a last, smaller step counts."""
    at_once, accumulated = (
        int(lab.get("training", name)) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    return max(1, math.ceil(math.ceil(count_rows(lab) / (at_once * gpus)) / accumulated))


def _steps(lab: Lab, gpus: int) -> Line:
    if (most := lab.get("training", "max_steps")) > 0:
        return Line(most)
    epochs = lab.get("training", "num_train_epochs")
    if epochs <= 0:
        raise ConfigError(f"training.num_train_epochs = {epochs:g} must be above 0, or set training.max_steps")
    updates = _updates_an_epoch(lab, gpus)
    return Line(math.ceil(epochs * updates), f"{epochs:g} epochs of {count_rows(lab)} rows in {updates} steps each")


def _policy(lab: Lab) -> dict[str, Line]:
    lines = {"policy.type": Line("vlm")}
    if lab.initializes:
        lines["policy.initialize.vlm_config"] = Line(dict(lab.get("model", "vlm_config")))
        lines["policy.initialize.load_backbone"] = Line(lab.get("model", "load_backbone"))
    else:
        lines["policy.pretrained"] = Line(model_path(lab))
    if lab.uses_lora:
        lines |= _lora(lab)
    frozen = [part for key, part in _PARTS.items() if lab.training == "sft" and lab.get("training", key) == 0]
    if frozen and not lab.uses_lora:
        lines["policy.freeze"] = Line(frozen, "whose rate is 0 there")
    half = lab.get("training", "bf16") or lab.get("training", "fp16")
    said = "float16 there, which is not offered" if lab.get("training", "fp16") else ""
    lines["policy.dtype"] = Line("bfloat16" if half else "float32", said)
    if lab.training == "grpo":
        lines["policy.max_prompt_tokens"] = Line(
            lab.get("grpo", "max_prompt_length"), "a longer prompt is refused by name; there it was cut in its middle"
        )
    return lines


def _lora(lab: Lab) -> dict[str, Line]:
    if lab.lora("use_dora"):
        raise ConfigError("model.lora_config.use_dora = true: DoRA is not offered; set it to false")
    targets = lab.lora("target_modules")
    return {
        "policy.lora.rank": Line(lab.lora("r")),
        "policy.lora.alpha": Line(lab.lora("lora_alpha")),
        "policy.lora.target_modules": Line(
            list(targets),
            "o_proj fits no layer of a nanoVLM model, there neither: its name is out_proj"
            if "o_proj" in targets
            else "",
        ),
    }


def _optim(lab: Lab, steps: int) -> dict[str, Line]:
    name, ratio = lab.get("training", "lr_scheduler_type"), lab.get("training", "warmup_ratio")
    of_grpo = lab.training == "grpo"
    if of_grpo and ("training", "lr_scheduler_type") not in lab.given:
        name = "linear"  # of the Trainer beneath: theirs passes nothing on
    if name not in _SCHEDULES:
        raise ConfigError(f"training.lr_scheduler_type = {name!r} is not offered; take one of {', '.join(_SCHEDULES)}")
    said_of_name = "linear there, whatever was written" if of_grpo and name != "linear" else ""
    said_of_norm = "1 there, whatever was written" if of_grpo and lab.get("training", "max_grad_norm") != 1 else ""
    warmup = 0 if name == "constant" else min(math.ceil(steps * ratio), steps - 1)
    return {
        **_rates(lab),
        "optim.schedule": Line(_SCHEDULES[name], said_of_name),
        "optim.warmup_steps": Line(warmup, f"{ratio:g} of {steps} steps" if warmup else ""),
        "optim.weight_decay": Line(lab.get("training", "weight_decay")),
        "optim.max_grad_norm": Line(lab.get("training", "max_grad_norm"), said_of_norm),
        "optim.ema_decay": Line(0.0, "there is no average of the weights there"),
    }


def _rates(lab: Lab) -> dict[str, Line]:
    if lab.training != "sft":
        return {"optim.lr": Line(lab.get("training", "learning_rate"))}
    if lab.uses_lora:
        return {"optim.lr": Line(lab.get("training", "lr_lora"), "lr_lora: adapters alone are trained")}
    rates = {part: lab.get("training", key) for key, part in _PARTS.items() if lab.get("training", key) > 0}
    if not rates:
        raise ConfigError("training.lr_mp, lr_vision_backbone and lr_language_backbone are all 0: nothing is trained")
    return {
        "optim.lr": Line(max(rates.values()), "every part has its own below"),
        **{f"optim.groups.{part}.lr": Line(rate) for part, rate in rates.items()},
    }


def _device(lab: Lab) -> dict[str, Line]:
    device = str(lab.get("training", "device"))
    if device == "cpu":
        return {"distributed.device": Line("cpu")}
    return {"distributed.device": Line("auto", f"{device} there; auto takes CUDA where there is one")}


def _evaluation(lab: Lab, steps: int, gpus: int) -> dict[str, Line]:
    strategy = lab.get("training", "eval_strategy")
    every = {
        "steps": lambda: Line(lab.get("training", "eval_steps")),
        "epoch": lambda: Line(_updates_an_epoch(lab, gpus), "every epoch"),
        "no": lambda: Line(steps, "before and after training alone"),
    }
    if strategy not in every:
        raise ConfigError(f"training.eval_strategy = {strategy!r} is none of {', '.join(every)}")
    lines = {"evaluation.every": every[strategy]()}
    if lab.training == "grpo":
        lines["evaluation.batch_size"] = Line(lab.get("training", "per_device_eval_batch_size"))
        lines["evaluation.num_pictures"] = Line(
            max(lab.get("grpo", "num_completions_to_print"), 0), "held-out answers that the report shows"
        )
    return lines


def _checkpoint(lab: Lab, steps: int, gpus: int) -> dict[str, Line]:
    strategy = lab.get("training", "save_strategy")
    every = {
        "steps": lambda: Line(lab.get("training", "save_steps")),
        "epoch": lambda: Line(_updates_an_epoch(lab, gpus), "every epoch"),
        "no": lambda: Line(steps, "after the last step alone"),
    }
    if strategy not in every:
        raise ConfigError(f"training.save_strategy = {strategy!r} is none of {', '.join(every)}")
    said = "all there, whatever was written" if lab.training == "grpo" else ""
    return {
        "checkpoint.save_every": every[strategy](),
        "checkpoint.keep": Line(lab.get("training", "save_total_limit"), said),
    }


def _logging(lab: Lab) -> dict[str, Line]:
    asked = [str(name) for name in lab.get("logging", "report_to") if name != "none"]
    asked = list(_REPORTERS[:2]) if "all" in asked else asked
    unknown = [name for name in asked if name not in _REPORTERS]
    if unknown:
        raise ConfigError(f"logging.report_to: {', '.join(unknown)} is none of {', '.join(_REPORTERS)}")
    said = ""
    if lab.get("logging", "use_wandb") and "wandb" not in asked:
        asked, said = [*asked, "wandb"], "use_wandb, which nothing read there"
    project = lab.get("logging", "wandb_project")
    return {
        "logging.report_to": Line(asked, said),
        **({"logging.project": Line(project)} if project and "wandb" in asked else {}),
    }


def final_format(lab: Lab) -> str:
    """In which format the lab's final model is written: adapters, nanoVLM's own layout, or that of transformers, which is also
    taken where the policy has no other."""
    wanted = _wanted_format(lab)
    return wanted if wanted in VlmConfig.formats else VlmConfig.formats[0]


def _wanted_format(lab: Lab) -> str:
    if lab.uses_lora:
        return "lora"
    if lab.initializes:
        return "nanovlm"
    name = str(lab.get("model", "model_name_or_path"))
    folder = find(lab, name)
    if folder is None:
        return "nanovlm" if "nanovlm" in name.lower() else "hf"
    config = folder / "config.json"
    return "nanovlm" if config.is_file() and '"lm_hidden_dim"' in config.read_text(encoding="utf-8") else "hf"
