"""Command lines of UniReason: what each flag becomes, what does nothing and why, and what is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.packed_rows import ROWS, write_images, write_rows
from trainer.__main__ import main
from trainer.config import Config, ConfigError
from trainer.config.file import checked
from trainer.config.paths import check_policy_files
from trainer.data.formats.groups import group_notes, read_groups
from trainer.migration.recipe_text import nested
from trainer.migration.unireason.command import from_unireason, read_unireason, unireason_help
from trainer.migration.unireason.flags import FIXED, PRESETS, flags
from trainer.migration.unireason.translation import translate

SCRIPT = """#!/bin/bash
NUM_NODES=8
NPROC_PER_NODE=8
MODEL_PATH=models/BAGEL-7B-MoT
PARM_PATH=models/results/stage_1_align/0030000

# replace the variables with your own
torchrun \\
  --nnodes=$NUM_NODES \\
  --nproc_per_node=$NPROC_PER_NODE \\
  train/pretrain_unified_navit.py \\
  --dataset_config_file ./data/configs/example_sft.yaml \\
  --model_path $MODEL_PATH \\
  --layer_module Qwen2MoTDecoderLayer \\
  --max_latent_size 64 \\
  --resume-from $PARM_PATH \\
  --finetune_from_hf True \\
  --auto_resume True \\
  --resume-model-only True \\
  --finetune-from-ema True \\
  --log_every 1 \\
  --lr 2e-5 \\
  --ema 0.995 \\
  --ce_weight 2.0 \\
  --lr_scheduler cosine \\
  --min_lr 1e-6 \\
  --timestep_shift 4 \\
  --num_worker 4 \\
  --max_num_tokens 50000 \\
  --cpu_offload True \\
  --max_num_tokens_per_sample 50000 \\
  --prefer_buffer_before 50000 \\
  --sharding_strategy="FULL_SHARD" \\
  --save_every 5000 \\
  --warmup_steps 1000 \\
  --total_steps 10000 \\
  --results_dir models/results/ \\
  --checkpoint_dir models/results/stage_2_reason/ > run_sft.out 2> run_sft.err  \\

# --cpu_offload True \\
"""
INFO = """
DATASET_REGISTRY = {'t2i_reason': ThinkT2IIterableDataset}
DATASET_INFO = {'t2i_reason': {'t2i_reason': {'jsonl_path': '%s/rows.json', 'data_dir': 'x', 'image_prefix_dir': '%s'}}}
"""
GROUPS = "t2i_reason:\n  dataset_names: [t2i_reason]\n  num_used_data: None\n  weight: 1.0\n  is_mandatory: true\n"
START = "--finetune_from_hf True --dataset_config_file data/configs/example_sft.yaml"


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the program runs in, with its files."""
    (tmp_path / "data/configs").mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    write_images(tmp_path / "pictures")
    write_rows(tmp_path / "pictures" / "rows.json", [ROWS["t2i_reason"]])
    (tmp_path / "data/configs/example_sft.yaml").write_text(GROUPS)
    (tmp_path / "data/dataset_info.py").write_text(INFO % (tmp_path / "pictures", tmp_path / "pictures"))
    (tmp_path / "scripts/sft.sh").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(text: str) -> dict[str, Any]:
    lines, _ = translate(read_unireason(text.split()))
    return nested(lines)


def idle(text: str) -> list[str]:
    return translate(read_unireason(text.split()))[1]


def test_the_published_script_becomes_a_recipe_that_is_complete(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["from-unireason", "scripts/sft.sh"]) == 0
    out, err = capsys.readouterr()
    tree = yaml.safe_load(out)
    config = checked(kit / "mine.yaml", Config, tree)
    assert (config.program, config.max_steps, config.seed) == ("supervised", 10000, 4396)
    assert (config.output_dir, config.run_name) == (str(kit / "models/results"), "stage_2_reason")
    policy = tree["policy"]
    assert policy["pretrained"] == str(kit / "models/BAGEL-7B-MoT")
    assert policy["weights"] == str(kit / "models/results/stage_1_align/0030000")
    assert (policy["type"], policy["use_ema"], policy["max_latent_size"], policy["attention"]) == (
        "mot",
        True,
        64,
        "auto",
    )
    assert "freeze" not in policy
    packed = config.packed
    assert packed is not None
    assert (packed.packs, packed.expected_tokens, packed.max_tokens) == (64, 32768, 50000)
    assert (packed.max_row_tokens, packed.buffer_below, packed.buffer_size, packed.workers) == (50000, 50000, 50, 4)
    assert (packed.dropout.text, packed.dropout.clean, packed.dropout.seen) == (0.1, 0.1, 0.0)
    assert (packed.noise.shift, packed.loss.ce_weight, packed.loss.mse_weight) == (4, 2, 1)
    assert (packed.loss.reduction, packed.loss.per) == ("token", "text")
    optim = config.optim
    assert (optim.lr, optim.schedule, optim.min_lr, optim.warmup_steps) == (2e-5, "cosine", 1e-6, 1000)
    assert (optim.betas, optim.weight_decay, optim.max_grad_norm, optim.ema_decay) == ((0.9, 0.95), 0, 1, 0.995)
    assert (config.checkpoint.save_every, config.checkpoint.keep, config.logging.report_to) == (5000, 5, ())
    deepspeed = config.distributed.deepspeed
    assert deepspeed is not None and deepspeed.endswith("configs/deepspeed/zero3_offload.json")
    said = [line.split(" does nothing")[0] for line in err.splitlines()]
    assert said == [
        f"from-unireason: --{name}" for name in ("results_dir models/results/", "auto_resume True", "log_every 1")
    ]


def test_its_data_is_read_from_the_recipe(kit: Path) -> None:
    config = checked(kit / "mine.yaml", Config, yaml.safe_load(from_unireason(["scripts/sft.sh"])))
    assert config.packed is not None
    [group] = read_groups(config.packed, config.seed)
    plans, number = group.row(0, 0)
    assert group.mandatory and len(plans.plan(number).items) == 4


def test_the_fixed_sentences_are_taken_from_its_own_files(kit: Path) -> None:
    assert not {"think_instruction", "refine_instruction"} & recipe(START)["packed"].keys()
    folder = kit / "data/interleave_datasets"
    folder.mkdir()
    (folder / "think_t2i.py").write_text('def f():\n    prompt = "Think."\n')
    (folder / "think_refine_t2i.py").write_text('def f():\n    prompt = "Refine."\n')
    packed = checked(kit / "mine.yaml", Config, recipe(START)).packed
    assert packed is not None and packed.think_instruction == str(folder / "think_t2i.py")
    assert ["(6 characters" in group_notes(packed)[0], "(7 characters" in group_notes(packed)[1]] == [True, True]
    moved = shutil.move(folder, kit / "elsewhere")
    assert recipe(f"{START} --instructions elsewhere")["packed"]["refine_instruction"] == f"{moved}/think_refine_t2i.py"
    (kit / "elsewhere/think_t2i.py").unlink()
    with pytest.raises(ConfigError, match=r"--instructions elsewhere: has not think_t2i\.py and think_refine_t2i\.py"):
        recipe(f"{START} --instructions elsewhere")


def test_both_spellings_beginnings_of_names_and_no_are_understood(kit: Path) -> None:
    assert (
        recipe(f"{START} --num-worker=7 --ce-loss-reweighting --use_flex yes --no_freeze_vae")["packed"]["workers"] == 7
    )
    tree = recipe(f"{START} --num-worker=7 --ce-loss-reweighting --use_flex yes")
    assert (tree["packed"]["loss"]["reduction"], tree["policy"]["attention"]) == ("square", "flex")


@pytest.mark.parametrize(
    "launcher",
    [
        "torchrun --standalone --nproc_per_node 2 train/pretrain_unified_navit.py",
        "torchrun --rdzv-backend c10d --rdzv_endpoint host:1 --nproc-per-node=2 train/pretrain_unified_navit.py",
        "python -m torch.distributed.run --nproc_per_node 2 train/pretrain_unified_navit.py",
        "CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 train/pretrain_unified_navit.py",
    ],
)
def test_what_starts_it_is_no_flag(kit: Path, launcher: str) -> None:
    assert recipe(f"{launcher} {START}")["packed"]["packs"] == 2


def test_a_flag_that_is_given_twice_is_said_and_the_last_counts(kit: Path) -> None:
    assert recipe(f"{START} --lr 1e-5 --lr=2e-5")["optim"]["lr"] == 2e-5
    assert idle(f"{START} --lr 1e-5 --lr=2e-5") == ["--lr is given twice, 1e-05 and 2e-05: the last one counts"]
    assert idle(f"{START} --lr 1e-5 --lr=1e-5") == []
    assert idle(f"align {START} --lr 1e-5") == [], "that is what a stage's name is for"


def test_sizes_of_packs_of_the_first_stage_are_the_codes(kit: Path) -> None:
    """The paper does not say them, and the script is of the second."""
    packed = recipe(f"align {START}")["packed"]
    assert (packed["expected_tokens"], packed["max_tokens"], packed["max_row_tokens"]) == (32768, 36864, 16384)
    packed = recipe(f"reason {START}")["packed"]
    assert (packed["expected_tokens"], packed["max_tokens"], packed["max_row_tokens"]) == (32768, 50000, 50000)


def test_defaults_are_those_of_the_code(kit: Path) -> None:
    tree = recipe(START)
    assert (tree["max_steps"], tree["policy"]["max_latent_size"], tree["packed"]["packs"]) == (20000, 64, 1)
    assert (tree["optim"]["schedule"], "min_lr" in tree["optim"], "weights" in tree["policy"]) == (
        "constant",
        False,
        False,
    )
    assert checked(kit / "mine.yaml", Config, tree).packed is not None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--freeze_und True", ["language", "vision", "connector"]),
        ("--freeze_vit True", ["vision"]),
        ("--freeze_und True --freeze_vit True", ["language", "vision", "connector"]),
    ],
)
def test_parts_are_frozen(kit: Path, given: str, expected: list[str]) -> None:
    policy = recipe(f"{START} {given}")["policy"]
    assert policy["freeze"] == expected and policy.get("constant_words", False) == ("language" in expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--sharding_strategy FULL_SHARD", "zero3.json"),
        ("--sharding_strategy HYBRID_SHARD --cpu_offload", "zero3_offload.json"),
        ("--sharding_strategy SHARD_GRAD_OP", "zero2.json"),
        ("--sharding_strategy NO_SHARD", None),
    ],
)
def test_sharding_is_a_stage_of_zero(kit: Path, given: str, expected: str | None) -> None:
    path = recipe(f"{START} {given}").get("distributed", {}).get("deepspeed")
    assert (path and Path(path).name) == expected and (path is None or Path(path).is_file())


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_stage_is_a_recipe_that_flags_change(kit: Path, name: str) -> None:
    words = [
        name,
        *START.split(),
        "--model_path",
        "models/BAGEL",
        "--resume_from",
        "there",
        "--resume_model_only",
        "True",
    ]
    tree = yaml.safe_load(from_unireason(words))
    config = checked(kit / "mine.yaml", Config, tree)
    assert config.max_steps == {"align": 30000, "reason": 10000}[name]
    assert tree["policy"].get("freeze") == {"align": ["language", "vision", "connector"], "reason": None}[name]
    assert (config.optim.lr, config.optim.min_lr) == {"align": (5e-5, 1e-5), "reason": (2e-5, 1e-6)}[name]
    assert (
        checked(kit / "x.yaml", Config, yaml.safe_load(from_unireason([*words, "--total_steps", "5000"]))).max_steps
        == 5000
    )


def test_what_does_nothing_is_said_with_the_reason(kit: Path) -> None:
    said = idle(
        f"{START} --wandb_project mine --data_seed 1 --finetune_from_ema True --min_lr 1e-6 --cpu_offload True "
        "--sharding_strategy SHARD_GRAD_OP --num_shard 4 --llm_qk_norm True"
    )
    assert [sentence.split(" does nothing here: ") for sentence in said] == [
        ["--data_seed 1", "`seed` decides of rows, too"],
        ["--wandb_project mine", "W&B is off unless `logging.report_to` names it"],
        ["--finetune_from_ema True", "without --resume_from the weights are --model_path's"],
        ["--min_lr 1e-06", "--lr_scheduler constant keeps the rate"],
        ["--num_shard 4", "parts are spread over all ranks"],
        ["--cpu_offload True", "--sharding_strategy SHARD_GRAD_OP is not ZeRO stage 3"],
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (f"{START} --total_step_count 3", "--total_step_count is no flag of UniReason: did you mean total_steps?"),
        (f"{START} --wandb x", "--wandb is no flag of UniReason, and the beginning of --wandb_project, --wandb_name, "),
        (f"aling {START}", "'aling' is neither a stage (align, reason) nor the beginning of a command line of UniReason"),
        ("aling", "'aling' is neither a stage (align, reason)"),
        (f"Align {START}", "begins with a flag; did you mean align?"),
        ("nowhere.sh", "nowhere.sh cannot be read"),
        (f"hello world {START}", "'hello' is neither a stage"),
        (f"{START} --lr=", "--lr has an empty value; give one, or leave the flag out"),
        (f"{START} --model_path=", "--model_path has an empty value"),
        (f"{START} --=3", "-- is no flag of UniReason"),
        (f"{START} --lr", "--lr takes one value, not 0"),
        (f"{START} --lr 1e-5 2e-5", "--lr takes one value, not 2: 1e-5 2e-5"),
        (f"{START} --lr nan", "--lr: the recipe that it becomes"),
        (f"{START} --total_steps 1e3", "--total_steps '1e3' is no whole number"),
        (f"{START} --total_steps 0", "--total_steps 0 must be at least 1: the run ends there"),
        (f"{START} --beta1 1.0", "--beta1, --beta2: the recipe that it becomes"),
        (f"{START} --nproc_per_node gpu", "--nproc_per_node 'gpu' is no whole number"),
        (f"{START} --no_use_flex True", "--no_use_flex takes no value"),
        (f"{START} --lr fast", "--lr 'fast' is no number"),
        (f"{START} --use_flex perhaps", "--use_flex 'perhaps' is neither true nor false"),
        (f"{START} --vit_select_layer -1", "--vit_select_layer -1: the published model has -2, and nothing else is read"),
        (f"{START} --visual_und False", "--visual_und False: the published model has True"),
        ("--lr 1e-5", "--finetune_from_hf false builds a model of llm_path"),
        (f"{START} --freeze_llm True", "--freeze_llm True freezes both experts"),
        (f"{START} --resume_from there", "--resume_from without --resume_model_only True reads its optimizer's files"),
        (f"{START} --lr_scheduler linear", "--lr_scheduler linear: there are constant and cosine"),
        (f"{START} --warmup_steps 20000", "--warmup_steps 20000 is not below --total_steps 20000"),
        (f"{START} --sharding_strategy HALF", "--sharding_strategy HALF: there are FULL_SHARD"),
        (f"{START} --lr -1", "--lr: the recipe that it becomes"),
        (f"{START} --expected_num_tokens 50000", "packed.expected_tokens = 50000 is more than packed.max_tokens = 36864"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_refused_by_name(kit: Path, given: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_unireason(given.split())
    assert message in str(error.value)


def test_no_registry_is_said_with_the_way_out(kit: Path) -> None:
    (kit / "data/dataset_info.py").rename(kit / "mine.py")
    with pytest.raises(ConfigError, match=r"no data/dataset_info\.py in .*; say where it is by --dataset_info"):
        recipe(START)
    assert recipe(f"{START} --dataset_info mine.py")["packed"]["registry"] == str(kit / "mine.py")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ThinkT2IIterableDataset", "MyIterableDataset", "t2i_reason: 'MyIterableDataset' is not read here"),
        ("/rows.json'", "/your_data_path/rows.json'", "still has your_data_path"),
    ],
)
def test_tables_that_a_run_would_refuse_are_said(
    kit: Path, old: str, new: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe is written: the tables are mended by hand, where the data are."""
    assert idle(START) == []
    table = kit / "data/dataset_info.py"
    table.write_text(table.read_text().replace(old, new))
    text = from_unireason(START.split())
    assert yaml.safe_load(text)["packed"]["registry"] == str(table)
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if "a run would stop there" in line]
    assert sentence.startswith("from-unireason: the tables of data") and said in sentence


def test_a_checkpoint_that_is_not_there_is_said_before_the_model_is_built(kit: Path) -> None:
    """There the model is random then, at level INFO."""
    (kit / "models/BAGEL-7B-MoT").mkdir(parents=True)
    config = checked(kit / "mine.yaml", Config, yaml.safe_load(from_unireason(["scripts/sft.sh"])))
    with pytest.raises(ConfigError, match=r"policy\.weights = .*stage_1_align/0030000: nothing at"):
        check_policy_files(config.policy, config.program)


def test_a_script_without_the_program_is_refused(kit: Path) -> None:
    (kit / "other.sh").write_text("torchrun other.py --lr 1\n")
    with pytest.raises(ConfigError, match=r"other\.sh has no line that starts pretrain_unified_navit\.py"):
        from_unireason(["other.sh"])


def test_every_flag_is_in_the_help() -> None:
    text = unireason_help()
    assert all(f"  --{name}: " in text for name in flags()) and "  align: --finetune_from_hf" in text
    assert {"llm_qk_norm", "visual_gen", "eps"} <= set(FIXED)
