"""DeepGen-RL's command-line flags: default there, our fields, and what differs.

docs/migration_deepgen.md shows this table; a test keeps the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        default: theirs.
        fields: ours, dotted; empty where nothing corresponds.
        remark: what differs and why; a phrase.
        kind: of its value; a switch takes none, texts takes several.
        choices: values it takes, for a text.
    """

    default: Any
    fields: tuple[str, ...] = ()
    remark: str = ""
    kind: Literal["text", "texts", "whole", "number", "switch"] = "text"
    choices: tuple[str, ...] = ()


_ALWAYS_ON = "there it cannot be turned off; here it can"
_MFU = "perf/mfu_rollout and perf/mfu_update are metrics; there it never appears"
_NO_COMPONENTS = "no such numbers: they cost a second backward pass there"
_OUR_LOGS = "every step is logged"

FLAGS: dict[str, Flag] = {
    # Model, output, length
    "model_config": Flag(None, ("policy.type",), "a Python file, which is not run: policy.type is deepgen"),
    "checkpoint": Flag(None, ("policy.checkpoint",), "null takes the variable CHECKPOINT"),
    "output_dir": Flag("./outputs/deepgen_grpo", ("output_dir", "run_name"), "the run's folder is output_dir/run_name"),
    "run_name": Flag(None, ("logging.name",), "the name that W&B and SwanLab show"),
    "num_train_epochs": Flag(1, ("max_steps",), "counted in steps, from the number of prompts", "whole"),
    "max_steps": Flag(-1, ("max_steps",), "-1 counts num_train_epochs", "whole"),
    # Optimizer
    "learning_rate": Flag(
        2e-6, ("optim.lr",), "a step is one AdamW step; with DeepSpeed it was 61 there, each clipped alone", "number"
    ),
    "lr_scheduler_type": Flag(
        "constant", ("optim.schedule",), "constant and linear", choices=("constant", "constant_with_warmup", "linear")
    ),
    "warmup_steps": Flag(20, ("optim.warmup_steps",), "0 with the schedule constant, which ignores it there", "whole"),
    "max_grad_norm": Flag(1.0, ("optim.max_grad_norm",), "0 (off there) becomes 1e9", "number"),
    "ema_diffusion": Flag(0.0, ("optim.ema_decay",), "it moves, is saved and is what evaluation uses", "number"),
    "bf16": Flag(True, ("policy.dtype",), f"{_ALWAYS_ON}; trained weights stay float32", "switch"),
    "gradient_checkpointing": Flag(True, ("policy.gradient_checkpointing",), _ALWAYS_ON, "switch"),
    "deepspeed": Flag(None, ("distributed.deepspeed",), "the files of the same names are in configs/deepspeed"),
    "local_rank": Flag(-1, (), "torchrun's own variable is read", "whole"),
    # Rollouts
    "rollout_n": Flag(8, ("sampling.group_size",), "", "whole"),
    "rollout_micro_batch_size": Flag(
        32, ("sampling.micro_batch_size",), "pictures per GPU at once, in whole groups or a divisor of one", "whole"
    ),
    "rollout_global_batch_size": Flag(
        256,
        ("sampling.prompts_per_step",),
        "divided by rollout_n: distinct prompts, where accumulation there drew the same ones again",
        "whole",
    ),
    "cfg_scale": Flag(0.0, ("sampling.guidance_scale",), "0 (none there) is 1", "number"),
    "num_inference_steps": Flag(50, ("sampling.num_inference_steps",), "", "whole"),
    "image_height": Flag(512, ("sampling.height",), "", "whole"),
    "image_width": Flag(512, ("sampling.width",), "", "whole"),
    "init_same_noise": Flag(True, ("sampling.same_noise",), _ALWAYS_ON, "switch"),
    "sde_eta": Flag(1.0, ("sampling.noise_level",), "", "number"),
    "atrain_sde_sampler": Flag(
        "cps_sde", ("sampling.kind",), "cps, flow_sde, dance_sde", choices=("flowgrpo_sde", "cps_sde", "dance_sde")
    ),
    "timestep_fraction": Flag(
        0.6,
        ("sampling.timestep_fraction",),
        "a share of the stochastic steps (all but the last), set so that as many are trained",
        "number",
    ),
    # Update
    "atrain_micro_batch_size": Flag(32, ("optim.micro_batch_size",), "every micro-batch is trained on", "whole"),
    "atrain_global_batch_size": Flag(
        256, (), "all rollouts of a step are trained on, once per update, on any number of GPUs", "whole"
    ),
    "log_prob_micro_batch_size": Flag(None, (), "not used there either", "whole"),
    "atrain_num_actor_update_steps": Flag(
        1, ("optim.updates_per_rollout",), "optimizer steps, each on all rollouts; there it cut them apart", "whole"
    ),
    "atrain_algorithm": Flag(
        "flowgrpo",
        ("objective.type",),
        "flow_grpo, grpo_guard, diffusion_nft",
        choices=("flowgrpo", "grpoguard", "diffusionnft"),
    ),
    "atrain_adv_type": Flag(
        "gdpo",
        ("advantage.type",),
        "reinforcepp is reinforce_pp; statistics of the batch are over all ranks",
        choices=("grpo", "grpo_global_std", "reinforcepp", "gdpo"),
    ),
    "beta": Flag(
        5e-7,
        ("objective.kl_beta",),
        "scaled with flowgrpo_sde, diffusionnft, and grpoguard on cps_sde, whose KL has another divisor there",
        "number",
    ),
    "atrain_kl_type": Flag("v-based", ("objective.kl_type",), "velocity or latent", choices=("x-based", "v-based")),
    "clip_range": Flag(
        1e-4, ("objective.clip_range",), "of ratios that are exactly 1 before the first update", "number"
    ),
    "atrain_nft_beta": Flag(0.1, ("objective.nft_beta",), "with diffusionnft", "number"),
    "atrain_nft_adv_clip_range": Flag(5.0, ("objective.nft_adv_clip",), "with diffusionnft", "number"),
    "atrain_nft_off_policy": Flag(
        False,
        ("objective.old_decay",),
        "with diffusionnft: ema_diffusion is the decay of the sampling policy",
        "switch",
    ),
    # Rewards and data
    "reward_funcs": Flag(
        ["jpeg_compressibility"], ("data.train",), "each with weight 1; not with dataset_config", "texts"
    ),
    "prompts_file": Flag("prompts.txt", ("data.train",), "not with dataset_config"),
    "dataset_config": Flag(None, ("data.dataset_config",), "the YAML as it is"),
    "dataloader_num_workers": Flag(4, (), "prompts are in memory", "whole"),
    # Supervised loss beside it
    "sftaux_dataset_config": Flag(
        "deepgen_rl/sft/configs/datasets/deepgen/t2i_grpo_moretextdata.py",
        ("sft.sets", "sft.path"),
        "a Python file is read and not run; or name a JSON array of image_path and txt",
    ),
    "sftaux_coef": Flag(1e-4, ("sft.coef",), "", "number"),
    "sftaux_every_n_steps": Flag(1, ("sft.every",), "", "whole"),
    "sftaux_micro_batch_size": Flag(
        32, ("sft.batch_size", "sft.micro_batch_size"), "batch_size counts all GPUs", "whole"
    ),
    "sftaux_num_workers": Flag(None, (), "pictures are read as they are needed", "whole"),
    "sftaux_disable_on_error": Flag(
        False, (), "leave the section sft out; damaged pictures are skipped and counted", "switch"
    ),
    # Evaluation
    "eval_freq": Flag(
        10, ("evaluation.every",), "0 leaves evaluation out; it is not made without eval_dataset_config", "whole"
    ),
    "eval_before_train": Flag(False, (), "always: gains are measured against it", "switch"),
    "eval_dataset_config": Flag(None, ("evaluation.dataset_config",), "the YAML as it is"),
    "eval_inference_mode": Flag("ode", (), "always ode; sde is refused", choices=("sde", "ode")),
    "eval_cfg_scale": Flag(4.0, ("evaluation.guidance_scale",), "0 (none there) is 1", "number"),
    "eval_num_inference_steps": Flag(50, ("evaluation.num_inference_steps",), "", "whole"),
    "eval_sde_eta": Flag(None, (), "evaluation is deterministic", "number"),
    "eval_image_height": Flag(None, ("evaluation.height",), "given alone, the width is image_width", "whole"),
    "eval_image_width": Flag(None, ("evaluation.width",), "given alone, the height is image_height", "whole"),
    "eval_micro_batch_size": Flag(160, ("evaluation.batch_size",), "", "whole"),
    "eval_wandb_num_upload_images": Flag(0, ("evaluation.num_pictures",), "the larger of the two", "whole"),
    "eval_swanlab_num_upload_images": Flag(32, ("evaluation.num_pictures",), "the larger of the two", "whole"),
    # Logs and checkpoints
    "report_to": Flag("wandb", ("logging.report_to",), "tensorboard, wandb, swanlab; metrics.jsonl is always written"),
    "logging_steps": Flag(1, (), _OUR_LOGS, "whole"),
    "log_images_interval": Flag(1, (), "pictures are kept for the report, within bounds", "whole"),
    "log_component_grad_norm": Flag(True, (), _NO_COMPONENTS, "switch"),
    "log_component_grad_norm_every": Flag(None, (), _NO_COMPONENTS, "whole"),
    "log_tflops": Flag(False, (), _MFU, "switch"),
    "log_tflops_every": Flag(None, (), _MFU, "whole"),
    "log_tflops_warmup_steps": Flag(5, (), _MFU, "whole"),
    "save_steps": Flag(50, ("checkpoint.save_every",), "", "whole"),
    "save_total_limit": Flag(-1, ("checkpoint.keep",), "-1 (keep all) becomes 1000", "whole"),
}

# Names that DeepGen-RL itself refuses, with what replaced them there.
REMOVED = {
    "num_generations": "rollout_n",
    "per_device_train_batch_size": "rollout_micro_batch_size or atrain_micro_batch_size",
    "gradient_accumulation_steps": "atrain_global_batch_size",
}
