"""Every key of a YAML of NanoVLM-Lab, with its default there and what it becomes here: the table of docs/migration_nanovlm_lab.md
and of the messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TrainingType = Literal["sft", "dpo", "grpo"]
TYPES: tuple[TrainingType, ...] = ("sft", "dpo", "grpo")
KeyKind = Literal["text", "whole", "number", "flag", "mapping", "list"]


@dataclass(frozen=True)
class Key:
    """A key of a section.

    Attributes:
        kind: what its value is; numbers may be written as texts, as YAML reads 5e-6.
        default: there; by training type where it differs.
        ours: what it becomes.
        idle: by training type why it does nothing in our recipe.
        remark: what differs, in a few words.
    """

    kind: KeyKind
    default: Any
    ours: str
    idle: Mapping[TrainingType, str] = field(default_factory=dict)
    remark: str = ""

    def default_of(self, training: TrainingType) -> Any:
        return self.default[training] if isinstance(self.default, ByType) else self.default


class ByType(dict[TrainingType, Any]):
    """A default that differs between sft, dpo and grpo."""


def _always(reason: str) -> dict[TrainingType, str]:
    return dict.fromkeys(TYPES, reason)


def _by_type(sft: Any, dpo: Any, grpo: Any) -> ByType:
    return ByType(sft=sft, dpo=dpo, grpo=grpo)


_THERE = "there nothing reads it, and nothing does here"
_SFT_ONLY: dict[TrainingType, str] = dict.fromkeys(("dpo", "grpo"), "there sft alone has rates of its own for parts")
LORA: dict[str, Key] = {
    "r": Key("whole", 16, "policy.lora.rank"),
    "lora_alpha": Key("number", 16, "policy.lora.alpha"),
    "lora_dropout": Key(
        "number", 0.1, "nothing", _always("adapters have no dropout here: a replay must be what was sampled")
    ),
    "target_modules": Key(
        "list",
        ["down_proj", "o_proj", "k_proj", "q_proj", "gate_proj", "up_proj", "v_proj"],
        "policy.lora.target_modules",
        remark="o_proj fits no layer of a nanoVLM model, there neither; its name is out_proj",
    ),
    "use_dora": Key("flag", False, "nothing", remark="DoRA is not offered, and true is refused"),
    "init_lora_weights": Key(
        "text", "gaussian", "nothing", _always("adapters start as the gaussian ones of PEFT do, always")
    ),
}
MODEL: dict[str, Key] = {
    "model_name_or_path": Key("text", None, "policy.pretrained", remark='"initialize" is policy.initialize'),
    "use_lora": Key("flag", False, "policy.lora"),
    "lora_config": Key("mapping", {}, "policy.lora"),
    "model_type": Key("text", "nanovlm", "nothing", _always(_THERE)),
    "initialize_from_config": Key("flag", False, "policy.initialize", remark="there in sft alone"),
    "load_backbone": Key("flag", True, "policy.initialize.load_backbone"),
    "vlm_config": Key("mapping", {}, "policy.initialize.vlm_config"),
}
DATASET: dict[str, Key] = {
    "train_data_path": Key("text", None, "conversations.path, preferences.path, data.train.path"),
    "train_split": Key("text", "train", "split of the same section"),
    "eval_data_path": Key(
        "text",
        None,
        "evaluation.sets (grpo); null: evaluation.hold_out (grpo) or hold_out of the same section, 0.2",
        remark="sft and dpo measure the loss of rows held out by hold_out alone",
    ),
    "eval_split": Key("text", "test", "evaluation.sets.split"),
    "dataset_format": Key("text", None, "nothing", _always("there nothing reads it; the columns say what a row is")),
    "max_samples": Key("whole", None, "max_samples of the same section"),
    "rename_columns": Key("mapping", {}, "rename_columns of the same section"),
    "preprocessing_fn": Key(
        "text", None, "preprocessing of the same section", remark="a file that is not there is an error, no warning"
    ),
    "reward_functions_fn": Key(
        "text",
        None,
        "rewards.services.rules, rewards.columns",
        {"sft": "there grpo alone reads it", "dpo": "there grpo alone reads it"},
        "functions with a parameter `completions` become rewards; there every function of the file did",
    ),
}
TRAINING: dict[str, Key] = {
    "output_dir": Key(
        "text",
        _by_type("./sft_output", "./dpo_output", "./grpo_output"),
        "output_dir and run_name",
        remark="a relative one lies beside the YAML, or beside its folder `configs`; there in nanovlm/",
    ),
    "num_train_epochs": Key(
        "number", _by_type(3, 3, 1), "max_steps", remark="by the number of rows, which are counted"
    ),
    "max_steps": Key("whole", -1, "max_steps"),
    "per_device_train_batch_size": Key(
        "whole", _by_type(4, 4, 1), "micro_batch_size", remark="of rows, in grpo of prompts"
    ),
    "per_device_eval_batch_size": Key(
        "whole",
        _by_type(4, 4, 1),
        "evaluation.batch_size",
        {
            "sft": "the loss of held-out rows is measured in the micro-batches of training",
            "dpo": "the loss of held-out rows is measured in the micro-batches of training",
        },
    ),
    "gradient_accumulation_steps": Key("whole", _by_type(1, 1, 4), "batch_size, sampling.prompts_per_step"),
    "learning_rate": Key(
        "number",
        _by_type(5e-5, 5e-5, 5e-6),
        "optim.lr",
        {"sft": "there and here sft takes the rates of the parts, or lr_lora"},
    ),
    "lr_mp": Key("number", 5e-3, "optim.groups.projector.lr", _SFT_ONLY, "0: policy.freeze"),
    "lr_vision_backbone": Key("number", 5e-5, "optim.groups.vision.lr", _SFT_ONLY, "0: policy.freeze"),
    "lr_language_backbone": Key("number", 5e-5, "optim.groups.language.lr", _SFT_ONLY, "0: policy.freeze"),
    "lr_lora": Key("number", 5e-4, "optim.lr, with LoRA", _SFT_ONLY),
    "warmup_ratio": Key("number", 0.1, "optim.warmup_steps"),
    "weight_decay": Key("number", 0.01, "optim.weight_decay"),
    "max_grad_norm": Key("number", 1.0, "optim.max_grad_norm", remark="in grpo it acts; there 1.0 was taken"),
    "lr_scheduler_type": Key("text", "cosine", "optim.schedule", remark="in grpo it acts; there linear was taken"),
    "bf16": Key("flag", True, "policy.dtype"),
    "fp16": Key("flag", False, "policy.dtype", remark="bfloat16 in its place"),
    "save_strategy": Key("text", "steps", "checkpoint.save_every"),
    "save_steps": Key("whole", _by_type(500, 500, 100), "checkpoint.save_every"),
    "eval_strategy": Key("text", "steps", "evaluation.every"),
    "eval_steps": Key("whole", _by_type(500, 500, 50), "evaluation.every"),
    "logging_steps": Key("whole", _by_type(100, 100, 10), "nothing", _always("every step is a row of metrics.jsonl")),
    "save_total_limit": Key("whole", 3, "checkpoint.keep", remark="in grpo it acts; there all were kept"),
    "seed": Key("whole", 42, "seed"),
    "device": Key("text", "cuda", "distributed.device", remark="cuda is auto: CUDA where there is one"),
    "n_gpu": Key("whole", 1, "nothing", _always("there nothing reads it; here NGPUS of `bash train.sh` says it")),
}
DPO: dict[str, Key] = {
    "beta": Key("number", 0.1, "objective.beta"),
    "dpo_loss_type": Key("text", "sigmoid", "objective.kind", remark="ipo is ipo_sum, as it sums log-probabilities"),
    "label_smoothing": Key("number", 0.0, "objective.smoothing"),
    "loss_type": Key("text", "sigmoid", "nothing", _always("there nothing reads it; dpo_loss_type says the loss")),
}
GRPO: dict[str, Key] = {
    "num_generations": Key("whole", 4, "sampling.group_size"),
    "max_prompt_length": Key(
        "whole",
        512,
        "policy.max_prompt_tokens",
        remark="a longer prompt is refused by name; there it was cut in its middle",
    ),
    "max_completion_length": Key("whole", 256, "sampling.max_new_tokens"),
    "temperature": Key("number", 1.0, "sampling.temperature"),
    "top_p": Key("number", 1.0, "sampling.top_p", remark="1 is no filter; there 1 became 0.95"),
    "top_k": Key("whole", 0, "sampling.top_k", remark="0 is no filter; there 0 became 50"),
    "loss_type": Key("text", "grpo", "objective.type"),
    "epsilon": Key("number", 0.2, "objective.clip_range"),
    "epsilon_high": Key(
        "number", None, "objective.clip_range", remark="null is epsilon; of cispo it is the cap itself"
    ),
    "delta": Key("number", None, "objective.delta"),
    "scale_rewards": Key("text", "group", "advantage.type"),
    "sapo_temperature_pos": Key("number", None, "objective.tau"),
    "sapo_temperature_neg": Key("number", None, "objective.tau"),
    "importance_sampling_level": Key("text", "token", "objective.level"),
    "mask_truncated_completions": Key("flag", True, "objective.mask_truncated"),
    "beta": Key("number", 0.1, "objective.kl_beta", remark="without the importance factor, as there"),
    "disable_dropout": Key("flag", True, "nothing", _always("nothing drops out here")),
    "log_completions": Key("flag", False, "nothing", _always("the report and every reporter show held-out answers")),
    "num_completions_to_print": Key("whole", 5, "evaluation.num_pictures"),
}
SAVE: dict[str, Key] = {
    "save_model_path": Key(
        "text",
        _by_type("./sft_output/final_model", "./dpo_output/final_model", "./grpo_output/final_model"),
        "`python -m trainer export`, done at the end of `bash train.sh`",
    ),
    "save_tokenizer": Key("flag", True, "nothing", _always("an exported folder always has what a reader needs")),
    "save_image_processor": Key("flag", True, "nothing", _always("an exported folder always has what a reader needs")),
}
LOGGING: dict[str, Key] = {
    "use_wandb": Key("flag", False, "logging.report_to", remark="there nothing read it; here true adds wandb"),
    "wandb_project": Key("text", None, "logging.project", remark="there nothing read it"),
    "wandb_entity": Key("text", None, "nothing", _always("W&B itself reads the variable WANDB_ENTITY")),
    "report_to": Key("list", ["tensorboard"], "logging.report_to", remark="there dpo alone read it"),
}
SECTIONS: dict[str, dict[str, Key]] = {
    "model": MODEL,
    "dataset": DATASET,
    "training": TRAINING,
    "dpo": DPO,
    "grpo": GRPO,
    "save": SAVE,
    "logging": LOGGING,
}
REQUIRED = ("training_type", "model", "dataset", "training")
