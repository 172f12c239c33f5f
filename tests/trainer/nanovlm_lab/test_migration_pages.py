"""The pages for users of NanoVLM-Lab and TRL: every key is there with its default, and every field they name is one of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from trainer.config import Config
from trainer.config.file import checked
from trainer.migration.nanovlm_lab.keys import LORA, SECTIONS, ByType, Key

DOCS = Path(__file__).parents[3] / "docs"
# The fields of TRL 1.16's GRPOConfig that are not of TrainingArguments.
TRL = [
    "model_init_kwargs",
    "trust_remote_code",
    "router_aux_loss_coef",
    "disable_dropout",
    "cast_lm_head_to_fp32",
    "num_generations",
    "num_generations_eval",
    "max_completion_length",
    "ds3_gather_for_generation",
    "shuffle_dataset",
    "pad_to_multiple_of",
    "generation_batch_size",
    "steps_per_generation",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "generation_kwargs",
    "chat_template_kwargs",
    "repetition_penalty",
    "cache_implementation",
    "use_vllm",
    "vllm_mode",
    "vllm_model_impl",
    "vllm_enable_sleep_mode",
    "vllm_structured_outputs_regex",
    "vllm_server_base_url",
    "vllm_server_host",
    "vllm_server_port",
    "vllm_server_timeout",
    "vllm_group_port",
    "vllm_gpu_memory_utilization",
    "vllm_max_model_length",
    "vllm_tensor_parallel_size",
    "beta",
    "num_iterations",
    "epsilon",
    "delta",
    "epsilon_high",
    "sapo_temperature_neg",
    "sapo_temperature_pos",
    "vespo_k_pos",
    "vespo_lambda_pos",
    "vespo_k_neg",
    "vespo_lambda_neg",
    "importance_sampling_level",
    "reward_weights",
    "multi_objective_aggregation",
    "scale_rewards",
    "loss_type",
    "mask_truncated_completions",
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
    "top_entropy_quantile",
    "entropy_coef",
    "use_adaptive_entropy",
    "entropy_coef_min",
    "entropy_coef_max",
    "entropy_coef_delta",
    "entropy_target",
    "max_tool_calling_iterations",
    "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode",
    "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min",
    "off_policy_mask_threshold",
    "use_bias_correction_kl",
    "log_completions",
    "log_multimodal",
    "num_completions_to_print",
    "log_unique_prompts",
    "log_completions_hub_repo",
    "use_transformers_continuous_batching",
    "transformers_continuous_batching_config",
    "use_transformers_paged",
    "vllm_importance_sampling_cap",
]


def fields_of(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every field of ours, dotted; those of a list's entries without a number."""
    for name, field in model.model_fields.items():
        yield f"{above}{name}"
        for section in sections_in(field.annotation):
            yield from fields_of(section, f"{above}{name}.")


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from sections_in(inner)


@pytest.fixture(scope="module")
def ours() -> set[str]:
    return set(fields_of(Config))


def table(text: str) -> list[list[str]]:
    """The rows of all Markdown tables whose first cell is a name in code."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows if len(row) == 4]


def shown(key: Key) -> str:
    """A default as the page writes it."""
    value = key.default
    if isinstance(value, ByType):
        return " / ".join(map(str, value.values()))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def test_the_lab_page_has_every_key_with_its_default_and_its_field() -> None:
    found = {
        name.strip("`"): (default, here, why)
        for name, default, here, why in table((DOCS / "migration_nanovlm_lab.md").read_text())
    }
    keys = {f"{s}.{name}": key for s, ks in {**SECTIONS, "model.lora_config": LORA}.items() for name, key in ks.items()}
    assert keys.keys() == found.keys()
    for name, key in keys.items():
        default, here, why = found[name]
        assert default == shown(key), name
        assert here.strip("`") == key.ours.strip("`"), name
        assert key.remark in why and all(reason in why for reason in key.idle.values()), name


def test_fields_of_the_lab_table_are_ours(ours: set[str]) -> None:
    """A field of a policy's groups, or of one entry among several, is named after its place."""
    free = {"optim.groups.projector.lr", "optim.groups.vision.lr", "optim.groups.language.lr", "rewards.services.rules"}
    for keys in (*SECTIONS.values(), LORA):
        for key in keys.values():
            if key.ours.startswith("`"):
                continue  # a command
            for field in re.findall(r"[a-z_]+(?:\.[a-z_]+)+", key.ours.partition(";")[0].replace("`", "")):
                assert field in ours | free, (field, key.ours)


def test_the_trl_page_has_every_field_and_names_ours(ours: set[str]) -> None:
    text = (DOCS / "from_trl.md").read_text()
    rows = table(text)
    assert sorted(row[0].strip("`") for row in rows[: len(TRL)]) == sorted(TRL)
    for name, _, here, why in rows:
        assert (here == "–" and why) or here.strip("`") in ours, name


def test_the_trl_recipe_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "from_trl.md").read_text(), re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(
        "def accuracy_reward(completions, **columns):\n    return []\n\n\ndef format_reward(completions, **columns):\n    return []\n"
    )
    tree = yaml.safe_load(text.replace("my_rewards.py", str(tmp_path / "my_rewards.py")))
    config = checked(tmp_path / "recipe.yaml", Config, tree)
    assert config.objective.type == "dapo" and config.sampling.type == "tokens"
