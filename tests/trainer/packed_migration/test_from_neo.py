"""Command lines of NEO: what each flag becomes, what does nothing and why, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.packed_rows import write_images, write_rows
from trainer.__main__ import main
from trainer.config import Config, ConfigError
from trainer.config.file import checked
from trainer.data.formats.groups import read_groups
from trainer.data.prompts.checks import DataError
from trainer.migration.neo.command import from_neo, neo_help, read_neo
from trainer.migration.neo.flags import PRESETS, flags
from trainer.migration.neo.translation import translate
from trainer.migration.recipe_text import nested

SCRIPT = """#!/bin/bash
MASTER_PORT=${MASTER_PORT:-29500}
NOT_SET=$THIS_IS_SET_BY_NOBODY
deepspeed=./scripts/zero2.json
llm=models/Qwen3-1.7B-Base
entry_file=neo/train/train.py
args="
    --deepspeed ${deepspeed} \\
    --llm_model_name_or_path ${llm} \\
    --dataset_use shapes%50,texts \\
    --train_buffer True \\
    --extra_num_layers 12 --num_hidden_layers 40 \\
    --bf16 --gradient_checkpointing True
    --output_dir outputs/2B_1PT
    --max_steps 200000 --per_device_train_batch_size 64 --gradient_accumulation_steps 5
    --max_pixels 4194304 --min_pixels 12544 --max_seq_length 16384
    --learning_rate 8e-4 --lr_scheduler_type cosine_with_min_lr --min_lr_ratio 0.1 --warmup_steps 1000
    --report_to tensorboard --dataloader_num_workers 4 --loss_reduction square"

# start
torchrun --nproc_per_node=8 \\
         --master_port=${MASTER_PORT} \\
         ${entry_file} ${args}
"""
REGISTRY = """
SHAPES = {"annotation_path": "rows/shapes.jsonl", "data_path": "pictures"}
data_dict = {"shapes": SHAPES, "texts": {"annotation_path": "rows/texts.json", "data_path": ""}}
"""
START = "--dataset_use shapes --output_dir out/run"
READ = f"{START} --model_name_or_path models/neo"


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the program runs in, with its files."""
    (tmp_path / "neo/data").mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "rows").mkdir()
    write_images(tmp_path / "pictures")
    talk = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "red"}]
    write_rows(tmp_path / "rows/shapes.jsonl", [{"image": "red.png", "conversations": talk}] * 8, array=False)
    write_rows(tmp_path / "rows/texts.json", [{"conversations": talk}])
    (tmp_path / "neo/data/__init__.py").write_text(REGISTRY)
    (tmp_path / "scripts/2B_1PT.sh").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(text: str) -> dict[str, Any]:
    lines, _ = translate(read_neo(text.split()))
    return nested(lines)


def test_a_script_becomes_a_recipe_that_is_complete(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["from-neo", "scripts/2B_1PT.sh"]) == 0
    out, err = capsys.readouterr()
    tree = yaml.safe_load(out)
    config = checked(kit / "mine.yaml", Config, tree)
    assert (config.program, config.max_steps, config.run_name) == ("supervised", 200000, "2B_1PT")
    policy = tree["policy"]
    assert (policy["type"], policy["train"], policy["max_pixels"], policy["dtype"]) == (
        "neo",
        "stage_1",
        4194304,
        "bfloat16",
    )
    assert (policy["grow"]["language"], policy["grow"]["extra_layers"]) == (str(kit / "models/Qwen3-1.7B-Base"), 12)
    assert (policy["grow"]["rope_theta_hw"], policy["grow"]["rope_theta_vision"]) == (1e4, 1e3)
    packed = config.packed
    assert packed is not None
    assert (packed.packs, packed.fill, packed.rows_per_pack, packed.max_tokens) == (40, "rows", 64, 16384)
    assert (packed.loss.reduction, packed.loss.per, packed.workers) == ("square", "row", 4)
    [group] = packed.groups
    assert [(each.name, each.share, each.format) for each in group.sets] == [
        ("shapes", 0.5, "conversations"),
        ("texts", 1.0, "conversations"),
    ]
    assert group.sets[0].image_folder == str(kit / "pictures")  # data_path, which is never joined there
    assert (config.optim.lr, config.optim.schedule, config.optim.min_lr) == (8e-4, "cosine", 8e-5)
    assert (config.optim.warmup_steps, config.optim.betas, config.optim.weight_decay) == (1000, (0.9, 0.95), 0.1)
    assert config.distributed.deepspeed is not None and config.distributed.deepspeed.endswith("deepspeed/zero2.json")
    assert config.logging.report_to == ("tensorboard",)
    said = [line.split(" does nothing")[0] for line in err.splitlines()]
    assert said == ["from-neo: --master_port 29500", "from-neo: --num_hidden_layers 40"]


def test_its_data_is_read_from_the_recipe(kit: Path) -> None:
    config = checked(kit / "mine.yaml", Config, yaml.safe_load(from_neo(["scripts/2B_1PT.sh"])))
    assert config.packed is not None
    taken = [[each.row(place) for place in range(len(each))] for each in read_groups(config.packed, 42)[0].sets]
    assert [len(each) for each in taken] == [4, 1]
    again = [[each.row(place) for place in range(len(each))] for each in read_groups(config.packed, 42)[0].sets]
    assert again == taken
    [group] = read_groups(config.packed, 42)
    for position in range(len(group)):
        plans, number = group.row(position, 0)
        assert plans.plan(number).items


def test_a_deepspeed_file_of_its_own_is_taken_as_it_is(kit: Path) -> None:
    (kit / "scripts/zero2.json").write_text("{}")
    assert recipe(f"{READ} --deepspeed scripts/zero2.json")["distributed"]["deepspeed"] == str(
        kit / "scripts/zero2.json"
    )
    assert "distributed" not in recipe(READ)


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_published_stage_is_a_recipe(kit: Path, name: str) -> None:
    model = "--llm_model_name_or_path models/qwen" if "1PT" in name else "--model_name_or_path models/neo"
    tree = recipe(f"{name} {model} --dataset_use shapes")
    config = checked(kit / "mine.yaml", Config, tree)
    assert config.packed is not None and config.packed.fill == "rows"
    # Rate, steps, pixels, tokens, packs on a GPU, warm-up and least rate of the published scripts.
    expected = {
        "2B_1PT": (8e-4, 200_000, 4194304, 16384, 5, 1000, 8e-5),
        "2B_2MTsi": (5e-5, 50_000, 16777216, 32768, 2, 1500, 1e-5),
        "2B_3SFTsi": (6e-5, 4_500, 16777216, 34816, 1, 135, 6e-6),
        "8B_1PT": (8e-4, 200_000, 4194304, 16384, 5, 1000, 8e-5),
        "8B_2MTsi": (5e-5, 50_000, 16777216, 18432, 2, 200, 1e-5),
        "8B_3SFTsi": (6e-5, 4_500, 16777216, 18432, 1, 200, 0.0),
    }[name]
    optim, packed = config.optim, config.packed
    assert expected == (
        optim.lr, config.max_steps, tree["policy"]["max_pixels"], packed.max_tokens, packed.packs, optim.warmup_steps, optim.min_lr
    )  # fmt: skip
    assert tree["policy"]["train"] == ("stage_1" if "1PT" in name else "all")
    assert tree["policy"].get("grow", {}).get("extra_layers") == {"2B_1PT": 12, "8B_1PT": 6}.get(name)
    assert recipe(f"{name} {model} --dataset_use shapes --max_steps 7")["max_steps"] == 7


def test_percentages_beyond_all_and_of_nothing_are_said(kit: Path) -> None:
    lines, said = translate(read_neo(f"{READ} --dataset_use shapes%150,texts%0".split()))
    [group] = nested(lines)["packed"]["groups"]
    assert [each["name"] for each in group["sets"]] == ["shapes"] and "share" not in group["sets"][0]
    assert said == [
        "--dataset_use is given twice, shapes and shapes%150,texts%0: the last one counts",
        "--dataset_use: texts%0 takes no row; it is left out",
        "--dataset_use: shapes%150 is more than all rows; it takes all",
    ]


def test_what_does_nothing_is_said_with_the_reason(kit: Path) -> None:
    _, said = translate(
        read_neo(
            f"{READ} --extra_num_layers 12 --lr_scheduler_type cosine --min_lr_ratio 0.1 --warmup_ratio 0.1 --warmup_steps 5 "
            "--data_flatten True --dtype float32 --bf16 True".split()
        )
    )
    assert [sentence.split(" does nothing here: ") for sentence in said] == [
        ["--extra_num_layers 12", "the NEO folder of --model_name_or_path has its own"],
        ["--data_flatten True", "nothing reads it there either"],
        ["--min_lr_ratio 0.1", "--lr_scheduler_type cosine does not read it, there neither"],
        ["--warmup_ratio 0.1", "--warmup_steps 5 says it"],
        ["--bf16 True", "--dtype float32 says it"],
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (f"{READ} --max_step_count 3", "--max_step_count is no flag of NEO: did you mean max_steps?"),
        (f"{READ} --train_buffer perhaps", "--train_buffer 'perhaps' is neither true nor false"),
        (START, "neither of --llm_model_name_or_path and --model_name_or_path is given"),
        (f"{READ} --llm_model_name_or_path qwen", "both of --llm_model_name_or_path and --model_name_or_path"),
        ("--dataset_use shapes --model_name_or_path neo", "--output_dir is missing"),
        (f"{READ} --max_steps -1", "--max_steps -1 must be at least 1"),
        (f"{READ} --dataset_use shapes%0", "--dataset_use shapes%0: takes no row"),
        (f"{READ} --loss_reduction mean", "--loss_reduction mean: there are token, sample and square"),
        (f"{READ} --lr_scheduler_type step", "--lr_scheduler_type step is not offered"),
        (f"{READ} --deepspeed ds.json", "--deepspeed ds.json: no such file in"),
        (f"{READ} --report_to mlflow", "--report_to: mlflow is none of tensorboard, wandb, swanlab"),
        (f"{READ} --dtype half", "--dtype half: there are bfloat16 and float32"),
        (f"{READ} --per_device_train_batch_size 0", "--per_device_train_batch_size: the recipe that it becomes"),
        (f"{READ} --max_pixels 10", "min_pixels = 12544 is more than max_pixels = 10"),
        (f"2B_1PTT {READ}", "'2B_1PTT' is neither a stage (2B_1PT, 2B_2MTsi, "),
        (f"2b_1pt {READ}", "begins with a flag; did you mean 2B_1PT?"),
        (f"{READ} --warmup_ratio 2", "--warmup_ratio 2 is no share of --max_steps; give one from 0 to 1"),
        (f"{READ} --attn_implementation fast", "--attn_implementation fast: there are flex_attention, eager, sdpa, flash_attention_2"),
        (f"{READ} --dynamic_image_size tiles", "--dynamic_image_size tiles: there is native_resolution alone"),
        (f"{READ} --output_dir=", "--output_dir has an empty value"),
        (f"{READ} --optim adamw_torch", "--optim is no flag of NEO: see --help"),
        (f"{READ} --max_pixels 10", "min_pixels = 12544 is more than max_pixels = 10; lower it"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_refused_by_name(kit: Path, given: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_neo(given.split())
    assert message in str(error.value)


def test_what_is_rounded_is_said_beside_its_line(kit: Path) -> None:
    lines, _ = translate(read_neo(f"{READ} --warmup_steps 500000 --attn_implementation flash_attention_2".split()))
    assert (lines["optim.warmup_steps"].value, lines["policy.attention"].value) == (199999, "auto")
    assert lines["optim.warmup_steps"].comment == "500000 there, which max_steps cuts off"
    assert lines["policy.attention"].comment == "flash_attention_2 there"


def test_a_deepspeed_file_with_auto_everywhere_is_taken(kit: Path) -> None:
    """As those that are published beside the scripts."""
    auto = {
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "bf16": "auto",
        "optimizer": {"type": "AdamW", "params": "auto"},
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "sub_group_size": 1e9},
    }
    (kit / "all.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(auto).encode())
    recipe = yaml.safe_load(from_neo(f"{READ} --deepspeed all.json --bf16 True".split()))
    assert recipe["distributed"]["deepspeed"] == str(kit / "all.json")


def test_an_unknown_data_set_lists_the_known_ones(kit: Path) -> None:
    with pytest.raises(DataError, match=r"no data set 'sbu_captions' in .*; known are: SHAPES, shapes, texts"):
        from_neo(["--output_dir", "out", "--model_name_or_path", "neo"])


def test_no_registry_is_said_with_the_way_out(kit: Path) -> None:
    (kit / "neo/data/__init__.py").rename(kit / "mine.py")
    with pytest.raises(
        ConfigError,
        match=r"no neo/data/__init__\.py in .*; say where the data sets are registered by --dataset_registry",
    ):
        recipe(READ)
    assert recipe(f"{READ} --dataset_registry mine.py")["packed"]["groups"][0]["sets"][0]["name"] == "shapes"


def test_every_flag_is_in_the_help() -> None:
    text = neo_help()
    assert all(f"  --{name}: " in text for name in flags()) and "  2B_1PT: --bf16 True" in text
