"""What DeepGen-RL's flags mean in our fields: batch arithmetic, names, and the settings that contradict each other there."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rewards.shipped import FOLDER
from trainer.config.base import ConfigError
from trainer.migration.deepgen.data_translation import count_prompts, data_lines
from trainer.migration.deepgen.idle import idle_flags
from trainer.migration.deepgen.kl_weight import flow_over_cps
from trainer.migration.deepgen.supervised import supervised_lines
from trainer.migration.recipe_text import Line

_OBJECTIVES = {"flowgrpo": "flow_grpo", "grpoguard": "grpo_guard", "diffusionnft": "diffusion_nft"}
_SAMPLERS = {"cps_sde": "cps", "flowgrpo_sde": "flow_sde", "dance_sde": "dance_sde"}
_KL_TYPES: dict[str, Literal["velocity", "latent"]] = {"v-based": "velocity", "x-based": "latent"}
_REPORTERS = ("tensorboard", "wandb", "swanlab")
_DEEPSPEED = ("zero2", "zero3", "zero3_offload", "zero3_sd3")
_KEEP_ALL = 1000
_EXTRAS = "wandb, swanlab: pip install --require-hashes -r requirements/reporters.txt"


_OURS = FOLDER / "configs" / "deepspeed"


def translate(args: argparse.Namespace) -> tuple[dict[str, Line], list[str]]:
    """Our fields, dotted, in the order of a recipe, and a sentence for everything that was given and does not act.

    Paths are absolute: a recipe is started from our folder, and DeepGen-RL's files count from another. Raises ConfigError.
    """
    prompts, micro = batch(args)
    supervised, said = supervised_lines(args)
    lines = {
        **_run(args, prompts),
        "policy.type": Line("deepgen"),
        **({"policy.checkpoint": Line(os.path.abspath(args.checkpoint))} if args.checkpoint else {}),
        "policy.dtype": Line("bfloat16"),
        "policy.gradient_checkpointing": Line(True),
        **_sampling(args, prompts, micro),
        **_objective(args),
        "advantage.type": Line(args.atrain_adv_type.replace("reinforcepp", "reinforce_pp")),
        **supervised,
        **data_lines(args),
        **_optim(args),
        **({} if args.deepspeed is None else {"distributed.deepspeed": _deepspeed(args.deepspeed)}),
        **_evaluation(args),
        "checkpoint.save_every": Line(args.save_steps),
        "checkpoint.keep": Line(args.save_total_limit) if args.save_total_limit > 0 else Line(_KEEP_ALL, "all, there"),
        "logging.report_to": Line(reporters := _reporters(args.report_to), _EXTRAS if len(reporters) > 1 else ""),
        **({"logging.name": Line(args.run_name)} if args.run_name else {}),
    }
    return lines, [*idle_flags(args, lines), *said]


def batch(args: argparse.Namespace) -> tuple[int, int]:
    """(distinct prompts a step over all GPUs, samples denoised at once on one).

    DeepGen-RL counts images: a rollout has rollout_global of them in groups of n, on W GPUs, micro at once on each. A GPU
    there holds max(1, micro // n) groups at once, so images beyond whole groups are never made.

    Raises:
        ConfigError: groups do not fit into the rollout, or the prompts cannot be dealt evenly to the GPUs.
    """
    total, n, micro = args.rollout_global_batch_size, args.rollout_n, args.rollout_micro_batch_size
    if args.gpus is not None and args.gpus < 1:
        raise ConfigError(f"--gpus {args.gpus} must be at least 1")
    if micro < 1:
        raise ConfigError(f"--rollout_micro_batch_size {micro} must be at least 1")
    if n < 2:
        raise ConfigError(f"--rollout_n {n} makes groups without a comparison; give at least 2")
    if total % n or total <= 0:
        raise ConfigError(
            f"--rollout_global_batch_size {total} is not a multiple of --rollout_n {n}; try {max(1, total // n) * n}"
        )
    prompts = total // n
    if args.gpus and prompts % args.gpus:
        raise ConfigError(
            f"--rollout_global_batch_size {total} / --rollout_n {n} = {prompts} prompts cannot be dealt evenly to "
            f"{args.gpus} GPUs; try --rollout_global_batch_size {math.ceil(prompts / args.gpus) * args.gpus * n}"
        )
    at_once = micro // n * n if micro >= n else next(size for size in range(micro, 0, -1) if n % size == 0)
    per_gpu = total // (args.gpus or 1)
    while per_gpu % at_once:
        at_once -= n
    return prompts, at_once


def _run(args: argparse.Namespace, prompts: int) -> dict[str, Line]:
    folder = Path(args.output_dir)
    if args.max_steps > 0:
        steps = Line(args.max_steps)
    else:
        count = count_prompts(args)
        steps = Line(
            math.ceil(args.num_train_epochs * count / prompts),
            f"{args.num_train_epochs} epochs of {count} prompts, {prompts} a step",
        )
    return {
        "run_name": Line(folder.name),
        "output_dir": Line(os.path.abspath(folder.parent)),
        "seed": Line(42),
        "max_steps": steps,
        "environment": Line("deepgen_rl", "its variables (models, URLs, DATASET_CONFIG, ...) act over this file"),
    }


def _sampling(args: argparse.Namespace, prompts: int, micro: int) -> dict[str, Line]:
    total, n = args.rollout_global_batch_size, args.rollout_n
    if args.num_inference_steps < 2:
        raise ConfigError(f"--num_inference_steps {args.num_inference_steps} must be at least 2")
    lines = {
        "sampling.prompts_per_step": Line(
            prompts, f"{total} pictures, {n} of each, over all GPUs, however many there are"
        ),
        "sampling.group_size": Line(n),
        "sampling.micro_batch_size": Line(
            micro, "" if micro == args.rollout_micro_batch_size else f"{args.rollout_micro_batch_size} in whole groups"
        ),
        "sampling.num_inference_steps": Line(args.num_inference_steps),
        "sampling.guidance_scale": Line(_guidance("cfg_scale", args.cfg_scale)),
        "sampling.shift": Line(None, "the model's own"),
        "sampling.height": Line(args.image_height),
        "sampling.width": Line(args.image_width),
    }
    if args.atrain_algorithm == "diffusionnft":
        return lines
    kind, said = _SAMPLERS[args.atrain_sde_sampler], ""
    if _leaves_cps(args):
        kind, said = "flow_sde", "GRPO-Guard normalises Gaussian log-probabilities, and those of cps_sde are none"
    return lines | {
        "sampling.same_noise": Line(True),
        "sampling.kind": Line(kind, said),
        "sampling.noise_level": Line(args.sde_eta),
        "sampling.timestep_fraction": _fraction(args.num_inference_steps, args.timestep_fraction),
    }


def _leaves_cps(args: argparse.Namespace) -> bool:
    return bool(args.atrain_algorithm == "grpoguard" and args.atrain_sde_sampler == "cps_sde")


def _fraction(steps: int, theirs: float) -> Line:
    """A share of the steps - 1 stochastic steps that trains as many as theirs of all steps does."""
    if not 0 < theirs <= 1:
        raise ConfigError(f"--timestep_fraction {theirs:g} must be above 0 and at most 1")
    trained = min(max(1, int(steps * theirs)), steps - 1)
    share = math.ceil(trained / (steps - 1) * 10_000) / 10_000
    return Line(share, f"{trained} of the {steps - 1} stochastic steps; {theirs:g} of {steps} there")


def _guidance(flag: str, scale: float) -> float:
    if scale and not scale >= 1:
        raise ConfigError(f"--{flag} {scale:g} must be 0 (no guidance) or at least 1")
    return max(1.0, scale)


def _kl_beta(args: argparse.Namespace) -> Line:
    """Their weight in the measure of our KL, which has another divisor where sampler or objective is not the default."""
    if args.atrain_algorithm == "diffusionnft":
        return Line(50 * args.beta, f"{args.beta:g} there, where this KL is divided by 2 * 0.1^2")
    if args.atrain_sde_sampler == "flowgrpo_sde":
        return Line(
            args.beta / args.num_inference_steps,
            f"{args.beta:g} there, where the KL leaves out the step's length, 1 / {args.num_inference_steps} on average",
        )
    if args.beta and _leaves_cps(args):
        kl_type = _KL_TYPES[args.atrain_kl_type]
        factor = flow_over_cps(args.num_inference_steps, args.sde_eta, kl_type)
        return Line(
            float(f"{args.beta / factor.mean:.3g}"),
            f"{args.beta:g} there, with cps_sde, of whose KL ours is {factor.mean:.3g} times on average "
            f"({factor.least:.2g} to {factor.most:.3g} by step), which matches a typical step; there "
            f"{factor.last_share:.0%} of the total lies in the last step that can be trained",
        )
    return Line(args.beta)


def _objective(args: argparse.Namespace) -> dict[str, Line]:
    lines = {
        "objective.type": Line(_OBJECTIVES[args.atrain_algorithm]),
        "objective.kl_beta": _kl_beta(args),
    }
    if args.atrain_algorithm == "diffusionnft":
        lines["objective.nft_beta"] = Line(args.atrain_nft_beta)
        lines["objective.nft_adv_clip"] = Line(args.atrain_nft_adv_clip_range)
        lines["objective.timestep_draws"] = Line(
            max(1, int(args.num_inference_steps * args.timestep_fraction)), "noise levels of the forward process"
        )
        if args.atrain_nft_off_policy:
            if not args.ema_diffusion:
                raise ConfigError("--atrain_nft_off_policy samples with the average, which --ema_diffusion 0 turns off")
            lines["objective.old_decay"] = Line(args.ema_diffusion)
    else:
        lines["objective.clip_range"] = Line(args.clip_range)
        if args.beta:
            lines["objective.kl_type"] = Line(_KL_TYPES[args.atrain_kl_type])
    return lines


def _optim(args: argparse.Namespace) -> dict[str, Line]:
    name = args.lr_scheduler_type
    total = args.rollout_global_batch_size // (args.gpus or 1)
    return {
        "optim.lr": Line(
            args.learning_rate, "one AdamW step a step; DeepGen-RL with DeepSpeed took 61, so raise it if slow"
        ),
        "optim.schedule": Line("linear" if name == "linear" else "constant"),
        "optim.warmup_steps": Line(0 if name == "constant" else args.warmup_steps),
        "optim.max_grad_norm": Line(args.max_grad_norm or 1e9),
        "optim.ema_decay": Line(args.ema_diffusion),
        "optim.updates_per_rollout": Line(args.atrain_num_actor_update_steps),
        "optim.micro_batch_size": Line(
            min(args.atrain_micro_batch_size, total),
            f"{args.atrain_micro_batch_size} there; a GPU has {total}" if args.atrain_micro_batch_size > total else "",
        ),
    }


def _deepspeed(path: str) -> Line:
    if Path(path).stem in _DEEPSPEED:
        return Line(str(_OURS / f"{Path(path).stem}.json"), f"our file for {path}")
    return Line(os.path.abspath(path))


def _evaluation(args: argparse.Namespace) -> dict[str, Line]:
    if args.eval_dataset_config is None or not args.eval_freq:
        return {}
    if args.eval_inference_mode != "ode":
        raise ConfigError("--eval_inference_mode sde: evaluation is deterministic here, by ODE; leave the flag out")
    pictures = max(args.eval_wandb_num_upload_images, args.eval_swanlab_num_upload_images)
    size = {}
    if args.eval_image_height or args.eval_image_width:
        size = {
            "evaluation.height": Line(args.eval_image_height or args.image_height),
            "evaluation.width": Line(args.eval_image_width or args.image_width),
        }
    return {
        "evaluation.dataset_config": Line(os.path.abspath(args.eval_dataset_config)),
        "evaluation.every": Line(args.eval_freq),
        "evaluation.num_inference_steps": Line(args.eval_num_inference_steps),
        "evaluation.guidance_scale": Line(_guidance("eval_cfg_scale", args.eval_cfg_scale)),
        **size,
        "evaluation.batch_size": Line(args.eval_micro_batch_size),
        "evaluation.num_pictures": Line(pictures),
        "evaluation.wait": Line(False, "the judge scores while training goes on"),
    }


def _reporters(text: str) -> Sequence[str]:
    names = [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
    names = list(_REPORTERS) if "all" in names else names
    unknown = [name for name in names if name not in _REPORTERS]
    if unknown:
        raise ConfigError(f"--report_to {text}: {', '.join(unknown)} is none of {', '.join(_REPORTERS)}")
    return list(dict.fromkeys(["tensorboard", *names]))
