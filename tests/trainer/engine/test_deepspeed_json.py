"""DeepSpeed files: those of the project and of DeepGen-RL are read; what contradicts the configuration is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.config import Config, ConfigError
from trainer.config.deepspeed import check_accumulation, check_node_share, passed_on, read_deepspeed, stage
from trainer.config.file import load_config

ROOT = Path(__file__).resolve().parents[3]
RECIPE = ROOT / "configs" / "quickstart.yaml"  # 8 prompts x 12 = 96 samples a step, in micro-batches of 48
Write = Callable[[Any], list[str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def with_file(settings: Any) -> list[str]:
        path = tmp_path / "deepspeed.json"
        path.write_text(settings if isinstance(settings, str) else json.dumps(settings), encoding="utf-8")
        return [f"distributed.deepspeed={path}"]

    return with_file


def hugging_face_style(number: int, *, bf16: bool | str = "auto", **zero: Any) -> dict[str, Any]:
    """Built like the files of DeepGen-RL's scripts/deepspeed."""
    return {
        "bf16": {"enabled": bf16},
        "fp16": {"enabled": False},
        "optimizer": {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")},
        "zero_optimization": {"stage": number, "overlap_comm": False, "reduce_bucket_size": "auto", **zero},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "steps_per_print": 1e9,
        "wall_clock_breakdown": False,
    }


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "deepspeed").glob("*.json")), ids=lambda path: path.stem)
def test_every_file_of_the_project_fits_every_recipe(path: Path) -> None:
    number = stage(read_deepspeed(str(path)))
    assert str(number) in path.stem
    config = load_config(RECIPE, Config, [f"distributed.deepspeed={path}"])
    for ranks in (1, 2, 8):
        check_accumulation(config.distributed.deepspeed, config.deepspeed_owner, ranks)


@pytest.mark.parametrize("number", [2, 3])
def test_files_for_the_hugging_face_trainer_are_taken(write: Write, number: int) -> None:
    settings = hugging_face_style(number, stage3_prefetch_bucket_size="auto", offload_param={"device": "cpu"})
    config = load_config(RECIPE, Config, write(settings))
    assert config.distributed.deepspeed is not None
    given = passed_on(read_deepspeed(config.distributed.deepspeed))
    zero = {"stage": number, "overlap_comm": False, "offload_param": {"device": "cpu"}}
    assert given == {"zero_optimization": zero, "steps_per_print": 1e9, "wall_clock_breakdown": False}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"train_batch_size": 32}, ["train_batch_size is 32", "group_size is 96", '"auto"']),
        ({"train_micro_batch_size_per_gpu": 1}, ["per_gpu is 1", "optim.micro_batch_size) is 48"]),
        ({"gradient_clipping": 0.5}, ["gradient_clipping is 0.5", "optim.max_grad_norm is 1.0"]),
        ({"optimizer": {"type": "Lion"}}, ["optimizer.type is 'Lion'", "the optimizer is 'AdamW'"]),
        ({"optimizer": {"params": {"lr": 1.0}}}, ["optimizer.params.lr is 1.0", "optim.lr is"]),
        ({"optimizer": {"params": {"amsgrad": True}}}, ["optimizer.params.amsgrad is True"]),
        ({"scheduler": {"type": "WarmupLR"}}, ["scheduler is 'WarmupLR'", "optim.schedule is"]),
        ({"bf16": {"enabled": True}}, ["bf16.enabled is 'bfloat16'", "policy.dtype is 'float32'"]),
        ({"fp16": {"enabled": True}}, ["fp16.enabled is 'float16'", "policy.dtype is 'float32'"]),
        ({"zero_optimization": {"stage": 4}}, ["zero_optimization.stage, a number from 0 to 3"]),
        ({"zero_optimization": {"stage": True}}, ["zero_optimization.stage, a number from 0 to 3"]),
        ({"sparse_attention": {}, "autotuning": {}}, ["autotuning, sparse_attention would have no effect"]),
    ],
)
def test_contradictions_name_both_values(write: Write, changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(RECIPE, Config, write({"zero_optimization": {"stage": 2}, **changes}))
    for part in parts:
        assert part in str(caught.value)


def test_equal_values_are_taken(write: Write) -> None:
    settings = {"zero_optimization": {"stage": 2}, "train_batch_size": 96, "gradient_clipping": 1.0}
    config = load_config(RECIPE, Config, write({**settings, "gradient_accumulation_steps": 1}))
    assert config.distributed.deepspeed is not None
    assert read_deepspeed(config.distributed.deepspeed)["train_batch_size"] == 96


def test_a_fixed_accumulation_must_fit_the_ranks(write: Write) -> None:
    config = load_config(RECIPE, Config, write({"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": 1}))
    check_accumulation(
        config.distributed.deepspeed, config.deepspeed_owner, 2
    )  # 96 samples in micro-batches of 48 on two ranks
    with pytest.raises(ConfigError, match=r"steps is 1 in .* of 48 on 1 ranks are 2 for each; write 2"):
        check_accumulation(config.distributed.deepspeed, config.deepspeed_owner, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold zero_optimization.stage"),
        (None, "cannot be read"),
        ('{"zero_optimization": {"stage": "auto"}}', "must hold zero_optimization.stage, a number from 0 to 3"),
        (
            '{"zero_optimization": {"stage": 2}, "bf16": true}',
            'bf16 is True; it is a table of settings, or "auto", or left out',
        ),
        ('{"zero_optimization": {"stage": 2}, "fp16": null}', "fp16 is None; it is a table"),
        ('{"zero_optimization": {"stage": 2}, "optimizer": "AdamW"}', "optimizer is 'AdamW'; it is a table"),
        ('{"zero_optimization": {"stage": 2}, "optimizer": {"params": 3}}', "optimizer.params is 3; it is a table"),
        ('{"zero_optimization": {"stage": 2}, "scheduler": "WarmupLR"}', "scheduler is 'WarmupLR'; it is a table"),
        (
            '{"zero_optimization": {"stage": 3, "zero_hpz_partition_size": "x"}}',
            "zero_hpz_partition_size is 'x'; it is the number of GPUs",
        ),
    ],
)
def test_files_that_cannot_be_used(write: Write, tmp_path: Path, text: str | None, message: str) -> None:
    override = write(text) if text is not None else [f"distributed.deepspeed={tmp_path / 'none.json'}"]
    with pytest.raises(ConfigError, match=message):
        load_config(RECIPE, Config, override)


def test_ranks_are_whole_nodes_where_each_has_a_second_copy_of_the_weights() -> None:
    path = str(ROOT / "configs" / "deepspeed" / "zero3_hybrid.json")
    assert passed_on(read_deepspeed(path))["zero_optimization"]["zero_hpz_partition_size"] == 8
    for ranks in (8, 32):
        check_node_share(path, ranks)
    check_node_share(str(ROOT / "configs" / "deepspeed" / "zero3.json"), 3)
    with pytest.raises(ConfigError, match=r"zero_hpz_partition_size is 8 in .*hybrid\.json, which 12 ranks cannot be"):
        check_node_share(path, 12)
