"""The flags of UniReason's training program: default there, our fields, and what differs.

docs/migration_unireason.md shows these tables; a test keeps them equal.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainer.migration.command_line import Flag

ENTRY = "pretrain_unified_navit.py"
_OTHERS = "here NGPUS and NNODES of `bash train.sh` say it"
_FOLDER = "the BAGEL folder has it"
_FIXED = "no other value is read here; another one is refused"
_WANDB = "W&B is off unless `logging.report_to` names it"

LAUNCHER: Mapping[str, Flag] = {
    "nproc_per_node": Flag(
        1, ("packed.packs",), "a pack for each GPU; NGPUS of `bash train.sh` starts as many", "whole"
    ),
    "nnodes": Flag(1, ("packed.packs",), "counts nodes; NNODES of `bash train.sh`", "whole"),
    "node_rank": Flag(None, (), _OTHERS),
    "master_addr": Flag(None, (), _OTHERS),
    "master_port": Flag(None, (), _OTHERS),
    "standalone": Flag(False, (), _OTHERS, "flag"),
    "rdzv_backend": Flag(None, (), _OTHERS),
    "rdzv_endpoint": Flag(None, (), _OTHERS),
    "rdzv_id": Flag(None, (), _OTHERS),
    "max_restarts": Flag(0, (), "a run goes on by the same command", "whole"),
}
MODEL: Mapping[str, Flag] = {
    "model_path": Flag("hf/BAGEL-7B-MoT", ("policy.pretrained",), "the folder as it is"),
    "llm_path": Flag("hf/Qwen2.5-0.5B-Instruct/", (), _FOLDER),
    "vae_path": Flag("flux/vae/ae.safetensors", (), _FOLDER),
    "vit_path": Flag("hf/siglip-so400m-14-980-flash-attn2-navit/", (), _FOLDER),
    "llm_qk_norm": Flag(True, (), _FIXED, "flag"),
    "tie_word_embeddings": Flag(False, (), _FIXED, "flag"),
    "layer_module": Flag("Qwen2MoTDecoderLayer", (), _FIXED),
    "max_latent_size": Flag(
        32, ("policy.max_latent_size",), "64 where it is not given: 32 does not fit the published weights", "whole"
    ),
    "latent_patch_size": Flag(2, (), _FIXED, "whole"),
    "vit_patch_size": Flag(14, (), _FIXED, "whole"),
    "vit_max_num_patch_per_side": Flag(70, (), _FIXED, "whole"),
    "connector_act": Flag("gelu_pytorch_tanh", (), _FIXED),
    "interpolate_pos": Flag(False, ("policy.interpolate_positions",), "", "flag"),
    "vit_select_layer": Flag(-2, (), _FIXED, "whole"),
    "vit_rope": Flag(False, (), _FIXED, "flag"),
    "text_cond_dropout_prob": Flag(0.1, ("packed.dropout.text",), "", "number"),
    "vae_cond_dropout_prob": Flag(0.1, ("packed.dropout.clean",), "the code's default; its page says 0.3", "number"),
    "vit_cond_dropout_prob": Flag(0.0, ("packed.dropout.seen",), "the code's default; its page says 0.3", "number"),
}
DATA: Mapping[str, Flag] = {
    "dataset_config_file": Flag("data/configs/example.yaml", ("packed.grouping",), "the YAML as it is"),
    "dataset_info": Flag(
        None,
        ("packed.registry",),
        "a flag of ours: its dataset_info.py or a YAML file; without it data/dataset_info.py of the folder that the script runs in",
    ),
    "instructions": Flag(
        None,
        ("packed.think_instruction", "packed.refine_instruction"),
        "a flag of ours: the folder with its think_t2i.py and think_refine_t2i.py; without it data/interleave_datasets, where it is",
    ),
    "prefetch_factor": Flag(2, (), "rows are read ahead as packs need them", "whole"),
    "num_workers": Flag(
        4, ("packed.workers",), "threads of each GPU's process; --num_worker is understood, too", "whole"
    ),
    "max_num_tokens_per_sample": Flag(16384, ("packed.max_row_tokens",), "", "whole"),
    "max_num_tokens": Flag(36864, ("packed.max_tokens",), "", "whole"),
    "prefer_buffer_before": Flag(16384, ("packed.buffer_below",), "", "whole"),
    "max_buffer_size": Flag(50, ("packed.buffer_size",), "of each pack's stream", "whole"),
    "data_seed": Flag(42, (), "`seed` decides of rows, too", "whole"),
}
TRAINING: Mapping[str, Flag] = {
    "visual_gen": Flag(True, (), _FIXED, "flag"),
    "visual_und": Flag(True, (), _FIXED, "flag"),
    "results_dir": Flag("results", (), "the run's folder has the log, metrics and checkpoints"),
    "checkpoint_dir": Flag("results/checkpoints", ("output_dir", "run_name"), "the run's folder is output_dir/run_name"),
    "wandb_project": Flag("bagel", (), _WANDB),
    "wandb_name": Flag("run", (), _WANDB),
    "wandb_runid": Flag("0", (), _WANDB),
    "wandb_resume": Flag("allow", (), _WANDB),
    "wandb_offline": Flag(False, (), _WANDB, "flag"),
    "global_seed": Flag(4396, ("seed",), "of the run; every row has its own", "whole"),
    "auto_resume": Flag(False, (), "a run always goes on where it stopped; another run_name starts anew", "flag"),
    "resume_from": Flag(None, ("policy.weights",), "a folder such as 0030000/; weights alone are read from it"),
    "resume_model_only": Flag(False, ("policy.weights",), "must be true beside --resume_from: its optimizer's files are not read", "flag"),
    "finetune_from_ema": Flag(False, ("policy.use_ema",), "", "flag"),
    "finetune_from_hf": Flag(False, ("policy.pretrained",), "must be true: a model is read from a BAGEL folder", "flag"),
    "log_every": Flag(10, (), "every step is a row of metrics.jsonl", "whole"),
    "save_every": Flag(2000, ("checkpoint.save_every",), "the last step is saved, too", "whole"),
    "total_steps": Flag(20000, ("max_steps",), "the run ends there", "whole"),
    "warmup_steps": Flag(2000, ("optim.warmup_steps",), "", "whole"),
    "lr_scheduler": Flag("constant", ("optim.schedule",), "constant or cosine"),
    "lr": Flag(1e-4, ("optim.lr",), "", "number"),
    "min_lr": Flag(1e-7, ("optim.min_lr",), "of cosine, reached at the last step", "number"),
    "beta1": Flag(0.9, ("optim.betas",), "", "number"),
    "beta2": Flag(0.95, ("optim.betas",), "", "number"),
    "eps": Flag(1e-8, (), _FIXED, "number"),
    "ema": Flag(0.9999, ("optim.ema_decay",), "", "number"),
    "max_grad_norm": Flag(1.0, ("optim.max_grad_norm",), "", "number"),
    "timestep_shift": Flag(1.0, ("packed.noise.shift",), "", "number"),
    "mse_weight": Flag(1.0, ("packed.loss.mse_weight",), "", "number"),
    "ce_weight": Flag(1.0, ("packed.loss.ce_weight",), "", "number"),
    "ce_loss_reweighting": Flag(False, ("packed.loss.reduction",), "true is square, false is token", "flag"),
    "expected_num_tokens": Flag(32768, ("packed.expected_tokens",), "", "whole"),
    "num_replicate": Flag(1, (), "parts are spread over all ranks", "whole"),
    "num_shard": Flag(8, (), "parts are spread over all ranks", "whole"),
    "sharding_strategy": Flag("HYBRID_SHARD", ("distributed.deepspeed",), "ZeRO does what FSDP does there: FULL_SHARD and HYBRID_SHARD are stage 3, SHARD_GRAD_OP stage 2"),
    "backward_prefetch": Flag("BACKWARD_PRE", (), "DeepSpeed's own"),
    "cpu_offload": Flag(False, ("distributed.deepspeed",), "with ZeRO stage 3: zero3_offload.json", "flag"),
    "freeze_llm": Flag(False, (), "it freezes both experts and no projection, which is no part here; refused", "flag"),
    "freeze_vit": Flag(False, ("policy.freeze",), "vision", "flag"),
    "freeze_vae": Flag(True, (), "the codec is never trained", "flag"),
    "freeze_und": Flag(
        False,
        ("policy.freeze", "policy.constant_words"),
        "language, vision, connector, as in stage 1 of its paper; no gradient passes through words and seen images",
        "flag",
    ),
    "copy_init_moe": Flag(True, (), "weights come from a checkpoint", "flag"),
    "use_flex": Flag(False, ("policy.attention",), "true is flex; false is auto, which is flex on a GPU", "flag"),
}  # fmt: skip

# Flags whose value is of the published model; another one has nothing to be read by.
FIXED = tuple(name for table in (MODEL, TRAINING) for name, flag in table.items() if flag.remark == _FIXED)
# The two stages of the paper, as flags: the first by its section 4, the second by its script.
PRESETS: Mapping[str, str] = {
    "align": "--finetune_from_hf True --max_latent_size 64 --freeze_und True --lr 5e-5 --lr_scheduler cosine --min_lr 1e-5 "
    "--warmup_steps 3000 --total_steps 30000 --save_every 5000 --ema 0.995 --timestep_shift 4 --sharding_strategy FULL_SHARD "
    "--checkpoint_dir results/stage_1_align",
    "reason": "--finetune_from_hf True --max_latent_size 64 --resume_model_only True --finetune_from_ema True --lr 2e-5 "
    "--lr_scheduler cosine --min_lr 1e-6 --warmup_steps 1000 --total_steps 10000 --save_every 5000 --ema 0.995 --ce_weight 2 "
    "--timestep_shift 4 --max_num_tokens 50000 --max_num_tokens_per_sample 50000 --prefer_buffer_before 50000 "
    "--sharding_strategy FULL_SHARD --cpu_offload True --checkpoint_dir results/stage_2_reason",
}


def flags() -> dict[str, Flag]:
    """All of them, those of torchrun among them."""
    return {**LAUNCHER, **MODEL, **DATA, **TRAINING}
