"""DeepGen-RL's environment variables: each sets the field it means or is said not to, between recipe and command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from services.eval.settings import EvalSettings
from services.hps.settings import HpsSettings
from services.kit.settings import ServiceSettings
from services.ocr.settings import OcrSettings
from services.unifiedreward.settings import UnifiedRewardSettings
from trainer.config import Config, ConfigError
from trainer.config.errors import field_paths
from trainer.config.file import dump_config
from trainer.migration import load_recipe
from trainer.migration.deepgen.environment import environment_overrides
from trainer.migration.deepgen.variables import VARIABLES

RECIPE = """
run_name: test
max_steps: 10
environment: deepgen_rl
policy: {type: deepgen, sd3_path: a, qwen_path: b, checkpoint: c}
sampling: {prompts_per_step: 4, group_size: 4, micro_batch_size: 4}
rewards:
  services: {ocr: {urls: ["http://127.0.0.1:18082"]}}
  columns: {ocr: {service: ocr}}
data:
  train: [{path: train.txt, rewards: {ocr: 1.0}}]
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def load(recipe: Path, monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], *overrides: str) -> Config:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_recipe(recipe, Config, overrides)


def test_models_output_and_services_come_from_the_environment(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {
        "SD3_5_MODEL_NAME_OR_PATH": "models/sd3",
        "QWEN2_5_VL_MODEL_NAME_OR_PATH": "models/qwen",
        "CHECKPOINT": "sft.pth",
        "OUTPUT_DIR": "runs/first",
        "REWARD_SERVICE_ADDR": "node7",
        "ATRAIN_ADV_CLIP_MAX": "3",
        "VLLM_MAX_WORKERS": "16",
        "ATRAIN_NFT_BETA": "0.5",
        "HPS_URL": "http://node8:18083",
        "DEBUG_OCR_VLLM": "",
        "NNODES": "1",
    }
    config = load(recipe, monkeypatch, environment)
    assert config.policy.model_dump(include={"sd3_path", "qwen_path", "checkpoint"}) == {
        "sd3_path": "models/sd3",
        "qwen_path": "models/qwen",
        "checkpoint": "sft.pth",
    }
    assert config.run_dir == Path("runs/first")
    assert config.rewards.services["ocr"].urls == ("http://node7:18082",)
    assert (config.advantage.adv_clip, config.objective.type) == (3.0, "flow_grpo")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "config: SD3_5_MODEL_NAME_OR_PATH sets policy.sd3_path = models/sd3",
        "config: QWEN2_5_VL_MODEL_NAME_OR_PATH sets policy.qwen_path = models/qwen",
        "config: CHECKPOINT sets policy.checkpoint = sft.pth",
        "config: OUTPUT_DIR sets output_dir = runs",
        "config: OUTPUT_DIR sets run_name = first",
        "config: REWARD_SERVICE_ADDR sets rewards.services.ocr.urls = ['http://node7:18082']",
        "config: HPS_URL=http://node8:18083 is not used: the recipe has no rewards.services.hps",
        f"config: VLLM_MAX_WORKERS=16 is not used: {VARIABLES['VLLM_MAX_WORKERS'].remark}",
        "config: ATRAIN_ADV_CLIP_MAX sets advantage.adv_clip = 3.0",
        "config: ATRAIN_NFT_BETA=0.5 is not used: it acts with objective.type = diffusion_nft only",
    ]


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({"DEQA_URL": "node8:18089"}, "http://node8:18089"),
        ({"REWARD_SERVICE_ADDR": "node7"}, "http://node7:18089"),
        ({"REWARD_SERVICE_ADDR": "node7", "DEQA_URL": "http://node8:1"}, "http://node8:1"),
    ],
)
def test_the_quality_scorer_is_found_where_deepgens_variables_say(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], url: str
) -> None:
    recipe.write_text(RECIPE.replace("columns: {", "columns: {deqa: {service: deqa, reward: deqa_over_5}, "))
    recipe.write_text(recipe.read_text().replace("services: {", 'services: {deqa: {urls: ["http://127.0.0.1:1"]}, '))
    assert load(recipe, monkeypatch, environment).rewards.services["deqa"].urls == (url,)


def test_one_url_wins_over_the_host_and_several_share_the_load(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(recipe, monkeypatch, {"REWARD_SERVICE_ADDR": "node7", "OCR_URL": "node1:18082, https://node2:1"})
    assert config.rewards.services["ocr"].urls == ("http://node1:18082", "https://node2:1")


TWO_SERVICES = RECIPE.replace('18082"]}', '18082"]}, hps: {urls: ["http://127.0.0.1:18083"]}')


@pytest.mark.parametrize("host", ["node7", "http://node7/", " node7 "])
def test_one_host_is_that_of_ocr_and_hps(recipe: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    recipe.write_text(TWO_SERVICES)
    services = load(recipe, monkeypatch, {"REWARD_SERVICE_ADDR": host}).rewards.services
    assert (services["ocr"].urls, services["hps"].urls) == (("http://node7:18082",), ("http://node7:18083",))
    services = load(recipe, monkeypatch, {"HPS_URL": "node8:1"}).rewards.services
    assert (services["ocr"].urls, services["hps"].urls) == (("http://node7:18082",), ("http://node8:1",))


def test_a_host_without_a_service_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert environment_overrides({"REWARD_SERVICE_ADDR": "node7"}, {}) == []
    said = capsys.readouterr().err
    assert "node7 is not used: the recipe has no rewards.services.ocr and no rewards.services.hps" in said


@pytest.mark.parametrize(
    "url", ["http://lab:TOKEN@h:1", "lab:TOKEN@h:1", "TOKEN@h", "http://h:1,http://lab:TO,KEN@h:2"]
)
def test_a_token_in_an_address_is_never_shown(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    # Neither is used: the recipe has no such service, and we serve no such reward.
    load(recipe, monkeypatch, {"HPS_URL": url, "AESTHETIC_URL": url})
    with pytest.raises(ConfigError) as raised:
        load(recipe, monkeypatch, {"OCR_URL": url})
    assert "the environment has OCR_URL='" in str(raised.value) and "token_file" in str(raised.value)
    with pytest.raises(ConfigError) as other:
        load(recipe, monkeypatch, {"OCR_URL": "", "REWARD_SERVICE_ADDR": url})
    said = capsys.readouterr().err
    assert "HPS_URL=" in said and "AESTHETIC_URL=" in said
    for text in (said, str(raised.value), str(other.value)):
        assert "KEN" not in text and "lab" not in text, text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://u:p'w@h", "http://h"),
        ('http://u:p"w@h:1/x', "http://h:1/x"),
        ("http://u:p w@h", "http://h"),
        ("http://u:p\nw@h", "http://h"),
        ("http://u:p@w@h", "http://h"),
        ("u:p w@h", "h"),
        ("http://u:p'w@h:1,http://h:2, https://v:q,r@h:3", "http://h:1,http://h:2, https://h:3"),
        ("http://h:1,h:2", "http://h:1,h:2"),
    ],
)
def test_every_address_is_shown_without_its_password(capsys: pytest.CaptureFixture[str], text: str, shown: str) -> None:
    assert environment_overrides({"HPS_URL": text}, {}) == []
    assert f"config: HPS_URL={shown} is not used: " in capsys.readouterr().err


def test_an_at_sign_in_a_path_is_shown(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(recipe, monkeypatch, {"CHECKPOINT": "models/me@home.pth"})
    assert "CHECKPOINT sets policy.checkpoint = models/me@home.pth" in capsys.readouterr().err


@pytest.mark.parametrize("service", [OcrSettings, HpsSettings, EvalSettings, UnifiedRewardSettings])
def test_a_variable_that_our_services_read_is_said_to_be(service: type[ServiceSettings]) -> None:
    prefix = service.model_config["env_prefix"]
    read = [f"{prefix}{field.upper()}" for field in service.model_fields if f"{prefix}{field.upper()}" in VARIABLES]
    for name in read:
        assert "unset it before starting our services on that machine" in VARIABLES[name].remark, name
    documented = [
        name for name in VARIABLES if name.startswith(prefix) and "our services on that" in VARIABLES[name].remark
    ]
    assert set(documented) == set(read)


def test_the_command_line_wins_and_can_switch_the_environment_off(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"CHECKPOINT": "sft.pth", "OUTPUT_DIR": "runs/first"}
    config = load(recipe, monkeypatch, environment, "policy.checkpoint=mine.pth")
    assert (config.policy.checkpoint, config.run_name) == ("mine.pth", "first")
    config = load(recipe, monkeypatch, environment, "environment=none")
    assert (config.policy.checkpoint, config.run_name) == ("c", "test")


def test_a_recipe_that_does_not_ask_is_not_changed(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.write_text(RECIPE.replace("environment: deepgen_rl\n", ""))
    assert load(recipe, monkeypatch, {"CHECKPOINT": "sft.pth", "OUTPUT_DIR": "x"}).policy.checkpoint == "c"
    assert load(recipe, monkeypatch, {}, "environment=deepgen_rl").policy.checkpoint == "sft.pth"


def test_the_resolved_configuration_is_not_changed_by_a_later_environment(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is exported with the config the run had, whatever is set by then."""
    config = load(recipe, monkeypatch, {"OUTPUT_DIR": "runs/first"})
    recipe.write_text(dump_config(config))
    assert load(recipe, monkeypatch, {"OUTPUT_DIR": "runs/second"}) == config


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ATRAIN_ADV_CLIP_MAX", "much", "it must be a number"),
        ("ATRAIN_INCLUDE_LAST_DENOISE_STEP", "1", "the last denoising step is deterministic here"),
        ("ATRAIN_INCLUDE_LAST_DENOISE_STEP", "maybe", "it must be 1 or 0"),
        ("OUTPUT_DIR", "/", "it must be a folder with a name"),
        ("REWARD_SERVICE_ADDR", "https://node7", "it must be a host name, such as node7"),
        ("REWARD_SERVICE_ADDR", "node7:18082", "it must be a host name, such as node7"),
        ("REWARD_SERVICE_ADDR", "http://node7/ocr", "it must be a host name, such as node7"),
    ],
)
def test_a_value_that_cannot_be_used_names_the_variable(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        load(recipe, monkeypatch, {name: value})
    assert str(raised.value).startswith(f"the environment has {name}={value!r}: {words}")


def test_what_matters_is_said_by_rank_0_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert environment_overrides({"DATASET_CONFIG": "a.yaml"}, {}) == ['data.dataset_config="a.yaml"']
    assert capsys.readouterr().err == ""


def test_every_variable_sets_a_field_that_exists_or_says_why_not() -> None:
    known = set(field_paths(Config))
    for name, variable in VARIABLES.items():
        assert variable.remark or variable.field, name
        for field in filter(None, (variable.field or "").split(", ")):
            parts = field.split(".")
            path = ".".join("*" if parts[i - 1 : i] == ["services"] else part for i, part in enumerate(parts))
            assert path in known, name
