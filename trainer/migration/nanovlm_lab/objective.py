"""How answers are drawn, scored and learned from in a YAML of NanoVLM-Lab: its sections `grpo` and `dpo` in our fields."""

from __future__ import annotations

from trainer.config.base import ConfigError
from trainer.migration.nanovlm_lab.reading import Lab
from trainer.migration.recipe_text import Line

_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
_SCALES = {"group": "grpo", "batch": "grpo_global_std", "none": "dr_grpo"}
_DPO = {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo_sum", "robust": "robust"}


def objective_lines(lab: Lab, gpus: int) -> dict[str, Line]:
    """Sampling, objective and advantage. Raises ConfigError: a value that is refused there, too, or that we have nothing for."""
    if lab.training == "sft":
        return {}
    return _dpo(lab) if lab.training == "dpo" else {**_sampling(lab, gpus), **_grpo(lab), **_advantage(lab)}


def _dpo(lab: Lab) -> dict[str, Line]:
    kind, smoothing = lab.get("dpo", "dpo_loss_type"), lab.get("dpo", "label_smoothing")
    if kind not in _DPO:
        raise ConfigError(f"dpo.dpo_loss_type = {kind!r} is none of {', '.join(_DPO)}")
    lines = {
        "objective.type": Line("dpo"),
        "objective.kind": Line(
            _DPO[kind], "ipo there: of sums over tokens; ipo is of means, as in TRL" if kind == "ipo" else ""
        ),
        "objective.beta": Line(lab.get("dpo", "beta")),
    }
    if smoothing and kind in ("sigmoid", "robust"):
        lines["objective.smoothing"] = Line(smoothing)
    return lines


def _sampling(lab: Lab, gpus: int) -> dict[str, Line]:
    size, rows = lab.get("grpo", "num_generations"), lab.get("training", "per_device_train_batch_size")
    if size < 2:
        raise ConfigError(
            f"grpo.num_generations = {size} makes groups without a comparison (there the advantage is NaN); give at least 2"
        )
    accumulated = lab.get("training", "gradient_accumulation_steps")
    top_p, top_k = lab.get("grpo", "top_p"), lab.get("grpo", "top_k")
    return {
        "sampling.type": Line("tokens"),
        "sampling.prompts_per_step": Line(
            rows * accumulated * gpus, f"{rows} at once, {accumulated} times, on {gpus} device{'s' * (gpus > 1)}"
        ),
        "sampling.group_size": Line(size),
        "sampling.micro_batch_size": Line(rows * size),
        "sampling.max_new_tokens": Line(lab.get("grpo", "max_completion_length")),
        "sampling.temperature": Line(
            lab.get("grpo", "temperature"),
            "there filters come before the temperature" if top_p < 1 or top_k > 0 else "",
        ),
        "sampling.top_p": Line(top_p, "no filter; there 1 became 0.95, and was not scored so" if top_p >= 1 else ""),
        "sampling.top_k": Line(
            max(top_k, 0), "no filter; there 0 became 50, and was not scored so" if top_k <= 0 else ""
        ),
    }


def _grpo(lab: Lab) -> dict[str, Line]:
    kind = lab.get("grpo", "loss_type")
    if kind not in _LOSSES:
        raise ConfigError(f"grpo.loss_type = {kind!r} is none of {', '.join(_LOSSES)}")
    level = lab.get("grpo", "importance_sampling_level")
    if level not in ("token", "sequence"):
        raise ConfigError(f"grpo.importance_sampling_level = {level!r} is none of token, sequence")
    said = ""
    if level == "sequence" and kind in ("bnpo", "dr_grpo", "dapo"):
        said = "GSPO is loss_type grpo with this level; with this loss the terms of an answer are added up"
    return {
        "objective.type": Line(kind),
        "objective.level": Line(level, said),
        **_bounds(lab, kind),
        "objective.kl_beta": Line(lab.get("grpo", "beta")),
        **(
            {"objective.kl_importance": Line(False, "as there; TRL has it true since 1.16")}
            if lab.get("grpo", "beta")
            else {}
        ),
        "objective.mask_truncated": Line(lab.get("grpo", "mask_truncated_completions")),
    }


def _bounds(lab: Lab, kind: str) -> dict[str, Line]:
    low, high, delta = (lab.get("grpo", name) for name in ("epsilon", "epsilon_high", "delta"))
    high = low if high is None else high
    if kind == "sapo":
        tau = [lab.get("grpo", f"sapo_temperature_{sign}") for sign in ("pos", "neg")]
        if None in tau:
            raise ConfigError(
                "grpo.sapo_temperature_pos and grpo.sapo_temperature_neg must both be given with loss_type sapo, as there; "
                "its paper has 1.0 and 1.05"
            )
        return {"objective.tau": Line(tau)}
    if kind == "cispo":
        if high < 1:
            raise ConfigError(
                f"grpo.epsilon_high = {high:g} is the largest ratio itself with loss_type cispo, so that every token would weigh at "
                f"most {high:g}; give one of at least 1, such as 5"
            )
        return {"objective.cap": Line(high)}
    lines = {"objective.clip_range": Line([-low, high], "epsilon on both sides" if low == high else "")}
    return lines if delta is None else lines | {"objective.delta": Line(delta)}


def _advantage(lab: Lab) -> dict[str, Line]:
    scale = lab.get("grpo", "scale_rewards")
    if scale not in _SCALES:
        raise ConfigError(f"grpo.scale_rewards = {scale!r} is none of {', '.join(_SCALES)}")
    return {"advantage.type": Line(_SCALES[scale], f"{scale} there, of the sum of the rewards")}
