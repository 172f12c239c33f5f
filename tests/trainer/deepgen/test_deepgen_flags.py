"""`from-deepgen`: a command line of DeepGen-RL becomes a recipe that loads; every flag acts or is known not to."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.__main__ import build_parser, main
from trainer.config import Config, ConfigError
from trainer.config.errors import field_paths
from trainer.data.datasets import load_train_prompts
from trainer.migration import load_recipe
from trainer.migration.deepgen.command import from_deepgen
from trainer.migration.deepgen.flags import FLAGS, REMOVED

ROOT = Path(__file__).resolve().parents[3]
TRAIN = """
datasets:
  - {name: text, path: text.txt, sample_weight: 3.0, rewards: [{unifiedreward_think: 0.2}, {clip_sim: 0.1}, {ocr: 0.7}]}
  - {name: general, path: general.txt, rewards: [{unifiedreward_think: 0.7}, {clip_sim: 0.3}]}
"""
EVAL = "datasets: [{name: unigenbench_en, path: held.txt, duplicates: 4, scoring: unigenbench/en}]"
# What DeepGen-RL's train.sh passes on.
SHIPPED = (
    "--model_config model.py --checkpoint sft.pth --dataset_config train.yaml --output_dir outputs/first "
    "--num_train_epochs 10 --lr_scheduler_type constant_with_warmup --report_to wandb,swanlab --run_name mine "
    "--deepspeed scripts/deepspeed/zero2.json --eval_dataset_config eval.yaml --sftaux_dataset_config sft.json"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's working directory, with no GPUs counted."""
    for name in ("WORLD_SIZE", "NGPUS", "NNODES", "CHECKPOINT", "OUTPUT_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("train.yaml", "other_train.yaml"):
        (tmp_path / name).write_text(TRAIN)
    for name in ("eval.yaml", "other_eval.yaml"):
        (tmp_path / name).write_text(EVAL)
    (tmp_path / "text.txt").write_text("".join(f'a sign "{i}"\n' for i in range(70)))
    (tmp_path / "general.txt").write_text("".join(f"a cat {i}\n" for i in range(30)))
    (tmp_path / "held.txt").write_text("a dog\n")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def translated(flags: str) -> str:
    return from_deepgen(build_parser().parse_args(["from-deepgen", *shlex.split(flags)]))


def flat(text: str) -> dict[str, Any]:
    """A recipe by dotted field."""

    def walk(prefix: str, node: Any) -> dict[str, Any]:
        if not isinstance(node, dict):
            return {prefix: node}
        return {key: value for name, inner in node.items() for key, value in walk(f"{prefix}.{name}", inner).items()}

    return {
        key.removeprefix("."): value for key, value in walk("", yaml.safe_load(text.replace("e-0", ".0e-0"))).items()
    }


def test_the_shipped_command_line_becomes_a_recipe_that_loads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["from-deepgen", *shlex.split(SHIPPED)]) == 0
    (folder / "mine.yaml").write_text(capsys.readouterr().out)
    config = load_recipe("mine.yaml", Config)
    assert (config.run_name, config.output_dir, config.seed) == ("first", str(folder / "outputs"), 42)
    assert config.max_steps == 32, "10 epochs of 100 prompts, 32 a step: 31.25"
    sampling = config.sampling
    assert (sampling.prompts_per_step, sampling.group_size, sampling.micro_batch_size) == (32, 8, 32)
    assert (sampling.kind, sampling.noise_level, sampling.same_noise, sampling.guidance_scale) == (
        "cps",
        1.0,
        True,
        1.0,
    )
    assert int(49 * sampling.timestep_fraction + 1e-9) == 30, "int(50 * 0.6) steps are trained there"
    assert (config.advantage.type, config.objective.type) == ("gdpo", "flow_grpo")
    assert (config.objective.clip_range, config.objective.kl_beta, config.objective.kl_type) == (1e-4, 5e-7, "velocity")
    assert (config.optim.lr, config.optim.schedule, config.optim.warmup_steps) == (2e-6, "constant", 20)
    assert config.data.ignore_rewards == ()
    assert set(config.rewards.columns) == {"unifiedreward_think", "clip_sim", "ocr", "unigenbench"}
    assert config.distributed.deepspeed == str(ROOT / "configs/deepspeed/zero2.json")
    (held,) = config.evaluation.sets
    assert (held.path, held.scoring, config.evaluation.every) == (str(folder / "held.txt"), "unigenbench/en", 10)
    assert config.logging.report_to == ("tensorboard", "wandb", "swanlab")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("", "kl_beta: 0.01\n"),
        ("--atrain_sde_sampler dance_sde", "kl_beta: 0.01\n"),
        (
            "--atrain_sde_sampler flowgrpo_sde",
            "kl_beta: 0.0002  # 0.01 there, where the KL leaves out the step's length",
        ),
        ("--atrain_algorithm diffusionnft", "kl_beta: 0.5  # 0.01 there, where this KL is divided by 2 * 0.1^2"),
        (
            "--atrain_algorithm grpoguard",
            "kl_beta: 0.00134  # 0.01 there, with cps_sde, of whose KL ours is 7.48 times on average (0.019 to 11.6 by step), "
            "which matches a typical step; there 96% of the total lies in the last step that can be trained\n",
        ),
        ("--atrain_algorithm grpoguard --atrain_kl_type x-based", "kl_beta: 0.0406  # 0.01 there, with cps_sde"),
        ("--atrain_algorithm grpoguard --atrain_sde_sampler dance_sde", "kl_beta: 0.01\n"),
        ("--atrain_algorithm grpoguard --beta 0", "kl_beta: 0.0\n"),
    ],
)
def test_the_weight_of_the_kl_is_in_our_measure(flags: str, line: str) -> None:
    """There (v - v_ref)^2 / (2 s^2), s without sqrt(-dt) in flowgrpo_sde, whose 50 steps are .02 long, and .1 in NFT."""
    assert line in translated(f"{SHIPPED} --beta 0.01 {flags}")


def test_what_differs_is_said_in_the_line() -> None:
    text = translated(SHIPPED)
    for line in (
        "prompts_per_step: 32  # 256 pictures, 8 of each, over all GPUs, however many there are",
        "timestep_fraction: 0.6123  # 30 of the 49 stochastic steps; 0.6 of 50 there",
        "clip_sim: {reward: clip_sim, service: clip}  # by a service, not by every rank",
        "max_steps: 32  # 10 epochs of 100 prompts, 32 a step",
    ):
        assert line in text


BASE = SHIPPED + " --max_steps 100 --gpus 8"
# A value other than the base's, and what else must be given for it to act.
OTHER: dict[str, str] = {
    "checkpoint": "--checkpoint other.pth",
    "output_dir": "--output_dir other/second",
    "run_name": "--run_name second",
    "num_train_epochs": "--max_steps -1 --num_train_epochs 20",
    "max_steps": "--max_steps 50",
    "learning_rate": "--learning_rate 1e-5",
    "lr_scheduler_type": "--lr_scheduler_type linear",
    "warmup_steps": "--warmup_steps 3",
    "max_grad_norm": "--max_grad_norm 0",
    "ema_diffusion": "--ema_diffusion 0.99",
    "deepspeed": "--deepspeed mine/zero3.json",
    "rollout_n": "--rollout_n 4",
    "rollout_micro_batch_size": "--rollout_micro_batch_size 16",
    "rollout_global_batch_size": "--rollout_global_batch_size 512",
    "cfg_scale": "--cfg_scale 4",
    "num_inference_steps": "--num_inference_steps 20",
    "image_height": "--image_height 768",
    "image_width": "--image_width 768",
    "sde_eta": "--sde_eta 0.7",
    "atrain_sde_sampler": "--atrain_sde_sampler dance_sde",
    "timestep_fraction": "--timestep_fraction 0.3",
    "atrain_micro_batch_size": "--atrain_micro_batch_size 8",
    "atrain_num_actor_update_steps": "--atrain_num_actor_update_steps 2",
    "atrain_algorithm": "--atrain_algorithm grpoguard",
    "atrain_adv_type": "--atrain_adv_type reinforcepp",
    "beta": "--beta 0.01",
    "atrain_kl_type": "--atrain_kl_type x-based",
    "clip_range": "--clip_range 1e-3",
    "atrain_nft_beta": "--atrain_algorithm diffusionnft --atrain_nft_beta 0.5",
    "atrain_nft_adv_clip_range": "--atrain_algorithm diffusionnft --atrain_nft_adv_clip_range 2",
    "atrain_nft_off_policy": "--atrain_algorithm diffusionnft --ema_diffusion 0.9 --atrain_nft_off_policy",
    "reward_funcs": "--dataset_config '' --reward_funcs ocr hps",
    "prompts_file": "--dataset_config '' --reward_funcs ocr --prompts_file text.txt",
    "dataset_config": "--dataset_config other_train.yaml",
    "sftaux_dataset_config": "--sftaux_dataset_config other.json",
    "sftaux_coef": "--sftaux_coef 0.5",
    "sftaux_every_n_steps": "--sftaux_every_n_steps 4",
    "sftaux_micro_batch_size": "--sftaux_micro_batch_size 4",
    "eval_freq": "--eval_freq 0",
    "eval_dataset_config": "--eval_dataset_config other_eval.yaml",
    "eval_cfg_scale": "--eval_cfg_scale 0",
    "eval_num_inference_steps": "--eval_num_inference_steps 20",
    "eval_image_height": "--eval_image_height 768",
    "eval_image_width": "--eval_image_width 768",
    "eval_micro_batch_size": "--eval_micro_batch_size 16",
    "eval_wandb_num_upload_images": "--eval_wandb_num_upload_images 64",
    "eval_swanlab_num_upload_images": "--eval_swanlab_num_upload_images 8",
    "report_to": "--report_to none",
    "save_steps": "--save_steps 10",
    "save_total_limit": "--save_total_limit 3",
}
ALWAYS_ON = {"model_config", "bf16", "gradient_checkpointing", "init_same_noise"}  # they have one value there


@pytest.mark.parametrize("name", [name for name, flag in FLAGS.items() if flag.fields and name not in ALWAYS_ON])
def test_a_flag_changes_its_field_and_the_recipe_still_loads(folder: Path, name: str) -> None:
    text = translated(f"{BASE} {OTHER[name]}")
    before, after = flat(translated(BASE)), flat(text)
    changed = {field for field in before | after if before.get(field) != after.get(field)}
    assert any(field.startswith(ours) for field in changed for ours in FLAGS[name].fields), changed
    (folder / "mine.yaml").write_text(text.replace("mine/zero3", "configs/deepspeed/zero3"))
    load_recipe("mine.yaml", Config)


@pytest.mark.parametrize("name", [name for name, flag in FLAGS.items() if not flag.fields])
def test_a_flag_without_a_field_changes_nothing_and_says_why(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = FLAGS[name]
    value = {"switch": "", "whole": "7", "number": "0.5", "text": (flag.choices or ("x",))[-1], "texts": "x"}[flag.kind]
    assert flag.remark
    text = translated(f"{BASE} --{name} {value}")
    said = f"--{name}{f' {value}' if value else ''} does nothing here: {flag.remark}"
    assert f"#   {said}" in text and f"from-deepgen: {said}" in capsys.readouterr().err
    assert yaml.safe_load(text) == yaml.safe_load(translated(BASE))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model_config x.py", "--model_config x.py does nothing here: a Python file, which is not run"),
        ("--atrain_micro_batch_size 999", "--atrain_micro_batch_size 999 does nothing here: 32 is used"),
        ("--reward_funcs ocr", "--reward_funcs ocr does nothing here: --dataset_config says"),
        ("--prompts_file a.txt", "--prompts_file a.txt does nothing here: --dataset_config says"),
        ("--num_train_epochs 3", "--num_train_epochs 3 does nothing here: --max_steps 100"),
        ("--lr_scheduler_type constant --warmup_steps 9", "--warmup_steps 9 does nothing here"),
        ("--atrain_nft_beta 0.5", "--atrain_nft_beta 0.5 does nothing here: the recipe has no objective.nft_beta"),
        ("--atrain_algorithm diffusionnft --clip_range 0.1", "--clip_range 0.1 does nothing here"),
        ("--atrain_algorithm diffusionnft --sde_eta 0.1", "--sde_eta 0.1 does nothing here"),
        ("--beta 0 --atrain_kl_type x-based", "--atrain_kl_type x-based does nothing here"),
        ("--eval_freq 0 --eval_cfg_scale 3", "--eval_cfg_scale 3.0 does nothing here"),
        (
            "--eval_swanlab_num_upload_images 0 --eval_wandb_num_upload_images 5",
            "--eval_swanlab_num_upload_images 0 does",
        ),
        ("--sftaux_coef 0 --sftaux_every_n_steps 4", "--sftaux_every_n_steps 4 does nothing here"),
    ],
)
def test_a_flag_that_does_not_act_is_said(flags: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = translated(f"{BASE} {flags}")
    assert f"#   {words}" in text and f"from-deepgen: {words}" in capsys.readouterr().err


def test_a_flag_that_acts_is_not_called_idle(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sft.json").write_text('[{"image_path": "0.png", "txt": "a dog"}]')
    (folder / "other.json").write_text('[{"image_path": "0.png", "txt": "a dog"}]')
    capsys.readouterr()
    for name, flags in OTHER.items():
        translated(f"{BASE} {flags}")
        assert f"from-deepgen: --{name} " not in capsys.readouterr().err, flags


def test_a_recipe_made_there_loads_from_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every path of it is absolute, as train.sh starts from our folder."""
    files = {"checkpoint": "sft.pth", "lmm": "x.pth", "mine": "deepspeed/own.json"}
    (folder / "deepspeed").mkdir()
    (folder / "deepspeed/own.json").write_text((ROOT / "configs/deepspeed/zero2.json").read_text())
    for number, more in enumerate(
        ("", "--deepspeed deepspeed/own.json", "--dataset_config '' --reward_funcs ocr --prompts_file text.txt")
    ):
        (folder / f"{number}.yaml").write_text(translated(f"{SHIPPED} {more}"))
    monkeypatch.chdir(ROOT)
    config = load_recipe(folder / "0.yaml", Config)
    assert config.run_dir == folder / "outputs/first"
    assert config.data.train[0].path == str(folder / "text.txt")
    assert config.evaluation.sets[0].path == str(folder / "held.txt")
    assert config.policy.model_dump()["checkpoint"] == str(folder / files["checkpoint"])
    assert config.sft is not None and config.sft.path == str(folder / "sft.json")
    assert load_recipe(folder / "1.yaml", Config).distributed.deepspeed == str(folder / files["mine"])
    assert load_recipe(folder / "2.yaml", Config).data.train[0].path == str(folder / "text.txt")


def test_flags_name_fields_that_exist() -> None:
    known = set(field_paths(Config))
    assert {field for flag in FLAGS.values() for field in flag.fields} <= known


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--rollout_global_batch_size 100", ["100 is not a multiple of --rollout_n 8", "try 96"]),
        ("--gpus 6", ["256 / --rollout_n 8 = 32 prompts cannot be dealt evenly to 6 GPUs", "batch_size 288"]),
        ("--gpus 0", ["--gpus 0 must be at least 1"]),
        ("--rollout_n 1", ["--rollout_n 1 makes groups without a comparison"]),
        ("--rollout_micro_batch_size 0", ["--rollout_micro_batch_size 0 must be at least 1"]),
        ("--timestep_fraction 1.5", ["--timestep_fraction 1.5 must be above 0 and at most 1"]),
        ("--cfg_scale 0.5", ["--cfg_scale 0.5 must be 0 (no guidance) or at least 1"]),
        ("--eval_inference_mode sde", ["evaluation is deterministic here"]),
        ("--report_to mlflow", ["mlflow is none of tensorboard, wandb, swanlab"]),
        ("--dataset_config '' --reward_funcs ocr_vllm", ["--reward_funcs ocr_vllm: no service of ours gives it"]),
        ("--dataset_config none.yaml", ["no file at", "none.yaml"]),
        (
            "--dataset_config typo.yaml",
            [
                "typo.yaml: datasets.0.rewards: unifiedreward_thnk: DeepGen-RL has no such reward",
                "did you mean unifiedreward_think?",
            ],
        ),
        ("--dataset_config '' --reward_funcs ocrr", ["ocrr: DeepGen-RL has no such reward; did you mean ocr?"]),
        ("--dataset_config '' --reward_funcs zzz", ["zzz: DeepGen-RL has no such reward; known are ocr,"]),
        ("--num_inference_steps 1", ["--num_inference_steps 1 must be at least 2"]),
        ("--num_inference_steps 0 --atrain_algorithm diffusionnft", ["--num_inference_steps 0 must be at least 2"]),
        ("--max_steps -1 --dataset_config lost.yaml", ["counts prompts, but no prompt file at", "Or give --max_steps"]),
        ("--atrain_algorithm diffusionnft --atrain_nft_off_policy", ["--ema_diffusion 0"]),
        ("--num_generations 8", ["--num_generations was removed from DeepGen-RL; use --rollout_n"]),
        ("--gradient_accumulation_steps 8", ["use --atrain_global_batch_size"]),
    ],
)
def test_what_cannot_be_translated_is_refused_with_both_numbers(folder: Path, flags: str, words: list[str]) -> None:
    (folder / "typo.yaml").write_text(
        "datasets: [{path: text.txt, rewards: [{unifiedreward_thnk: 0.9}, {ocr: 0.1}, {deqa: 0.1}]}]"
    )
    (folder / "lost.yaml").write_text("datasets: [{path: gone.txt, rewards: [{ocr: 1}]}]")
    with pytest.raises(ConfigError) as raised:
        translated(f"{BASE} {flags}")
    for word in words:
        assert word in str(raised.value), str(raised.value)


def test_rows_of_a_jsonl_may_have_keys_of_their_own(folder: Path) -> None:
    """As in a data-set YAML: counted by from-deepgen, and read by the run."""
    (folder / "gen.jsonl").write_text('{"prompt": "a dog", "extra": 1}\n{"prompt": "a cow", "extra": 2}\n')
    text = translated("--reward_funcs ocr --prompts_file gen.jsonl")
    assert "max_steps: 1  # 1 epochs of 2 prompts" in text
    (folder / "mine.yaml").write_text(text)
    (dataset,) = load_train_prompts(load_recipe("mine.yaml", Config).data)
    assert [prompt.metadata for prompt in dataset.prompts] == [{"extra": 1}, {"extra": 2}]


def test_a_changed_name_is_said_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train.yaml").write_text(TRAIN.replace("name: text", "name: my text"))
    translated(SHIPPED)
    assert capsys.readouterr().err.count("'my text' is called my_text here") == 1


@pytest.mark.parametrize(
    ("micro", "n", "gpus", "expected"),
    [
        (32, 8, 8, 32),
        (12, 8, 8, 8),  # one whole group fits
        (3, 8, 8, 2),  # a divisor of the group
        (64, 8, 8, 32),  # no more than a GPU has
        (24, 8, 4, 16),  # 64 pictures of a GPU cannot be cut into 24
    ],
)
def test_pictures_at_once_are_whole_groups_that_divide_a_gpus_share(
    micro: int, n: int, gpus: int, expected: int
) -> None:
    text = translated(f"{BASE} --gpus {gpus} --rollout_n {n} --rollout_micro_batch_size {micro}")
    assert flat(text)["sampling.micro_batch_size"] == expected


def test_the_number_of_gpus_is_torchruns_or_train_shs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGPUS", "3")
    monkeypatch.setenv("NNODES", "2")
    with pytest.raises(ConfigError, match="dealt evenly to 6 GPUs"):
        translated(SHIPPED)
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert "prompts_per_step: 32" in translated(SHIPPED)


@pytest.mark.parametrize("name", REMOVED)
def test_removed_names_are_not_shown_in_the_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["from-deepgen", "--help"])
    shown = capsys.readouterr().out
    assert f"--{name}" not in shown and "--rollout_n" in shown and "becomes sampling.group_size" in shown
