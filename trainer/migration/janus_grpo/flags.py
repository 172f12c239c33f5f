"""The flags of PairUni's and T2I-R1's command lines: default there, our fields, and what differs.

docs/migration_pairuni.md shows these tables; a test keeps them equal. Defaults that a program does not set itself are those of the
Trainer of transformers and of TRL's GRPOConfig, on which both stand.
"""

from __future__ import annotations

from typing import Literal

from trainer.migration.command_line import Flag

Program = Literal["pairuni", "t2i-r1"]


_OTHERS = "here NGPUS and NNODES of `bash train.sh` say it"
_MODEL = "the model's own"

LAUNCHER: dict[str, Flag] = {
    "nproc_per_node": Flag(
        1, ("sampling.prompts_per_step",), "counts GPUs; NGPUS of `bash train.sh` starts as many", "whole"
    ),
    "nnodes": Flag(1, ("sampling.prompts_per_step",), "counts nodes; NNODES of `bash train.sh`", "whole"),
    "node_rank": Flag(None, (), _OTHERS),
    "master_addr": Flag(None, (), _OTHERS),
    "master_port": Flag(None, (), _OTHERS),
}
SHARED: dict[str, Flag] = {
    "deepspeed": Flag(None, ("distributed.deepspeed",), "the files of the same names are in configs/deepspeed"),
    "output_dir": Flag(None, ("output_dir", "run_name"), "the run's folder is output_dir/run_name"),
    "run_name": Flag(None, ("logging.name",), "the name that W&B shows"),
    "model_name_or_path": Flag(
        "deepseek-ai/Janus-Pro-1B", ("policy.pretrained",), "a folder in either layout, or an id of the hub"
    ),
    "max_prompt_length": Flag(
        512,
        ("policy.max_prompt_tokens",),
        "of text; a question's image tokens are added, and what is longer is refused by name, never cut",
        "whole",
    ),
    "temperature": Flag(
        1.0,
        ("sampling.tasks.understand.temperature", "sampling.tasks.generate.temperature"),
        "of every task, and of a plan",
        "number",
    ),
    "cfg_weight": Flag(
        5.0,
        ("sampling.tasks.generate.guidance_scale",),
        "log-probabilities are of the guided distribution; there of its conditional branch (score: conditional)",
        "number",
    ),
    "per_device_train_batch_size": Flag(
        1, ("sampling.prompts_per_step",), "times accumulation and GPUs; of pairs, or of prompts", "whole"
    ),
    "gradient_accumulation_steps": Flag(2, ("sampling.prompts_per_step",), "one update on all of a step", "whole"),
    "max_steps": Flag(-1, ("max_steps",), "-1 counts num_train_epochs", "whole"),
    "num_train_epochs": Flag(1.0, ("max_steps",), "by the number of rows", "number"),
    "learning_rate": Flag(1e-6, ("optim.lr",), "", "number"),
    "lr_scheduler_type": Flag("linear", ("optim.schedule",), "constant, constant_with_warmup, linear, cosine"),
    "warmup_steps": Flag(0, ("optim.warmup_steps",), "", "whole"),
    "warmup_ratio": Flag(0.0, ("optim.warmup_steps",), "of max_steps", "number"),
    "weight_decay": Flag(0.0, ("optim.weight_decay",), "", "number"),
    "max_grad_norm": Flag(1.0, ("optim.max_grad_norm",), "0 (off there) becomes 1e9", "number"),
    "beta": Flag(0.0, ("objective.kl_beta",), "of the KL to the starting weights (k3)", "number"),
    "seed": Flag(42, ("seed",), "", "whole"),
    "bf16": Flag(False, ("policy.dtype",), "trained weights stay float32", "flag"),
    "gradient_checkpointing": Flag(False, ("policy.gradient_checkpointing",), "", "flag"),
    "save_steps": Flag(500, ("checkpoint.save_every",), "", "whole"),
    "save_total_limit": Flag(None, ("checkpoint.keep",), "without it all are kept, which becomes 1000", "whole"),
    "report_to": Flag("none", ("logging.report_to",), "metrics.jsonl is always written"),
    "hps_ckpt_path": Flag(
        None, ("rewards.services.hps.args",), "the published .pt, read without pickle by a service of its own"
    ),
    "image_token_num_per_image": Flag(576, (), f"{_MODEL}: the square of its grid, whatever is written", "whole"),
    "img_size": Flag(384, (), _MODEL, "whole"),
    "patch_size": Flag(16, (), _MODEL, "whole"),
    "logging_steps": Flag(1, (), "every step is a row of metrics.jsonl", "whole"),
    "torch_dtype": Flag(None, (), "policy.dtype says it, by --bf16"),
    "attn_implementation": Flag(None, (), "PyTorch's own attention, fused where it can be"),
    "tf32": Flag(None, (), "weights are float32 and computed in bfloat16", "flag"),
    "use_vllm": Flag(False, (), "images and answers are drawn by the trainer", "flag"),
    "local_rank": Flag(-1, (), "torchrun's own variable is read", "whole"),
}
PAIRUNI: dict[str, Flag] = {
    "pair_data_path": Flag(None, ("data.train",), "as it is; its images count from the working directory"),
    "num_generations_text": Flag(8, ("sampling.tasks.understand.group_size",), "", "whole"),
    "num_generations_image": Flag(8, ("sampling.tasks.generate.group_size",), "", "whole"),
    "max_completion_length": Flag(256, ("sampling.tasks.understand.max_new_tokens",), "", "whole"),
    "pair_weight": Flag("sqrt", ("sampling.pair_weight",), "sqrt, linear or none, as in the paper's ablation"),
    "similarity_threshold": Flag(
        0.0, ("sampling.similarity_threshold",), "0.6 in the paper, by which its data was made", "number"
    ),
}
T2I_R1: dict[str, Flag] = {
    "dataset_name": Flag(None, ("data.train",), "the JSON list as it is; columns beside the prompt reach the rewards"),
    "num_generations": Flag(8, ("sampling.tasks.generate.group_size",), "", "whole"),
    "max_completion_length": Flag(
        256, ("sampling.tasks.generate.think.max_new_tokens",), "of the plan before an image", "whole"
    ),
    "reasoning_prompt_path": Flag(
        None,
        ("sampling.tasks.generate.think.instruction",),
        "what stands behind {} in the file; without the flag nothing is planned",
    ),
    "reward_funcs": Flag(
        ["hps", "git", "gdino", "orm"],
        ("rewards.columns",),
        "each of weight 1; hps, gdino and orm are services here, git is a file of your own (docs/rewards.md)",
        "texts",
    ),
    "new_generations_image": Flag(1, (), "one image a plan, always; another number is refused", "whole"),
    "git_ckpt_path": Flag(None, (), "GIT_MODEL of the service that you start names the folder"),
    "gdino_ckpt_path": Flag(None, (), "services.geneval reads a folder of Grounding DINO as transformers has it"),
    "gdino_config_path": Flag(None, (), "the folder has its own"),
    "orm_ckpt_path": Flag(None, ("rewards.services.vqa.args",), "its name; vLLM serves it to services.vqa"),
}


def flags_of(program: str) -> dict[str, Flag]:
    """All flags of a program, those of torchrun among them."""
    return {**LAUNCHER, **SHARED, **(PAIRUNI if program == "pairuni" else T2I_R1)}
