"""The flags of NEO's training program: default there, our fields, and what differs.

docs/migration_neo.md shows these tables; a test keeps them equal. Defaults that the program does not set itself are those of the
Trainer of transformers, on which it stands.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainer.migration.command_line import Flag

ENTRY = "train.py"
_OTHERS = "here NGPUS and NNODES of `bash train.sh` say it"
_UNUSED = "nothing reads it there either"
_GROWN = "of a model that is grown; a NEO folder has its own"
_COUNTS = "of the language model's own layers and --extra_num_layers"

LAUNCHER: Mapping[str, Flag] = {
    "nproc_per_node": Flag(1, ("packed.packs",), "counts GPUs; NGPUS of `bash train.sh` starts as many", "whole"),
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
    "model_name_or_path": Flag(None, ("policy.pretrained",), "a NEO folder (stages 2 and 3)"),
    "llm_model_name_or_path": Flag(
        None, ("policy.grow.language",), "a Qwen3 folder that a model is grown from (stage 1)"
    ),
    "tokenizer_name_or_path": Flag(None, ("policy.grow.tokenizer",), _GROWN),
    "model_max_length": Flag(8096, (), _UNUSED, "whole"),
    "rope_theta_hw": Flag(10000.0, ("policy.grow.rope_theta_hw",), _GROWN, "number"),
    "max_position_embeddings_hw": Flag(10000, (), "positions have no table", "whole"),
    "rope_theta_vision": Flag(1000.0, ("policy.grow.rope_theta_vision",), "10000 in its own vision config", "number"),
    "max_position_embeddings_vision": Flag(10000, (), "positions have no table", "whole"),
    "vision_hidden_size": Flag(1024, ("policy.grow.vision_hidden_size",), _GROWN, "whole"),
    "vision_num_channels": Flag(3, (), "images are RGB", "whole"),
    "extra_num_layers": Flag(1, ("policy.grow.extra_layers",), _GROWN, "whole"),
    "num_hidden_layers": Flag(2, (), _COUNTS, "whole"),
    "use_cache": Flag(False, (), "never in training", "flag"),
    "train_buffer": Flag(False, ("policy.train",), "true is stage_1; there the flag does nothing", "flag"),
    "attn_implementation": Flag(None, ("policy.attention",), "flex_attention is flex, eager and sdpa dense; else auto"),
}
DATA: Mapping[str, Flag] = {
    "dataset_use": Flag("sbu_captions", ("packed.groups",), "names and percentages (`%12.5`); the JSON and JSONL files as they are"),
    "dataset_registry": Flag(
        None,
        ("packed.groups",),
        "a flag of ours: the Python or YAML file with the data sets; without it neo/data/__init__.py of the folder that the script runs in",
    ),
    "image_size": Flag(512, (), "images keep their shape; --min_pixels and --max_pixels bound it", "whole"),
    "patch_size": Flag(16, ("policy.grow.patch_size",), _GROWN, "whole"),
    "downsample_ratio": Flag(0.5, ("policy.grow.downsample_ratio",), _GROWN, "number"),
    "max_pixels": Flag(262144, ("policy.max_pixels",), "", "whole"),
    "min_pixels": Flag(12544, ("policy.min_pixels",), "", "whole"),
    "data_flatten": Flag(True, (), _UNUSED, "flag"),
    "dynamic_image_size": Flag("native_resolution", (), "the only value there is"),
    "max_seq_length": Flag(8192, ("packed.max_tokens", "packed.max_row_tokens"), "a longer row is left out by name", "whole"),
    "loss_reduction": Flag("square", ("packed.loss.reduction",), "token, sample or square, of a row's learnt tokens; the mean is over all ranks"),
}  # fmt: skip
TRAINING: Mapping[str, Flag] = {
    "output_dir": Flag(None, ("output_dir", "run_name"), "the run's folder is output_dir/run_name"),
    "run_name": Flag(None, ("logging.name",), "the name that W&B shows"),
    "deepspeed": Flag(None, ("distributed.deepspeed",), "the JSON as it is; our file of the same stage where it is not here"),
    "seed": Flag(42, ("seed",), "of rows, too", "whole"),
    "max_steps": Flag(200000, ("max_steps",), "", "whole"),
    "num_train_epochs": Flag(3.0, (), "--max_steps says how long the run is", "number"),
    "per_device_train_batch_size": Flag(1, ("packed.rows_per_pack",), "rows of a pack", "whole"),
    "per_device_eval_batch_size": Flag(8, (), "nothing is evaluated there", "whole"),
    "gradient_accumulation_steps": Flag(1, ("packed.packs",), "times GPUs: the packs of a step", "whole"),
    "learning_rate": Flag(2e-4, ("optim.lr",), "", "number"),
    "lr_scheduler_type": Flag("cosine_with_min_lr", ("optim.schedule",), "cosine_with_min_lr, cosine, linear, constant, constant_with_warmup"),
    "min_lr_ratio": Flag(0.0, ("optim.min_lr",), "times --learning_rate; of cosine_with_min_lr alone", "number"),
    "warmup_steps": Flag(0, ("optim.warmup_steps",), "", "whole"),
    "warmup_ratio": Flag(0.0, ("optim.warmup_steps",), "of max_steps, rounded up", "number"),
    "weight_decay": Flag(0.1, ("optim.weight_decay",), "", "number"),
    "adam_beta1": Flag(0.9, ("optim.betas",), "", "number"),
    "adam_beta2": Flag(0.95, ("optim.betas",), "", "number"),
    "adam_epsilon": Flag(1e-8, (), "1e-8 here, whatever is given", "number"),
    "max_grad_norm": Flag(1.0, ("optim.max_grad_norm",), "0 (off there) becomes 1e9", "number"),
    "bf16": Flag(False, ("policy.dtype",), "trained weights stay float32", "flag"),
    "dtype": Flag(None, ("policy.dtype",), "its README names it, its program refuses it; bfloat16 or float32"),
    "gradient_checkpointing": Flag(True, ("policy.gradient_checkpointing",), "", "flag"),
    "save_steps": Flag(5000, ("checkpoint.save_every",), "the last step is saved, too", "whole"),
    "save_total_limit": Flag(None, ("checkpoint.keep",), "without it all are kept, which becomes 1000", "whole"),
    "save_strategy": Flag("steps", (), "by --save_steps"),
    "eval_strategy": Flag("no", (), "packed.hold_out keeps rows whose loss is measured"),
    "evaluation_strategy": Flag("no", (), "packed.hold_out keeps rows whose loss is measured"),
    "logging_steps": Flag(10, (), "every step is a row of metrics.jsonl", "whole"),
    "report_to": Flag("none", ("logging.report_to",), "metrics.jsonl is always written"),
    "dataloader_num_workers": Flag(0, ("packed.workers",), "threads of each GPU's process", "whole"),
    "dataloader_pin_memory": Flag(True, (), "rows are small", "flag"),
    "dataloader_prefetch_factor": Flag(None, (), "rows are read ahead as packs need them", "whole"),
    "remove_unused_columns": Flag(False, (), "rows are read field by field", "flag"),
    "ddp_timeout": Flag(1800, (), "distributed.timeout_s says it", "whole"),
    "tf32": Flag(None, (), "weights are float32 and computed in bfloat16", "flag"),
    "local_rank": Flag(-1, (), "torchrun's own variable is read", "whole"),
    "cache_dir": Flag(None, (), "models are read from folders"),
}  # fmt: skip

_ALL = "--bf16 True --gradient_checkpointing True --loss_reduction square --dataloader_num_workers 4"
_PT = f"{_ALL} --train_buffer True --max_steps 200000 --per_device_train_batch_size 64 --gradient_accumulation_steps 5 --max_pixels 4194304 --learning_rate 8e-4 --min_lr_ratio 0.1 --warmup_steps 1000 --max_seq_length 16384 --deepspeed zero2.json"  # fmt: skip
_MT = f"{_ALL} --max_steps 50000 --per_device_train_batch_size 64 --gradient_accumulation_steps 2 --max_pixels 16777216 --learning_rate 5e-5 --min_lr_ratio 0.2 --deepspeed zero3.json"  # fmt: skip
_SFT = f"{_ALL} --max_steps 4500 --per_device_train_batch_size 64 --gradient_accumulation_steps 1 --max_pixels 16777216 --learning_rate 6e-5 --deepspeed zero3.json"  # fmt: skip
# The three stages of both sizes, as the flags of the published scripts.
PRESETS: Mapping[str, str] = {
    "2B_1PT": f"{_PT} --extra_num_layers 12 --output_dir outputs/neo_2b_pt",
    "2B_2MTsi": f"{_MT} --max_seq_length 32768 --warmup_ratio 0.03 --output_dir outputs/neo_2b_mt",
    "2B_3SFTsi": f"{_SFT} --max_seq_length 34816 --warmup_ratio 0.03 --min_lr_ratio 0.1 --output_dir outputs/neo_2b_sft",
    "8B_1PT": f"{_PT} --extra_num_layers 6 --output_dir outputs/neo_8b_pt",
    "8B_2MTsi": f"{_MT} --max_seq_length 18432 --warmup_steps 200 --output_dir outputs/neo_8b_mt",
    "8B_3SFTsi": f"{_SFT} --max_seq_length 18432 --warmup_steps 200 --lr_scheduler_type cosine --output_dir outputs/neo_8b_sft",
}


def flags() -> dict[str, Flag]:
    """All of them, those of torchrun among them."""
    return {**LAUNCHER, **MODEL, **DATA, **TRAINING}
