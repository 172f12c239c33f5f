"""What objectives ask of the configuration: a field acts, or it is refused with a sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from trainer.config import Config, ConfigError, FlowSamplingConfig, ObjectiveConfig, SftLossConfig
from trainer.config.file import load_config
from trainer.config.objective_checks import check_objective

OBJECTIVE: TypeAdapter[ObjectiveConfig] = TypeAdapter(ObjectiveConfig)
RECIPE: dict[str, Any] = {
    "run_name": "r",
    "max_steps": 2,
    "rewards": {"services": {"s": {"urls": ["http://127.0.0.1:1"]}}, "columns": {"a": {"service": "s"}}},
    "data": {"train": [{"path": "a.txt", "rewards": {"a": 1.0}}]},
}


def objective(**fields: Any) -> ObjectiveConfig:
    return OBJECTIVE.validate_python({"type": "flow_grpo", **fields}, strict=True)


# Sections of a recipe with a field that does not act with its type, and words of the message.
ELSEWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "guard": (
        {"objective": {"guard_reweight": True}},
        "guard_reweight = True acts with objective.type = grpo_guard, but objective.type = flow_grpo; leave guard_reweight out",
    ),
    "nft": (
        {"objective": {"type": "awm", "nft_beta": 1.0}},
        "nft_beta = 1.0 acts with objective.type = diffusion_nft, but",
    ),
    "dpo": ({"objective": {"dpo_beta": 500.0}}, "dpo_beta = 500.0 acts with objective.type = diffusion_dpo, but"),
    "nothing_to_clip": (
        {"objective": {"type": "diffusion_nft", "clip_range": 0.2}},
        "clip_range = 0.2 acts with objective.type = flow_grpo or grpo_guard or awm or grpo or bnpo or dr_grpo or dapo or luspo, "
        "but objective.type = diffusion_nft",
    ),
    "draws_of_no_process": (
        {"objective": {"timestep_draws": 2}},
        "timestep_draws = 2 acts with objective.type = diffusion_nft or awm or diffusion_dpo or own_forward, but",
    ),
    "old_on_policy": (
        {"objective": {"old_decay": 0.9}},
        "old_decay = 0.9 acts with objective.type = diffusion_nft or awm",
    ),
    "latent_without_steps": (
        {"objective": {"type": "awm", "kl_beta": 0.1, "kl_type": "latent"}},
        "kl_type = 'latent' acts with objective.type = flow_grpo or grpo_guard or own, but objective.type = awm",
    ),
    "floor_of_no_divisor": (
        {"advantage": {"type": "dr_grpo", "std_floor": 0.3}},
        "std_floor = 0.3 acts with advantage.type = gdpo or grpo or grpo_global_std or reinforce_pp, but",
    ),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_field_of_another_type_is_refused_with_the_types_that_have_it(case: str, tmp_path: Path) -> None:
    sections, words = ELSEWHERE[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | sections))
    with pytest.raises(ConfigError) as raised:
        load_config(path, Config)
    (line,) = str(raised.value).splitlines()[1:]
    assert words in line and "choose another type" in line


def test_a_section_without_a_type_has_the_first_one(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    config = load_config(path, Config, ["objective.kl_beta=0.1", "advantage={std_floor: 0.3}", "sampling.shift=3"])
    assert (config.objective.type, config.objective.kl_beta) == ("flow_grpo", 0.1)
    assert (config.advantage.type, config.advantage.std_floor, config.sampling.type) == ("gdpo", 0.3, "flow")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "old_that_does_not_rise": (
        {"type": "awm", "old_decay_steps": 100},
        "old_decay_steps = 100 is part of the rise to old_decay, which is 0; set old_decay",
    ),
    "kl_to_no_average": (
        {"type": "awm", "old_kl_beta": 5.0},
        "old_kl_beta = 5 ties to the moving average that old_decay makes, but old_decay is 0; set old_decay",
    ),
    "start_of_no_rise": (
        {"type": "diffusion_nft", "old_decay_start": 75},
        "old_decay_start = 75 is part of the rise to old_decay, which is 0; set old_decay or leave old_decay_start out",
    ),
    "latent_without_kl": ({"kl_type": "latent"}, "kl_type = latent acts only with a kl_beta above 0"),
    "clip_below_nothing": ({"clip_range": (-1.0, 0.2)}, "clip_range = [-1, 0.2] means ratios from 1 + lo to 1 + hi"),
    "clip_upside_down": ({"clip_range": (0.1, 0.2)}, "it needs -1 < lo < 0 < hi"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_field_that_cannot_act_is_refused(case: str) -> None:
    fields, words = REFUSED[case]
    with pytest.raises(ValidationError, match=re.escape(words)):
        objective(**fields)


def test_a_supervised_micro_batch_fits_into_its_batch() -> None:
    with pytest.raises(ValidationError, match="micro_batch_size = 8 is more than batch_size = 4"):
        SftLossConfig.model_validate({"path": "a.json", "batch_size": 4, "micro_batch_size": 8})


VLM = {"type": "vlm", "pretrained": "vlm"}
LEAST: dict[str, Any] = {
    "run_name": "least",
    "max_steps": 1,
    "rewards": {"services": {"ocr": {"urls": ["http://127.0.0.1:1"]}}, "columns": {"ocr": {"service": "ocr"}}},
    "data": {"train": [{"path": "train.jsonl", "rewards": {"ocr": 1.0}}]},
}

CONTRADICT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "window": (
        {"type": "diffusion_nft"},
        {"sde_window": (0, 2)},
        "sampling.sde_window = [0, 2] shapes stochastic steps, but objective.type = diffusion_nft samples without noise",
    ),
    "noise": ({"type": "awm"}, {"noise_level": 0.5}, "sampling.noise_level = 0.5 shapes stochastic steps"),
    "kind": ({"type": "diffusion_dpo"}, {"kind": "flow_sde"}, "sampling.kind = flow_sde shapes stochastic steps"),
    "fraction": ({"type": "awm"}, {"timestep_fraction": 0.5}, "sampling.timestep_fraction = 0.5"),
    "one_picture": ({"type": "awm"}, {"same_noise": True}, "all images of a group would be one"),
    "guidance": (
        {"type": "diffusion_nft"},
        {"guidance_scale": 4.5},
        "sampling.guidance_scale = 4.5, but objective.type = diffusion_nft trains the velocity without guidance",
    ),
    "gradient_of_guidance": (
        {"type": "diffusion_dpo"},
        {"guidance_scale": 4.5, "guidance_gradient": "conditional"},
        "sampling.guidance_gradient = conditional is about the gradient of a guided velocity, but objective.type = diffusion_dpo trains",
    ),
    "guard_of_no_density": ({"type": "grpo_guard"}, {"kind": "cps"}, "use kind = flow_sde or dance_sde"),
    "cap_on_policy": ({"importance_cap": 2.0}, {}, "importance_cap = 2 acts only on rollouts of older weights"),
    "guard_off_policy": (
        {"type": "grpo_guard"},
        {"kind": "flow_sde", "pipeline": "one_step_off"},
        "use type = flow_grpo or pipeline = on_policy",
    ),
    "old_off_policy": (
        {"type": "awm", "old_decay": 0.5},
        {"pipeline": "one_step_off"},
        "set old_decay to 0 or pipeline to on_policy",
    ),
}


@pytest.mark.parametrize("case", CONTRADICT)
def test_an_objective_and_its_sampling_must_fit(case: str) -> None:
    fields, sampling, words = CONTRADICT[case]
    with pytest.raises(ValueError, match=re.escape(words)):
        check_objective(objective(**fields), FlowSamplingConfig.model_validate(sampling))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"objective": "grpo"}, "objective.type = grpo trains on tokens, but sampling.type = flow"),
        (
            {"policy": VLM, "objective": "flow_grpo"},
            "flow_grpo trains on the denoising steps of images, but sampling.type = tokens",
        ),
        ({"policy": VLM, "sampling": {"type": "flow"}}, "policy.type = vlm does not sample by sampling.type = flow"),
        (
            {"policy": VLM, "evaluation": {"path": "h.jsonl", "guidance_scale": 2}},
            "evaluation.guidance_scale = 2.0 acts where the policy draws images",
        ),
        (
            {"evaluation": {"path": "h.jsonl", "temperature": 0.5}},
            "evaluation.temperature = 0.5 acts where the policy writes texts",
        ),
        ({"policy": VLM, "objective": {"kl_importance": True}}, "kl_importance acts only with a kl_beta above 0"),
    ],
)
def test_texts_and_images_do_not_mix(fields: dict[str, Any], said: str) -> None:
    given = {name: {"type": value} if isinstance(value, str) else value for name, value in fields.items()}
    with pytest.raises(ValueError, match=re.escape(said)):
        Config.model_validate({**LEAST, **given})


def test_a_policy_that_writes_has_its_own_sections() -> None:
    config = Config.model_validate({**LEAST, "policy": VLM})
    assert (config.sampling.type, config.objective.type) == ("tokens", "grpo")


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({}, {}),
        ({"type": "grpo_guard", "guard_reweight": True}, {"kind": "dance_sde"}),
        ({"type": "diffusion_nft", "nft_beta": 1.0, "old_decay": 0.9, "timestep_draws": 4, "kl_beta": 0.1}, {}),
        ({"type": "awm", "clip_range": (-0.1, 0.3)}, {"solver": "dpm2m", "pipeline": "one_step_off"}),
        ({"type": "diffusion_dpo", "dpo_beta": 500.0}, {"guidance_scale": 4.5}),
        ({"importance_cap": 2.0, "kl_beta": 0.1, "kl_type": "latent"}, {"pipeline": "one_step_off"}),
    ],
)
def test_what_fits_is_taken(fields: dict[str, Any], sampling: dict[str, Any]) -> None:
    section, taken = objective(**fields), FlowSamplingConfig.model_validate(sampling)
    check_objective(section, taken)  # raises where the two do not fit
    assert {**section.model_dump(), **fields} == section.model_dump()
    assert {**taken.model_dump(), **sampling} == taken.model_dump()
