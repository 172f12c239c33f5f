"""Command lines of PairUni and T2I-R1: what each flag becomes, what does nothing and why, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.pair_rows import pair, write_pairs
from trainer.__main__ import main
from trainer.config import Config, ConfigError, GenerateConfig, TaskSamplingConfig, UnderstandConfig
from trainer.config.file import checked
from trainer.migration.command_line import read_command_line
from trainer.migration.janus_grpo.command import ENTRY, flags_help, from_command_line
from trainer.migration.janus_grpo.flags import Program, flags_of
from trainer.migration.janus_grpo.translation import translate

PUBLISHED = (
    "torchrun --nproc_per_node=8 --nnodes=1 --node_rank=0 --master_addr=127.0.0.1 --master_port=12345 open_r1/grpo.py "
    "--deepspeed configs/zero3.json --output_dir outputs/pairuni --model_name_or_path deepseek-ai/Janus-Pro-1B "
    "--pair_data_path pairs.jsonl --max_prompt_length 512 --num_generations_text 8 --num_generations_image 8 "
    "--per_device_train_batch_size 1 --gradient_accumulation_steps 2 --bf16 true --max_steps 8000 --learning_rate 1e-6"
)
T2I = (
    "--output_dir out/t2i-r1 --dataset_name data.json --max_steps 1600 --num_generations 8 --beta 0.01 --bf16 "
    "--reward_funcs hps git gdino orm --max_completion_length 1024"
)
SCRIPT = """#!/bin/bash

cd kit/src
RUN_NAME="t2i-r1"  # a comment
export OUTPUT_DIR="janus/outputs/${RUN_NAME}"
# torchrun is below, and $NOBODY_SETS_THIS here
PYTHONPATH="$(dirname $0)/..":$PYTHONPATH \\
CUDA_VISIBLE_DEVICES="0,1" \\
torchrun --nproc_per_node="2" \\
open_r1/grpo.py --use_vllm False \\
--output_dir $OUTPUT_DIR --run_name $RUN_NAME \\
--dataset_name ../data.json \\
--reasoning_prompt_path ../reasoning.txt \\
--max_completion_length 1024 --max_steps 1600 --bf16 \\
--reward_funcs hps gdino --beta 0.01 2>&1 | tee $NOBODY_SETS_THIS.txt
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("NGPUS", "NNODES"):
        monkeypatch.delenv(name, raising=False)


def values(program: Program, text: str) -> dict[str, Any]:
    lines, _ = translate(read_command_line(program, flags_of(program), ENTRY, text.split()))
    return {field: line.value for field, line in lines.items()}


def config_of(text: str, tmp_path: Path) -> Config:
    config: Config = checked(tmp_path / "recipe.yaml", Config, yaml.safe_load(text))
    return config


def test_the_published_command_is_a_recipe(tmp_path: Path) -> None:
    text = from_command_line("pairuni", PUBLISHED.split())
    config = config_of(text, tmp_path)
    sampling = config.sampling
    assert isinstance(sampling, TaskSamplingConfig) and config.policy.type == "janus"
    asked, drawn = sampling.tasks.understand, sampling.tasks.generate
    assert isinstance(asked, UnderstandConfig) and isinstance(drawn, GenerateConfig)
    assert (sampling.prompts_per_step, asked.group_size, drawn.group_size) == (16, 8, 8)
    assert (asked.rewards, drawn.rewards) == ({"accuracy": 1.0}, {"hps": 1.0})
    assert (drawn.guidance_scale, drawn.temperature, sampling.pair_weight) == (5.0, 1.0, "sqrt")
    assert (config.optim.lr, config.max_steps, config.optim.ema_decay) == (1e-6, 8000, 0.0)
    assert (config.policy.pretrained, config.policy.dtype) == ("deepseek-ai/Janus-Pro-1B", "bfloat16")
    assert config.policy.max_prompt_tokens == 512 + 576 + 2
    assert config.rewards.columns["accuracy"].reward == "option_letter"
    assert config.rewards.services["hps"].args["checkpoint"] == str(tmp_path / "reward_weight/HPS_v2.1_compressed.pt")
    assert (config.objective.type, config.advantage.type) == ("grpo", "grpo")
    assert config.distributed.deepspeed is not None and config.distributed.deepspeed.endswith(
        "configs/deepspeed/zero3.json"
    )
    (train,) = config.data.train
    assert (train.path, train.format, train.image_dir) == (str(tmp_path / "pairs.jsonl"), "pairs", str(tmp_path))
    assert config.run_dir == tmp_path / "outputs/pairuni"
    assert "prompts_per_step: 16  # pairs: 1 at once, 2 times, on 8 GPUs" in text


@pytest.mark.parametrize(
    ("flag", "field", "value"),
    [
        ("--pair_weight linear", "sampling.pair_weight", "linear"),
        ("--similarity_threshold 0.6", "sampling.similarity_threshold", 0.6),
        ("--num_generations_text 4", "sampling.tasks.understand.group_size", 4),
        ("--num_generations_image=6", "sampling.tasks.generate.group_size", 6),
        ("--max-completion-length 99", "sampling.tasks.understand.max_new_tokens", 99),
        ("--cfg_weight 3", "sampling.tasks.generate.guidance_scale", 3.0),
        ("--temperature 0.9", "sampling.tasks.generate.temperature", 0.9),
        ("--temperature 0.9", "sampling.tasks.understand.temperature", 0.9),
        ("--beta 0.01", "objective.kl_beta", 0.01),
        ("--seed 7", "seed", 7),
        ("--gradient_checkpointing", "policy.gradient_checkpointing", True),
        ("--bf16 false", "policy.dtype", "float32"),
        ("--warmup_ratio 0.01", "optim.warmup_steps", 80),
        ("--warmup_steps 5", "optim.warmup_steps", 5),
        ("--lr_scheduler_type constant --warmup_steps 5", "optim.warmup_steps", 0),
        ("--lr_scheduler_type cosine", "optim.schedule", "cosine"),
        ("--max_grad_norm 0", "optim.max_grad_norm", 1e9),
        ("--weight_decay 0.1", "optim.weight_decay", 0.1),
        ("--save_steps 9", "checkpoint.save_every", 9),
        ("--save_total_limit 3", "checkpoint.keep", 3),
        ("--report_to wandb,tensorboard", "logging.report_to", ["wandb", "tensorboard"]),
        ("--run_name mine", "logging.name", "mine"),
        ("--per_device_train_batch_size 2", "sampling.prompts_per_step", 32),
        ("--nnodes 2", "sampling.prompts_per_step", 32),
    ],
)  # fmt: skip
def test_a_flag_becomes_its_field(flag: str, field: str, value: Any) -> None:
    assert values("pairuni", f"{PUBLISHED} {flag}")[field] == value


def test_gpus_come_from_the_environment_where_no_launcher_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = PUBLISHED.partition("grpo.py ")[2]
    assert values("pairuni", flags)["sampling.prompts_per_step"] == 2
    monkeypatch.setenv("NGPUS", "4")
    assert values("pairuni", flags)["sampling.prompts_per_step"] == 8


@pytest.mark.parametrize("program", ["pairuni", "t2i-r1"])
def test_no_flag_is_accepted_and_dropped_without_a_word(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    """A flag without a field is named in the head, on standard error, and in --help."""
    idle = {name: flag for name, flag in flags_of(program).items() if not flag.fields and flag.kind != "texts"}
    words = {"whole": "1", "number": "1", "flag": "false", "text": "x"}
    text = from_command_line(
        program,
        [
            *(PUBLISHED if program == "pairuni" else T2I).split(),
            *(w for n, f in idle.items() for w in (f"--{n}", words[f.kind])),
        ],
    )
    said = capsys.readouterr().err
    for name, flag in idle.items():
        assert f"--{name} " in said and f"#   --{name} " in text and flag.remark in text, name
    assert all(f"--{name}: becomes" in flags_help(program) for name in flags_of(program))


def test_t2i_r1_is_one_task_whose_scorers_are_services(tmp_path: Path) -> None:
    config = config_of(from_command_line("t2i-r1", T2I.split()), tmp_path)
    assert [task.name for task in config.tasks] == ["generate"]
    drawn = config.sampling.tasks.generate  # type: ignore[union-attr]
    assert drawn is not None and drawn.rewards == dict.fromkeys(("hps", "git", "gdino", "orm"), 1.0)
    assert drawn.think is None and config.objective.kl_beta == 0.01  # type: ignore[union-attr]
    assert {name: column.reward for name, column in config.rewards.columns.items()} == {
        "hps": None,
        "git": None,
        "gdino": "gdino",
        "orm": "vqa_yes_ratio",
    }
    assert {name for name, column in config.rewards.columns.items() if column.canary == "none"} == {"git"}
    services = {name: service.module for name, service in config.rewards.services.items()}
    assert services == {"hps": "hps", "geneval": "geneval", "vqa": "vqa", "git": None}
    assert config.rewards.services["git"].urls == ("http://127.0.0.1:18095",) and config.rewards.launch == "local"
    assert config.data.train[0].format == "json"


def test_a_script_is_read_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "kit/src").mkdir(parents=True)
    script = tmp_path / "run.sh"
    script.write_text(SCRIPT + "touch touched\n")
    (tmp_path / "kit/reasoning.txt").write_text('You are to draw: "{}"\nDescribe it first.\n')
    (tmp_path / "kit/data.json").write_text(json.dumps([{"prompt": "a cat", "nouns": ["cat"]}]))
    text = from_command_line("t2i-r1", [str(script)])
    config = config_of(text, tmp_path)
    think = config.sampling.tasks.generate.think  # type: ignore[union-attr]
    assert think is not None and (think.instruction, think.max_new_tokens) == ("Describe it first.", 1024)
    assert 'what stands before it there is left out: You are to draw: "' in text
    assert config.data.train[0].path == str(tmp_path / "kit/data.json")
    assert (config.run_dir.name, config.logging.name) == ("t2i-r1", "t2i-r1")
    assert set(config.rewards.columns) == {"hps", "gdino"} and not (tmp_path / "touched").exists()


def test_epochs_are_counted_in_rows(tmp_path: Path) -> None:
    write_pairs(tmp_path, *(pair(0.9, generate_ann={"prompt": f"draw {n}"}) for n in range(40)))
    flags = PUBLISHED.replace("--max_steps 8000", "--num_train_epochs 3")
    assert values("pairuni", flags)["max_steps"] == 8  # 3 * 40 / 16
    with pytest.raises(
        ConfigError, match=r"--max_steps is missing, and --pair_data_path cannot be counted: .*none\.jsonl"
    ):
        values("pairuni", flags.replace("pairs.jsonl", "none.jsonl"))


@pytest.mark.parametrize(
    ("program", "more", "words"),
    [
        ("pairuni", "--num_generation_text 4", "--num_generation_text is no flag of pairuni: did you mean num_generations_text?"),
        ("pairuni", "--reward_funcs hps", "--reward_funcs is no flag of pairuni: see --help for those that are"),
        ("pairuni", "--max_steps many", "--max_steps 'many' is no whole number"),
        ("pairuni", "--learning_rate fast", "--learning_rate 'fast' is no number"),
        ("pairuni", "--bf16 perhaps", "--bf16 'perhaps' is neither true nor false"),
        ("pairuni", "--seed 1 2", "--seed takes one value, not 2: 1 2"),
        ("pairuni", "--output_dir", "--output_dir takes one value, not 0"),
        ("pairuni", "--num_generations_text 1", "a group of 1 has nothing to compare; give at least 2"),
        ("pairuni", "--lr_scheduler_type polynomial", "--lr_scheduler_type polynomial is not offered; take one of linear"),
        ("pairuni", "--deepspeed mine.json", "--deepspeed mine.json: no such file in .* zero2, zero3, zero3_offload alone"),
        ("pairuni", "--report_to clearml", "--report_to: clearml is none of tensorboard, wandb, swanlab"),
        ("pairuni", "--use_vllm true", "--use_vllm true: vLLM does not draw image tokens"),
        ("pairuni", "--gradient_accumulation_steps 0", "--gradient_accumulation_steps 0 .* must be at least 1"),
        ("pairuni", "--pair_weight cube", r"^--pair_weight: the recipe .*\n  sampling\.pair_weight: must be 'sqrt', 'linear' or 'none'"),
        ("pairuni", "--similarity_threshold 1.5", r"^--similarity_threshold: .*\n .*less than or equal to 1 \(given: 1\.5\)"),
        ("pairuni", "--temperature 0 --beta -1", r"^--temperature, --beta: the recipe that it becomes cannot be used"),
        ("pairuni", "--learning_rate nan", r"^--learning_rate: .*\n  optim\.lr: must be a finite number"),
        ("t2i-r1", "--cfg_weight 0.5", r"^--cfg_weight: .*\n  sampling\.tasks\.generate\.guidance_scale: .*given: 0\.5"),
        ("t2i-r1", "--num_generations_image 4", "--num_generations_image is no flag of t2i-r1: did you mean"),
        ("t2i-r1", "--reward_funcs hps clip", "--reward_funcs: clip is none of hps, git, gdino, orm"),
        ("t2i-r1", "--reward_funcs", "--reward_funcs takes at least one value"),
        ("t2i-r1", "--new_generations_image 2", "--new_generations_image 2: a plan has one image here"),
        ("t2i-r1", "--reasoning_prompt_path none.txt", "--reasoning_prompt_path none.txt: no such file in"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(program: Program, more: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_command_line(program, f"{PUBLISHED if program == 'pairuni' else T2I} {more}".split())


@pytest.mark.parametrize("flag", ["--output_dir outputs/pairuni", "--pair_data_path pairs.jsonl"])
def test_what_has_no_default_must_be_there(flag: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag.split(maxsplit=1)[0]} is missing"):
        from_command_line("pairuni", PUBLISHED.replace(flag, "").split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo hello\n", "has no line that starts grpo.py; give the command line itself"),
        ("torchrun grpo.py --output_dir $SOMEWHERE\n", r"uses \$SOMEWHERE, which it does not set"),
    ],
)
def test_a_script_that_cannot_be_read_says_why(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "train.sh").write_text(text)
    with pytest.raises(ConfigError, match=words):
        from_command_line("pairuni", ["train.sh"])
    with pytest.raises(ConfigError, match=r"none\.sh cannot be read"):
        from_command_line("pairuni", ["none.sh"])


def test_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["from-pairuni", *PUBLISHED.split()]) == 0
    assert capsys.readouterr().out.startswith("# Translated from a command line of PairUni.")
    assert main(["from-t2i-r1", "--nothing", "1"]) != 0
    assert "error: the command line of t2i-r1 cannot be used:\n  --nothing is no flag" in capsys.readouterr().err
    with pytest.raises(SystemExit) as shown:
        main(["from-t2i-r1", "--help"])
    assert shown.value.code == 0 and "--reward_funcs: becomes rewards.columns" in capsys.readouterr().out
