"""Every field of the configuration has a value that breaks it, and the message names the field and what it must be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from trainer.config import (
    AnswersConfig,
    Config,
    ConfigError,
    DeepGenConfig,
    FluxConfig,
    JanusConfig,
    PreferencesConfig,
    Sd3Config,
    TinyConfig,
    VlmConfig,
)
from trainer.config.advantage import ESTIMATORS
from trainer.config.base import by_type
from trainer.config.drawing import FlowDrawing
from trainer.config.errors import _sections_in, field_paths
from trainer.config.file import load_config
from trainer.config.mot import MotConfig
from trainer.config.neo import NeoConfig
from trainer.config.objective import OBJECTIVES
from trainer.config.policy import OwnPolicyConfig
from trainer.config.sampling import SamplingConfig

BASE: dict[str, Any] = {
    "run_name": "test",
    "max_steps": 10,
    "policy": {"type": "tiny"},
    "sampling": {"prompts_per_step": 4, "group_size": 4, "micro_batch_size": 8},
    "sft": {"path": "pictures.json"},
    "rewards": {
        "services": {"ocr": {"urls": ["http://127.0.0.1:18082"]}},
        "columns": {"ocr": {"service": "ocr"}},
    },
    "data": {"train": [{"path": "train.jsonl", "rewards": {"ocr": 1.0}}]},
    "optim": {"groups": {"matrices": {"lr": 1e-3}}},
    "evaluation": {"path": "heldout.jsonl", "rewards": ["ocr"], "sets": [{"name": "more", "path": "more.jsonl"}]},
    "checkpoint": {"keep_best": {"metric": "eval/ocr"}},
}
# Sections for the fields that the tiny policy does not have.
POLICIES: list[dict[str, Any]] = [
    {"type": "sd3", "pretrained": "sd3", "lora": {}},
    {"type": "flux", "pretrained": "flux"},
    {"type": "deepgen"},
    {"type": "vlm", "initialize": {}},
    {"type": "janus", "pretrained": "janus"},
    {"type": "neo", "grow": {"language": "qwen3"}},
    {"type": "mot", "initialize": {}},
    {"type": "own", "code": "mine.py:Mine", "pretrained": "mine"},
]
MEMBERS = {
    "own": OwnPolicyConfig,
    "sd3": Sd3Config,
    "flux": FluxConfig,
    "deepgen": DeepGenConfig,
    "vlm": VlmConfig,
    "janus": JanusConfig,
    "neo": NeoConfig,
    "mot": MotConfig,
}
# Sections that BASE lacks because its program is rl.
OF_OTHER_PROGRAMS: dict[str, dict[str, Any]] = {
    "conversations": {"path": "talks.json"},
    "quickstart": {"output": "base.safetensors"},
    "cards": {},
    "scenes": {},
    "packed": {"groups": [{"name": "drawings", "sets": [{"path": "rows.json", "format": "t2i"}]}]},
}
OF_A_UNION: dict[str, dict[str, Any]] = {"preferences": {"path": "pairs.jsonl"}}  # what a union's section needs beside
TASKS: dict[str, Any] = {
    "type": "tasks",
    "tasks": {"understand": {"rewards": {"ocr": 1.0}}, "generate": {"rewards": {"ocr": 1.0}}},
}
OF_TASKS = ("sampling.tasks", "sampling.pair_weight", "sampling.similarity_threshold", "sampling.old_logp")
UNIONS: dict[str, Mapping[str, type[BaseModel]]] = {
    "sampling": by_type(SamplingConfig),
    "objective": OBJECTIVES,
    "advantage": ESTIMATORS,
    "preferences": {"images": PreferencesConfig, "answers": AnswersConfig},
}

# What both tasks have, and what one has.
_ADVANTAGE = {
    "advantage": ("gdpo", "must be a mapping of fields"),
    "advantage.type": ("ppo", "'gdpo', 'grpo'"),
    "advantage.min_valid": ("1", "greater than or equal to 2"),
    "advantage.adv_clip": ("0", "greater than 0"),
    "advantage.eps": ("0", "greater than 0"),
    "advantage.std_floor": ("2", "less than or equal to 1"),
    "advantage.skip_flat_groups": ("1", "must be true or false"),
}
_TASK = {
    "group_size": ("1", "greater than or equal to 2"),
    "micro_batch_size": ("0", "greater than or equal to 1"),
    "temperature": ("0", "greater than 0"),
    "rewards": ("accuracy", "must be a mapping"),
    "loss_weight": ("0", "greater than 0"),
    **_ADVANTAGE,
}
_UNDERSTAND = {
    "max_new_tokens": ("0", "greater than or equal to 1"),
    "top_p": ("0", "greater than 0"),
    "top_k": ("-1", "greater than or equal to 0"),
    "stop_ids": ("2", "must be a list"),
}
_RESIZE = {
    "": ("512", "must be a mapping of fields"),
    ".stride": ("0", "greater than or equal to 1"),
    ".longest": ("0", "greater than or equal to 1"),
    ".shortest": ("0", "greater than or equal to 1"),
}
_GUIDANCE = {
    "": ("3", "must be a mapping of fields"),
    ".image": ("0.5", "greater than or equal to 1"),
    ".interval": ("[1]", "must have more entries"),
    ".renorm": ("longest", "'none', 'global', 'channel' or 'text_channel'"),
    ".renorm_min": ("2", "less than or equal to 1"),
}
_PACK_GROUP = {
    "name": ("a/b", "only letters, digits, dot"),
    "sets": ("rows.json", "must be a list"),
    "sets.*.name": ("a/b", "only letters, digits, dot"),
    "sets.*.path": ("''", "at least 1 character"),
    "sets.*.format": (
        "video",
        "'t2i', 'edit', 't2i_reason', 'edit_reason', 't2i_refine', 'edit_refine' or 'conversations'",
    ),
    "sets.*.image_folder": ("7", "must be a text"),
    "sets.*.share": ("2", "less than or equal to 1"),
    "sets.*.max_rows": ("0", "greater than or equal to 1"),
    "sets.*.held_out": ("1", "must be true or false"),
    "sets.*.frames": ("0", "greater than or equal to 1"),
    "weight": ("0", "greater than 0"),
    "mandatory": ("1", "must be true or false"),
    **{f"image_size{name}": case for name, case in _RESIZE.items()},
    **{f"seen_size{name}": case for name, case in _RESIZE.items()},
}
_GENERATE = {
    "guidance_scale": ("0.5", "greater than or equal to 1"),
    "score": ("both", "'guided' or 'conditional'"),
    "think": ("3", "must be a mapping of fields"),
    "think.instruction": ("''", "at least 1 character"),
    "think.max_new_tokens": ("0", "greater than or equal to 1"),
    "think.temperature": ("0", "greater than 0"),
    "think.top_p": ("0", "greater than 0"),
    "think.top_k": ("-1", "greater than or equal to 0"),
    "think.plan_weight": ("-1", "greater than or equal to 0"),
    "think.image_weight": ("-1", "greater than or equal to 0"),
}

TEXT, WHOLE, NUMBER, FLAG = "must be a text", "must be a whole number", "must be a number", "must be true or false"
FIELDS = "must be a mapping of fields"

# Field, with * for a name or an index, to a broken value (YAML) and words of the message besides the field and the value.
CONFIG_CASES: dict[str, tuple[str, str]] = {
    "run_name": ("a/b", "only letters, digits, dot"),
    "output_dir": ("''", "at least 1 character"),
    "seed": ("-1", "greater than or equal to 0"),
    "max_steps": ("0", "greater than or equal to 1"),
    "resume": ("true", TEXT),
    "environment": ("verl", "'none' or 'deepgen_rl'"),
    "program": ("sft", "'rl', 'supervised', 'preference', 'quickstart_base', 'vlm_base' or 'pair_base'"),
    "preferences": ("pairs.jsonl", FIELDS),
    "preferences.path": ("null", TEXT),
    "preferences.image_folder": ("7", TEXT),
    "preferences.batch_size": ("0", "greater than or equal to 1"),
    "preferences.micro_batch_size": ("0", "greater than or equal to 1"),
    "preferences.size": ("512", "must be a list"),
    "preferences.type": ("texts", "'images', 'answers'"),
    "preferences.split": ("''", "at least 1 character"),
    "preferences.max_samples": ("0", "greater than or equal to 1"),
    "preferences.rename_columns": ("[a]", "must be a mapping"),
    "preferences.preprocessing": ("''", "at least 1 character"),
    "preferences.bad_rows": ("skip", "must be 'refuse' or 'leave_out'"),
    "preferences.image_cache": ("''", "at least 1 character"),
    "preferences.format": ("xml", "'auto', 'json', 'jsonl' or 'parquet'"),
    "preferences.image_dir": ("''", "at least 1 character"),
    "preferences.hold_out": ("1", "less than 1"),
    "preferences.max_tokens": ("1", "greater than or equal to 2"),
    "conversations": ("talks.json", FIELDS),
    "conversations.path": ("null", TEXT),
    "conversations.batch_size": ("0", "greater than or equal to 1"),
    "conversations.micro_batch_size": ("0", "greater than or equal to 1"),
    "conversations.reduction": ("row", "'token', 'sample' or 'root'"),
    "conversations.split": ("''", "at least 1 character"),
    "conversations.max_samples": ("0", "greater than or equal to 1"),
    "conversations.rename_columns": ("[a]", "must be a mapping"),
    "conversations.preprocessing": ("''", "at least 1 character"),
    "conversations.bad_rows": ("skip", "must be 'refuse' or 'leave_out'"),
    "conversations.image_cache": ("''", "at least 1 character"),
    "conversations.format": ("xml", "'auto', 'json', 'jsonl' or 'parquet'"),
    "conversations.image_dir": ("''", "at least 1 character"),
    "conversations.hold_out": ("1", "less than 1"),
    "conversations.max_tokens": ("1", "greater than or equal to 2"),
    "quickstart": ("base.safetensors", FIELDS),
    "quickstart.output": ("null", TEXT),
    "quickstart.batch_size": ("0", "greater than or equal to 1"),
    "quickstart.char_noise": ("1.2", "less than or equal to 1"),
    "quickstart.color_noise": ("-0.1", "greater than or equal to 0"),
    "cards": ("150", FIELDS),
    "cards.batch_size": ("0", "greater than or equal to 1"),
    "cards.captions": ("-1", "greater than or equal to 0"),
    "cards.careless": ("-1", "greater than or equal to 0"),
    "cards.recalled": ("1.1", "less than or equal to 1"),
    "cards.mixed": ("1.1", "less than or equal to 1"),
    "cards.thinking": ("-0.1", "greater than or equal to 0"),
    "cards.wrong": ("2", "less than or equal to 1"),
    "cards.untidy": ("2", "less than or equal to 1"),
    "scenes": ("150", FIELDS),
    "scenes.drawings": ("0", "greater than or equal to 1"),
    "scenes.talks": ("0", "greater than or equal to 1"),
    "scenes.decoded": ("0", "greater than or equal to 1"),
    "scenes.careless": ("-1", "greater than or equal to 0"),
    "scenes.dropout": ("1.1", "less than or equal to 1"),
    "scenes.descriptions": ("1.1", "less than or equal to 1"),
    "scenes.look_alike": ("-0.1", "greater than or equal to 0"),
    "scenes.wrong_color": ("2", "less than or equal to 1"),
    "scenes.wrong_shape": ("2", "less than or equal to 1"),
    "scenes.wrong_order": ("2", "less than or equal to 1"),
    "scenes.wrong_answer": ("2", "less than or equal to 1"),
    "after": ("''", "at least 1 character"),
    "policy": ("tiny", FIELDS),
    "policy.type": ("tinny", "must be one of 'tiny', 'sd3', 'flux', 'qwen_image', 'deepgen', 'vlm'"),
    "policy.checkpoint": ("7", TEXT),
    "policy.num_layers": ("65", "less than or equal to 64"),
    "policy.num_heads": ("0", "greater than or equal to 1"),
    "policy.head_dim": ("4", "greater than or equal to 8"),
    "policy.pretrained": ("null", TEXT),
    "policy.dtype": ("float16", "'bfloat16' or 'float32'"),
    "policy.gradient_checkpointing": ("1", FLAG),
    "policy.compile": ("'no'", FLAG),
    "policy.offload_encoders": ("0", FLAG),
    "policy.embedding_cache": ("''", "at least 1 character"),
    "policy.embedding_memory_mb": ("0", "greater than or equal to 1"),
    "policy.code": ("mine.py", "names nothing of the file, and one is needed"),
    "policy.max_sequence_length": ("513", "less than or equal to 512"),
    "policy.sd3_path": ("3", TEXT),
    "policy.qwen_path": ("''", "at least 1 character"),
    "policy.lmm_checkpoint": ("1", TEXT),
    "policy.conditioning": ("alone", "'single' or 'padded'"),
    "policy.image_size": ("500", "multiple of 32"),
    "policy.distilled_guidance": ("-1", "greater than or equal to 0"),
    "policy.freeze": ("ears", "must be a list"),
    "policy.converted": ("7", TEXT),
    "policy.system_prompt": ("7", TEXT),
    "policy.max_prompt_tokens": ("0", "greater than or equal to 1"),
    "policy.grow": ("7", FIELDS),
    "policy.grow.language": ("''", "at least 1 character"),
    "policy.grow.tokenizer": ("''", "at least 1 character"),
    "policy.grow.extra_layers": ("-1", "greater than or equal to 0"),
    "policy.grow.vision_hidden_size": ("4", "greater than or equal to 8"),
    "policy.grow.patch_size": ("0", "greater than or equal to 1"),
    "policy.grow.downsample_ratio": ("0", "greater than 0"),
    "policy.grow.rope_theta_hw": ("0", "greater than 0"),
    "policy.grow.rope_theta_vision": ("0", "greater than 0"),
    "policy.extra_layers": ("-1", "greater than or equal to 0"),
    "policy.train": ("stage_2", "'all' or 'stage_1'"),
    "policy.min_pixels": ("0", "greater than or equal to 1"),
    "policy.max_pixels": ("0", "greater than or equal to 1"),
    "policy.attention": ("sparse", "'auto', 'dense', 'rows' or 'flex'"),
    "policy.initialize": ("7", FIELDS),
    "policy.initialize.load_backbone": ("1", FLAG),
    "policy.initialize.vlm_config": ("7", FIELDS),
    "policy.initialize.vlm_config.vit_hidden_dim": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.vit_inter_dim": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.vit_patch_size": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.vit_img_size": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.vit_n_heads": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.vit_dropout": ("2", "less than or equal to 1"),
    "policy.initialize.vlm_config.vit_n_blocks": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.vit_ln_eps": ("0", "greater than 0"),
    "policy.initialize.vlm_config.vit_cls_flag": ("1", FLAG),
    "policy.initialize.vlm_config.vit_model_type": ("7", TEXT),
    "policy.initialize.vlm_config.lm_hidden_dim": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.lm_inter_dim": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.lm_rms_eps": ("0", "greater than 0"),
    "policy.initialize.vlm_config.lm_re_base": ("0", "greater than 0"),
    "policy.initialize.vlm_config.lm_max_position_embeddings": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.lm_base_vocab_size": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.extra_token_amount": ("-1", "greater than or equal to 0"),
    "policy.initialize.vlm_config.lm_vocab_size": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.lm_n_heads": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.lm_n_kv_heads": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.lm_dropout": ("2", "less than or equal to 1"),
    "policy.initialize.vlm_config.lm_n_blocks": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.lm_attn_scaling": ("x", NUMBER),
    "policy.initialize.vlm_config.lm_max_length": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.lm_use_tokens": ("1", FLAG),
    "policy.initialize.vlm_config.lm_tie_weights": ("1", FLAG),
    "policy.initialize.vlm_config.lm_model_type": ("7", TEXT),
    "policy.initialize.vlm_config.lm_tokenizer": ("7", TEXT),
    "policy.initialize.vlm_config.lm_chat_template": ("7", TEXT),
    "policy.initialize.vlm_config.mp_pixel_shuffle_factor": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.mp_image_token_length": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.max_img_size": ("-1", "greater than or equal to 1"),
    "policy.initialize.vlm_config.resize_to_max_side_len": ("1", FLAG),
    "policy.initialize.vlm_config.vlm_extra_tokens": ("[]", "must be a mapping"),
    "policy.initialize.vlm_config.vlm_load_backbone_weights": ("1", FLAG),
    "policy.initialize.vlm_config.vlm_checkpoint_path": ("7", TEXT),
    "policy.initialize.vlm_config.hf_repo_name": ("7", TEXT),
    "policy.check_sight": ("1", FLAG),
    "policy.max_images": ("-1", "greater than or equal to 0"),
    "policy.lora": ("32", FIELDS),
    "policy.lora.path": ("''", "at least 1 character"),
    "policy.lora.rank": ("0", "greater than or equal to 1"),
    "policy.lora.alpha": ("-1", "greater than 0"),
    "policy.lora.target_modules": ("[]", "at least 1 item"),
    "sampling": ("[]", FIELDS),
    "sampling.prompts_per_step": ("2.5", WHOLE),
    "sampling.group_size": ("1", "greater than or equal to 2"),
    "sampling.micro_batch_size": ("'8'", WHOLE),
    "sampling.num_inference_steps": ("1", "greater than or equal to 2"),
    "sampling.kind": ("ode", "'flow_sde', 'cps' or 'dance_sde'"),
    "sampling.noise_level": ("0", "greater than 0"),
    "sampling.sde_window": ("[1]", "must have more entries"),
    "sampling.timestep_fraction": ("1.5", "less than or equal to 1"),
    "sampling.guidance_scale": ("0.5", "greater than or equal to 1"),
    "sampling.guidance_gradient": ("half", "'both' or 'conditional'"),
    **{f"sampling.guidance{name}": case for name, case in _GUIDANCE.items()},
    "sampling.sde_window_size": ("0", "greater than or equal to 1"),
    "sampling.sde_window_range": ("[1]", "must have more entries"),
    "sampling.sde_window_motion": ("still", "'random' or 'progressive'"),
    "sampling.sde_window_every": ("0", "greater than or equal to 1"),
    "sampling.sde_window_stride": ("0", "greater than or equal to 1"),
    "sampling.solver": ("heun", "'euler' or 'dpm2m'"),
    "sampling.same_noise": ("3", FLAG),
    "sampling.shift": (".nan", "must be a finite number"),
    "sampling.height": ("7", "greater than or equal to 8"),
    "sampling.width": ("'64'", WHOLE),
    "sampling.resolution_schedule": ("64", "must be a list"),
    "sampling.pipeline": ("async", "'on_policy' or 'one_step_off'"),
    "sampling.type": ("words", "must be one of 'flow', 'tokens', 'tasks'"),
    "sampling.max_resamples": ("21", "less than or equal to 20"),
    "sampling.max_new_tokens": ("0", "greater than or equal to 1"),
    "sampling.temperature": ("0", "greater than 0"),
    "sampling.top_p": ("0", "greater than 0"),
    "sampling.top_k": ("-1", "greater than or equal to 0"),
    "sampling.stop_ids": ("2", "must be a list"),
    "sampling.pair_weight": ("cubic", "'sqrt', 'linear' or 'none'"),
    "sampling.similarity_threshold": ("1.5", "less than or equal to 1"),
    "sampling.old_logp": ("drawn", "'replay' or 'sampled'"),
    "sampling.tasks": ("understand", FIELDS),
    "sampling.tasks.understand": ("3", FIELDS),
    "sampling.tasks.generate": ("3", FIELDS),
    "packed": ("rows.json", FIELDS),
    "packed.groups": ("rows.json", "must be a list"),
    **{f"packed.groups.*.{name}": case for name, case in _PACK_GROUP.items()},
    "packed.grouping": ("''", "at least 1 character"),
    "packed.registry": ("''", "at least 1 character"),
    "packed.think_instruction": ("''", "at least 1 character"),
    "packed.refine_instruction": ("''", "at least 1 character"),
    "packed.packs": ("0", "greater than or equal to 1"),
    "packed.fill": ("images", "'tokens' or 'rows'"),
    "packed.rows_per_pack": ("0", "greater than or equal to 1"),
    "packed.expected_tokens": ("0", "greater than or equal to 1"),
    "packed.max_tokens": ("0", "greater than or equal to 1"),
    "packed.max_row_tokens": ("0", "greater than or equal to 1"),
    "packed.buffer_below": ("-1", "greater than or equal to 0"),
    "packed.buffer_size": ("-1", "greater than or equal to 0"),
    "packed.workers": ("-1", "greater than or equal to 0"),
    "packed.dropout": ("0.1", FIELDS),
    "packed.dropout.text": ("2", "less than or equal to 1"),
    "packed.dropout.clean": ("2", "less than or equal to 1"),
    "packed.dropout.seen": ("-1", "greater than or equal to 0"),
    "packed.noise": ("4", FIELDS),
    "packed.noise.shift": ("0", "greater than 0"),
    "packed.noise.copies": ("65", "less than or equal to 64"),
    "packed.loss": ("mean", FIELDS),
    "packed.loss.ce_weight": ("-1", "greater than or equal to 0"),
    "packed.loss.mse_weight": ("-1", "greater than or equal to 0"),
    "packed.loss.reduction": ("root", "'token', 'sample' or 'square'"),
    "packed.loss.per": ("pack", "'text' or 'row'"),
    "packed.hold_out": ("-1", "greater than or equal to 0"),
    "packed.bad_rows": ("skip", "'leave_out' or 'stop'"),
    "policy.weights": ("''", "at least 1 character"),
    "policy.use_ema": ("1", FLAG),
    "policy.constant_words": ("1", FLAG),
    "policy.max_latent_size": ("0", "greater than or equal to 1"),
    "policy.interpolate_positions": ("1", FLAG),
    "policy.initialize.hidden_size": ("7", "greater than or equal to 8"),
    "policy.initialize.num_layers": ("0", "greater than or equal to 1"),
    "policy.initialize.num_heads": ("0", "greater than or equal to 1"),
    "policy.initialize.num_kv_heads": ("0", "greater than or equal to 1"),
    "policy.initialize.intermediate_size": ("7", "greater than or equal to 8"),
    "policy.initialize.image_size": ("7", "greater than or equal to 8"),
    "policy.initialize.vision_layers": ("-1", "greater than or equal to 0"),
    "policy.initialize.words": ("red", "must be a list"),
    **{f"sampling.tasks.understand.{name}": case for name, case in {**_TASK, **_UNDERSTAND}.items()},
    **{f"sampling.tasks.generate.{name}": case for name, case in {**_TASK, **_GENERATE}.items()},
    "sampling.engine": ("sglang", "'local' or 'vllm'"),
    "sampling.vllm": ("true", FIELDS),
    "sampling.vllm.urls": ("http://127.0.0.1:8000", "must be a list"),
    "sampling.vllm.launch": ("true", FIELDS),
    "sampling.vllm.launch.executable": ("''", "at least 1 character"),
    "sampling.vllm.launch.gpus": ("1", "must be a list"),
    "sampling.vllm.launch.servers": ("0", "greater than or equal to 1"),
    "sampling.vllm.launch.args": ("--enforce-eager", "must be a list"),
    "sampling.vllm.launch.env": ("OMP_NUM_THREADS", "must be a mapping"),
    "sampling.vllm.launch.start_timeout_s": ("0", "greater than 0"),
    "sampling.vllm.weights_dir": ("''", "at least 1 character"),
    "sampling.vllm.served_model": ("''", "at least 1 character"),
    "sampling.vllm.dtype": ("float16", "'bfloat16' or 'float32'"),
    "sampling.vllm.token_file": ("''", "at least 1 character"),
    "sampling.vllm.max_in_flight": ("0", "greater than or equal to 1"),
    "sampling.vllm.timeout_s": ("0", "greater than 0"),
    "sampling.vllm.push_timeout_s": ("0", "greater than 0"),
    "sampling.vllm.patience_s": ("0", "greater than 0"),
    "sampling.vllm.probe_tolerance": ("0", "greater than 0"),
    "sampling.vllm.drift_alarm": ("0", "greater than 0"),
    "sampling.vllm.drift_action": ("shout", "'warn' or 'stop'"),
    "objective": ("3", FIELDS),
    "advantage": ("gdpo", FIELDS),
    "advantage.type": ("ppo", "'gdpo', 'grpo'"),
    "objective.clip_range": ("0", "greater than 0"),
    "objective.level": ("word", "'token' or 'sequence'"),
    "objective.delta": ("1", "greater than 1"),
    "objective.kl_importance": ("2", FLAG),
    "objective.mask_truncated": ("2", FLAG),
    "objective.off_policy": ("0", "greater than 0"),
    "objective.longest": ("0", "greater than or equal to 1"),
    "objective.tau": ("[1]", "must have more entries"),
    "objective.cap": ("0.5", "greater than or equal to 1"),
    "advantage.adv_clip": ("-5", "greater than 0"),
    "advantage.eps": ("null", NUMBER),
    "advantage.min_valid": ("1", "greater than or equal to 2"),
    "advantage.skip_flat_groups": ("2", FLAG),
    "advantage.std_floor": ("1.1", "less than or equal to 1"),
    "objective.kind": ("bco", "'sigmoid', 'sigmoid_norm', 'hinge'"),
    "objective.divergence": ("alpha_divergence", "'reverse_kl', 'forward_kl' or 'js_divergence'"),
    "objective.ld_alpha": ("1.1", "less than or equal to 1"),
    "objective.beta": ("0", "greater than 0"),
    "objective.smoothing": ("0.5", "less than 0.5"),
    "objective.reference": ("live", "'kept' or 'precomputed'"),
    "objective.kl_beta": (".inf", "must be a finite number"),
    "optim.updates_per_rollout": ("17", "less than or equal to 16"),
    "objective.type": ("ppo", "'flow_grpo', 'grpo_guard'"),
    "objective.kl_type": ("x-based", "'velocity' or 'latent'"),
    "objective.guard_reweight": ("1", FLAG),
    "objective.nft_beta": ("0", "greater than 0"),
    "objective.nft_adv_clip": ("-5", "greater than 0"),
    "objective.dpo_beta": ("'2000'", NUMBER),
    "objective.old_decay": ("1", "less than 1"),
    "objective.code": ("mine.txt", "names no file and no module"),
    "objective.options": ("[1]", "must be a mapping"),
    "objective.awm_power": ("2", "less than or equal to 1"),
    "objective.old_kl_beta": ("-1", "greater than or equal to 0"),
    "objective.old_decay_steps": ("-1", "greater than or equal to 0"),
    "objective.old_decay_start": ("-1", "greater than or equal to 0"),
    "objective.timestep_draws": ("0", "greater than or equal to 1"),
    "objective.timestep_distribution": ("normal", "'uniform' or 'logit_normal'"),
    "objective.timestep_shift": ("0", "greater than 0"),
    "objective.importance_cap": ("0.5", "greater than or equal to 1"),
    "sft": ("pictures.json", FIELDS),
    "sft.path": ("7", TEXT),
    "sft.sets": ("more.json", "must be a list"),
    "sft.sets.*.path": ("''", "at least 1 character"),
    "sft.sets.*.image_folder": ("''", "at least 1 character"),
    "sft.sets.*.weight": ("0", "greater than 0"),
    "sft.image_folder": ("''", "at least 1 character"),
    "sft.coef": ("1.5", "less than or equal to 1"),
    "sft.batch_size": ("0", "greater than or equal to 1"),
    "sft.micro_batch_size": ("2.5", WHOLE),
    "sft.every": ("0", "greater than or equal to 1"),
    "sft.size": ("[512]", "must have more entries"),
    "sft.prompt_dropout": ("-0.1", "greater than or equal to 0"),
    "sft.timestep_distribution": ("normal", "'uniform' or 'logit_normal'"),
    "sft.timestep_shift": ("0", "greater than 0"),
    "rewards": ("ocr", FIELDS),
    "rewards.launch": ("docker", "'local' or 'none'"),
    "rewards.services": ("[ocr]", "must be a mapping"),
    "rewards.services.*.module": ("3", TEXT),
    "rewards.services.*.args": ("[--mode, line]", "must be a mapping"),
    "rewards.services.*.urls": ("http://127.0.0.1:1", "must be a list"),
    "rewards.services.*.token_file": ("''", "at least 1 character"),
    "rewards.services.*.ca_file": ("''", "at least 1 character"),
    "rewards.services.*.timeout_s": ("0", "greater than 0"),
    "rewards.services.*.queue_timeout_s": ("0", "greater than 0"),
    "rewards.services.*.connect_timeout_s": ("-1", "greater than 0"),
    "rewards.services.*.max_attempts": ("101", "less than or equal to 100"),
    "rewards.services.*.max_in_flight": ("0", "greater than or equal to 1"),
    "rewards.services.*.breaker_failures": ("0", "greater than or equal to 1"),
    "rewards.services.*.breaker_reset_s": ("0", "greater than 0"),
    "rewards.services.*.hedge": ("1", FLAG),
    "rewards.services.*.image_encoding": ("gif", "'rgb8', 'png', 'webp', 'jpeg' or 'auto'"),
    "rewards.services.*.nice": ("20", "less than or equal to 19"),
    "rewards.columns": ("3", "must be a mapping"),
    "rewards.columns.*.service": ("null", TEXT),
    "rewards.columns.*.reward": ("5", TEXT),
    "rewards.columns.*.on_failure": ("zero", "'mask', 'drop_group' or 'stop'"),
    "rewards.columns.*.on_change": ("ask", "'stop' or 'accept'"),
    "rewards.columns.*.max_failure_rate": ("2", "less than or equal to 1"),
    "rewards.columns.*.failure_window": ("0", "greater than or equal to 1"),
    "rewards.columns.*.patience_s": ("-1", "greater than or equal to 0"),
    "rewards.columns.*.canary": ("maybe", "'differ', 'score' or 'none'"),
    "rewards.ready_timeout_s": ("0", "greater than 0"),
    "rewards.canary": ("'yes'", FLAG),
    "rewards.tape": ("replay", FIELDS),
    "rewards.tape.mode": ("rewind", "'off', 'record' or 'replay'"),
    "rewards.tape.path": ("''", "at least 1 character"),
    "rewards.roles": ("accuracy", FIELDS),
    "rewards.roles.accuracy": ("7", TEXT),
    "rewards.roles.format": ("7", TEXT),
    "rewards.restart": ("3", FLAG),
    "rewards.shuffle_control": ("null", FLAG),
    "data": ("train.txt", FIELDS),
    "data.train": ("train.txt", "must be a list"),
    "data.train.*.path": ("''", "at least 1 character"),
    "data.train.*.format": ("xml", "'auto', 'txt', 'jsonl', 'rows'"),
    "data.train.*.prompt_column": ("''", "at least 1 character"),
    "data.train.*.image_dir": ("''", "at least 1 character"),
    "data.train.*.split": ("''", "at least 1 character"),
    "data.train.*.max_samples": ("0", "greater than or equal to 1"),
    "data.train.*.rename_columns": ("[a]", "must be a mapping"),
    "data.train.*.preprocessing": ("''", "at least 1 character"),
    "data.train.*.bad_rows": ("skip", "must be 'refuse' or 'leave_out'"),
    "data.train.*.image_cache": ("''", "at least 1 character"),
    "data.train.*.delimiter": ("ab", "tab"),
    "data.train.*.name": ("a b", "only letters, digits, dot"),
    "data.train.*.rewards": ("[ocr]", "must be a mapping"),
    "data.train.*.weight": ("0", "greater than 0"),
    "data.dataset_config": ("''", "at least 1 character"),
    "data.sampling_mode": ("uniform", "'weight_only' or 'sample_proportional'"),
    "data.overlap": ("warn", "'auto', 'drop', 'refuse' or 'allow'"),
    "data.ignore_rewards": ("ocr", "must be a list"),
    "optim": ("adamw", FIELDS),
    "optim.lr": ("0", "greater than 0"),
    "optim.groups": ("muon", "must be a mapping"),
    "optim.groups.*.lr": ("-1", "greater than or equal to 0"),
    "optim.groups.*.optimizer": ("sgd", "'adamw' or 'muon'"),
    "optim.groups.*.weight_decay": ("-1", "greater than or equal to 0"),
    "optim.schedule": ("sine", "'constant', 'linear' or 'cosine'"),
    "optim.warmup_steps": ("-1", "greater than or equal to 0"),
    "optim.min_lr": ("-1", "greater than or equal to 0"),
    "optim.decay_share": ("30", "less than or equal to 1"),
    "optim.betas": ("[0.9]", "must have more entries"),
    "optim.weight_decay": ("-0.1", "greater than or equal to 0"),
    "optim.max_grad_norm": ("0", "greater than 0"),
    "optim.ema_decay": ("1", "less than 1"),
    "optim.early_gradient": ("1", "'auto', 'always' or 'never'"),
    "optim.micro_batch_size": ("0", "greater than or equal to 1"),
    "distributed": ("cpu", FIELDS),
    "distributed.device": ("tpu", "'auto', 'cpu' or 'cuda'"),
    "distributed.num_threads": ("0", "greater than or equal to 1"),
    "distributed.timeout_s": ("0", "greater than 0"),
    "distributed.deepspeed": ("7", TEXT),
    "evaluation": ("true", FIELDS),
    "evaluation.path": ("''", "at least 1 character"),
    "evaluation.every": ("0", "greater than or equal to 1"),
    "evaluation.num_inference_steps": ("1001", "less than or equal to 1000"),
    "evaluation.temperature": ("-1", "greater than or equal to 0"),
    "evaluation.batch_size": ("0", "greater than or equal to 1"),
    "evaluation.rewards": ("ocr", "must be a list"),
    "evaluation.final_rewards": ("{}", "must be a list"),
    "evaluation.seed": ("-1", "greater than or equal to 0"),
    "evaluation.num_pictures": ("-1", "greater than or equal to 0"),
    "evaluation.may_share": ("all", "'nothing' or 'targets'"),
    "evaluation.dataset_config": ("''", "at least 1 character"),
    "evaluation.guidance_scale": ("0", "greater than or equal to 1"),
    "evaluation.height": ("4", "greater than or equal to 8"),
    "evaluation.width": ("4", "greater than or equal to 8"),
    "evaluation.wait": ("3", FLAG),
    "evaluation.max_in_flight": ("0", "greater than or equal to 1"),
    "evaluation.sets": ("more", "must be a list"),
    "evaluation.sets.*.name": ("a b", "only letters, digits, dot"),
    "evaluation.sets.*.path": ("''", "at least 1 character"),
    "evaluation.sets.*.format": ("xml", "'auto', 'txt', 'jsonl', 'rows'"),
    "evaluation.sets.*.prompt_column": ("''", "at least 1 character"),
    "evaluation.sets.*.image_dir": ("''", "at least 1 character"),
    "evaluation.hold_out": ("1", "less than 1"),
    "evaluation.sets.*.split": ("''", "at least 1 character"),
    "evaluation.sets.*.max_samples": ("0", "greater than or equal to 1"),
    "evaluation.sets.*.rename_columns": ("[a]", "must be a mapping"),
    "evaluation.sets.*.preprocessing": ("''", "at least 1 character"),
    "evaluation.sets.*.bad_rows": ("skip", "must be 'refuse' or 'leave_out'"),
    "evaluation.sets.*.image_cache": ("''", "at least 1 character"),
    "evaluation.sets.*.delimiter": ("ab", "tab"),
    "evaluation.sets.*.duplicates": ("0", "greater than or equal to 1"),
    "evaluation.sets.*.num_inference_steps": ("0", "greater than or equal to 1"),
    "evaluation.sets.*.guidance_scale": ("0.5", "greater than or equal to 1"),
    "evaluation.sets.*.task": ("draw", "'understand' or 'generate'"),
    "evaluation.sets.*.alarms": ("3", FLAG),
    "evaluation.sets.*.think": ("0", "greater than or equal to 1"),
    "evaluation.sets.*.temperature": ("11", "less than or equal to 10"),
    "evaluation.sets.*.rewards": ("ocr", "must be a list"),
    "evaluation.sets.*.scoring": ("geneval", "'unigenbench/en' or 'unigenbench/zh'"),
    "evaluation.sets.*.max_prompts": ("0", "greater than or equal to 1"),
    "evaluation.alarms": ("true", FIELDS),
    "evaluation.alarms.action": ("shout", "'note' or 'stop'"),
    "evaluation.alarms.heldout_z": ("0", "greater than 0"),
    "evaluation.alarms.other_half": ("perhaps", FLAG),
    "evaluation.alarms.saturation_z": ("0", "greater than 0"),
    "evaluation.alarms.edge_density_z": ("0", "greater than 0"),
    "evaluation.alarms.diversity_z": ("0", "greater than 0"),
    "evaluation.alarms.format_only": ("0", "greater than 0"),
    "evaluation.alarms.length_factor": ("1", "greater than 1"),
    "evaluation.alarms.own": ("mine.py:dark", "must be a list"),
    "evaluation.alarms.truncated_share": ("1.5", "less than or equal to 1"),
    "checkpoint": ("25", FIELDS),
    "checkpoint.save_every": ("0", "greater than or equal to 1"),
    "checkpoint.export": ("''", "at least 1 character"),
    "checkpoint.keep": ("0", "greater than or equal to 1"),
    "checkpoint.keep_best": ("eval/ocr", FIELDS),
    "checkpoint.keep_best.metric": ("''", "at least 1 character"),
    "checkpoint.keep_best.mode": ("most", "'max' or 'min'"),
    "checkpoint.keep_best.count": ("0", "greater than or equal to 1"),
    "logging": ("no", FIELDS),
    "logging.report_to": ("tensorboard", "must be a list"),
    "logging.report_every": ("0", "greater than or equal to 1"),
    "logging.warn_after_steps": ("0", "greater than or equal to 1"),
    "logging.progress": ("1", FLAG),
    "logging.project": ("''", "at least 1 character"),
    "logging.name": ("3", TEXT),
    "logging.peak_tflops": ("0", "greater than 0"),
}
# Of a task whose images are denoised: what a run that only denoises has in other places.
FLOW_TASK = "sampling.tasks.generate.flow"
FLOW_LOSSES = ("flow_grpo", "grpo_guard", "diffusion_nft", "awm", "diffusion_dpo")
CONFIG_CASES |= {
    FLOW_TASK: ("3", FIELDS),
    f"{FLOW_TASK}.objective": ("3", FIELDS),
    **{f"{FLOW_TASK}.{name}": CONFIG_CASES[f"sampling.{name}"] for name in FlowDrawing.model_fields},
    **{f"{FLOW_TASK}.guidance{name}": case for name, case in _GUIDANCE.items()},
    **{
        f"{FLOW_TASK}.objective.{name}": CONFIG_CASES[f"objective.{name}"]
        for kind in FLOW_LOSSES
        for name in OBJECTIVES[kind].model_fields
    },
}


def write(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def with_member(base: dict[str, Any], path: str) -> dict[str, Any]:
    """The base with a section of the `type` that has the field `path`; with a set of pictures for a field of one."""
    if path.startswith("sft.sets."):
        return base | {"sft": {"sets": [{"path": "pictures.json"}]}}
    if path.startswith(f"{FLOW_TASK}.objective."):
        name = path.rpartition(".")[2]
        kind = next(kind for kind in FLOW_LOSSES if name in OBJECTIVES[kind].model_fields)
        drawn = {"rewards": {"ocr": 1.0}, "flow": {"objective": {"type": kind}}}
        return base | {"sampling": TASKS | {"tasks": {"generate": drawn}}}
    if path.startswith(OF_TASKS):
        return base | {"sampling": TASKS}
    section, _, name = path.partition(".")
    if name and section in OF_OTHER_PROGRAMS:
        return base | {section: OF_OTHER_PROGRAMS[section]}
    if name and section in UNIONS:
        outer = name.partition(".")[0]
        kind = next(t for t, each in UNIONS[section].items() if outer in each.model_fields)
        own = {"code": "mine.py:mine"} if kind == "own" else {}
        return base | {section: {"type": kind, **own, **OF_A_UNION.get(section, {})}}
    if section != "policy" or not name or name in TinyConfig.model_fields:
        return base
    policy = next(p for p in POLICIES if name in field_paths(MEMBERS[p["type"]]))
    return base | {"policy": policy} | ({"sampling": TASKS} if policy["type"] == "janus" else {})


def concrete(path: str) -> str:
    """A place that BASE has: its data set 0, its service and column `ocr`."""
    for items in ("train", "sets", "packed.groups"):  # lists; a `*` elsewhere is the name of an entry
        path = path.replace(f"{items}.*", f"{items}.0")
    return path.replace("groups.*", "groups.matrices").replace("*", "ocr")


def test_the_base_is_a_valid_config(tmp_path: Path) -> None:
    """Else each case below would be refused for another field than its own. The whole base is read: nothing is dropped."""
    found = load_config(write(tmp_path, BASE), Config).model_dump(mode="json", exclude_unset=True)
    assert found.keys() == BASE.keys()


def test_every_field_has_a_case() -> None:
    """A new field must come with a value that breaks it, below."""
    assert set(field_paths(Config)) == set(CONFIG_CASES)


@pytest.mark.parametrize("path", CONFIG_CASES)
def test_a_broken_field_is_named_with_what_it_must_be(tmp_path: Path, path: str) -> None:
    value, words = CONFIG_CASES[path]
    with pytest.raises(ConfigError) as raised:
        load_config(write(tmp_path, with_member(BASE, path)), Config, [f"{concrete(path)}={value}"])
    head, *lines = str(raised.value).splitlines()
    assert head == f"{tmp_path / 'config.yaml'} cannot be used:"
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"  {concrete(path)}"), lines
    assert words in lines[0]
    given = yaml.safe_load(value)
    assert isinstance(given, dict) or f"(given: {given!r})" in lines[0]


def test_every_field_is_explained() -> None:
    """A sentence each; a section's is its class docstring."""
    for path in field_paths(Config):
        section, _, name = path.rpartition(".")
        holder: Any = Config
        for part in [p for p in section.split(".") if p not in ("", "*")]:
            inner = [each for each, _ in _sections_in(holder.model_fields[part].annotation)]
            rest = path.partition(f"{part}.")[2].removeprefix("*.")
            holder = next(a for a in inner if rest in field_paths(a))
        field = holder.model_fields[name]
        text = field.description or getattr(field.annotation, "__doc__", None) or ""
        assert len(text.split()) >= 2 and text.rstrip().endswith((".", ")")), path


REQUIRED = ["run_name", "max_steps", "data.train.0.path", "rewards.columns.ocr.service"]


@pytest.mark.parametrize("path", REQUIRED)
def test_a_missing_field_is_named(tmp_path: Path, path: str) -> None:
    config = yaml.safe_load(yaml.safe_dump(BASE))
    *above, last = path.split(".")
    node = config
    for part in above:
        node = node[int(part)] if part.isdigit() else node[part]
    del node[last]
    with pytest.raises(ConfigError, match=rf"  {path}: missing; give a value"):
        load_config(write(tmp_path, config), Config)


def test_a_run_of_rl_needs_a_training_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no training set: give data\.train at least one"):
        load_config(write(tmp_path, {key: value for key, value in BASE.items() if key != "data"}), Config)


def test_a_policy_without_a_type_is_told_the_types(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"  policy\.type: missing; give one of 'tiny', 'sd3', 'flux', 'qwen_image', 'deepgen', 'vlm'"
    ):
        load_config(write(tmp_path, BASE | {"policy": {"num_layers": 2}}), Config)


def test_a_missing_field_of_a_chosen_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"  policy\.pretrained: missing; give a value"):
        load_config(write(tmp_path, BASE | {"policy": {"type": "sd3"}}), Config)


CROSS_CHECKS: dict[str, tuple[list[str], list[str]]] = {
    "window": (["sampling.sde_window=[2, 9]"], ["sde_window [2, 9)", "num_inference_steps = 6", "<= 5"]),
    "window_empty": (["sampling.sde_window=[2, 2]"], ["sde_window [2, 2)", "first < last"]),
    "micro_batch": (
        ["sampling.micro_batch_size=6"],
        ["micro_batch_size = 6", "group_size = 4", "try micro_batch_size = 4"],
    ),
    "samples": (["sampling.prompts_per_step=3"], ["3 * 4 = 12", "micro_batch_size = 8", "try 4"]),
    "cps_noise": (["sampling.noise_level=1.5"], ["noise_level = 1.5", "more than 1", "kind = flow_sde"]),
    "guidance_of_no_level": (
        ["sampling.guidance={interval: [0.4, 0.4]}"],
        ["interval = 0.4 0.4 holds no noise level", "give low, then high"],
    ),
    "a least without a renorm": (
        ["sampling.guidance={renorm_min: 0.5}"],
        ["renorm_min = 0.5", "renorm = none", "leave it out"],
    ),
    "guidance_by_nothing": (
        ["sampling.guidance={}"],
        ["sampling.guidance is guidance by source images", "policy.type = tiny", "leave it out"],
    ),
    "gradient_without_guidance": (
        ["sampling.guidance_gradient=conditional"],
        ["guidance_gradient = conditional", "guidance_scale = 1 is no guidance", "set guidance_scale above 1"],
    ),
    "gradient_of_three_branches": (
        ["sampling.guidance_gradient=conditional", "sampling.guidance_scale=2", "sampling.guidance={}"],
        [
            "guidance_gradient = conditional is of guidance by the text alone",
            "source images (mot)",
            "leave one of them out",
        ],
    ),
    "min_valid": (["advantage.min_valid=5"], ["min_valid = 5", "group_size = 4", "lower min_valid"]),
    "floor_of_nothing": (
        ["advantage.type=dr_grpo", "advantage.std_floor=0.5"],
        ["std_floor = 0.5", "advantage.type = dr_grpo", "leave std_floor out"],
    ),
    "update_batch_too_big": (["optim.micro_batch_size=17"], ["optim.micro_batch_size = 17", "= 16", "try 16"]),
    "padding_repeats": (
        ["policy={type: deepgen, conditioning: padded}", "optim.micro_batch_size=4"],
        ["conditioning = padded", "optim.micro_batch_size = 4", "sampling.micro_batch_size = 8", "leave it out"],
    ),
    "ranks_outwait": (["distributed.timeout_s=400"], ["timeout_s = 400", "1620 s", "wait for ocr", "raise it"]),
    "ranks_outwait_start": (
        ["rewards.ready_timeout_s=3600"],
        ["timeout_s = 3600", "ready_timeout_s = 3600", "raise it"],
    ),
    "decay_of_constant": (
        ["optim.schedule=constant", "optim.decay_share=0.3"],
        ["decay_share = 0.3", "schedule = constant", "leave decay_share out"],
    ),
    "a rate to end at without a fall": (
        ["optim.schedule=constant", "optim.min_lr=1e-7"],
        ["min_lr = 1e-07", "schedule = constant", "leave min_lr out"],
    ),
    "a rate to end at above the peak": (
        ["optim.lr=1e-5", "optim.min_lr=1e-4"],
        ["min_lr = 0.0001", "lr = 1e-05", "lower it"],
    ),
    "warmup": (["optim.warmup_steps=10"], ["warmup_steps = 10", "max_steps = 10", "train longer"]),
    "no_such_service": (["rewards.columns.ocr.service=ocrr"], ["columns.ocr.service = 'ocrr'", "(there: ocr)"]),
    "no_such_reward": (["data.train.0.rewards={ocr: 1, hps: 1}"], ["data.train.0.rewards", "'hps'", "(there: ocr)"]),
    "no_such_eval_reward": (["evaluation.rewards=[hps]"], ["evaluation.rewards", "'hps'", "(there: ocr)"]),
    "no_such_final_reward": (["evaluation.final_rewards=[hps]"], ["evaluation.final_rewards", "'hps'"]),
    "no_weight": (["data.train.0.rewards={ocr: 0}"], ["train.jsonl", "a weight other than 0"]),
    "no_url": (["rewards.services.ocr.urls=[]"], ["services.ocr.urls is empty", "OCR_URL", "launch: local"]),
    "nothing_to_launch": (
        ["rewards.launch=local", "rewards.services.ocr.urls=[]"],
        ["services.ocr has neither `module`", "`urls`"],
    ),
    "bad_url": (["rewards.services.ocr.urls=[localhost:18082]"], ["'localhost:18082'", "like http://127.0.0.1:18082"]),
    "connect_timeout": (["rewards.services.ocr.timeout_s=2"], ["connect_timeout_s = 5", "timeout_s = 2", "raise"]),
    "hedge": (["rewards.services.ocr.hedge=true"], ["urls has 1", "at least 2"]),
    "no_set": (["data={}"], ["no training set", "data.train", "data.dataset_config"]),
    "file_untranslated": (
        ["data.dataset_config=a.yaml"],
        ["data.dataset_config = a.yaml is a file of DeepGen-RL's", "trainer.migration.load_recipe"],
    ),
    "same_name": (
        ["data.train.1.path=other/train.txt", "data.train.1.rewards={ocr: 1}"],
        ["train.0 and train.1", "'train'", "another `name`"],
    ),
    "eval_is_train": (
        ["evaluation.path=./train.jsonl"],
        ["evaluation.path and data.train.0.path are both", "never sees"],
    ),
    "eval_rewards_without_path": (
        ["evaluation={rewards: [ocr]}"],
        ["rewards asks for ocr", "path is null", "leave rewards out"],
    ),
    "final_rewards_without_path": (
        ["evaluation={final_rewards: [ocr]}"],
        ["final_rewards asks for ocr", "path is null"],
    ),
    "eval_rewards_of_no_set": (
        ["evaluation={rewards: [ocr], sets: [{name: s, path: heldout.txt, rewards: [ocr]}]}"],
        ["rewards asks for ocr", "every set names its own", "leave one of the two out"],
    ),
    "motion_without_window": (
        ["sampling.sde_window_motion=progressive"],
        ["sde_window_motion = progressive", "give sde_window_size, too"],
    ),
    "pace_without_window": (["sampling.sde_window_every=5"], ["sde_window_every = 5", "give sde_window_size, too"]),
    "pace_of_a_jump": (
        ["sampling.num_inference_steps=8", "sampling.sde_window_size=2", "sampling.sde_window_stride=2"],
        ["sde_window_stride = 2", "the window jumps", "leave it out"],
    ),
    "beta_of_one": (["optim.betas=[0.9, 1.0]"], ["optim.betas.1: must be less than 1 (given: 1.0)"]),
    "nan_reward_weight": (["data.train.0.rewards={ocr: .nan}"], ["data.train.0.rewards.ocr: must be a finite"]),
    "service_name": (["rewards.services.a/b.urls=['http://a']"], ["rewards.services.a/b", "only letters, digits"]),
    "flag_value": (["rewards.services.ocr.args={mode: [1]}"], ["args.mode: must be a text or must be a whole number"]),
}


@pytest.mark.parametrize("case", CROSS_CHECKS)
def test_values_that_contradict_are_refused_with_both_and_the_remedy(tmp_path: Path, case: str) -> None:
    overrides, words = CROSS_CHECKS[case]
    with pytest.raises(ConfigError) as raised:
        load_config(write(tmp_path, BASE), Config, overrides)
    for text in words:
        assert text in str(raised.value)


@pytest.mark.parametrize("variable", ["OCR_URL", "RULES_URL"])
def test_an_address_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Only the service's own variable counts."""
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    path = write(tmp_path, BASE)
    if variable == "OCR_URL":
        load_config(path, Config, ["rewards.services.ocr.urls=[]"])
    else:
        with pytest.raises(ConfigError, match="urls is empty"):
            load_config(path, Config, ["rewards.services.ocr.urls=[]"])


UNKNOWN = {
    "sead": "did you mean seed?",
    "lr": "did you mean optim.lr or optim.groups.*.lr?",
    "group_size": "did you mean sampling.group_size or sampling.tasks.understand.group_size",
    "micro_batch_size": "did you mean sampling.micro_batch_size or sft.micro_batch_size or optim.micro_batch_size?",
    "zzz": "the keys here are: run_name, output_dir",
    "sampling.groupsize": "did you mean sampling.group_size?",
    "rewards.services.ocr.url": "did you mean rewards.services.ocr.urls?",
    "rewards.columns.ocr.servce": "did you mean rewards.columns.ocr.service?",
    "data.train.0.reward": "did you mean data.train.0.rewards?",
    "data.trian": "did you mean data.train?",
    "policy.zzz": "the keys here are: type, checkpoint",
}


@pytest.mark.parametrize("key", UNKNOWN)
def test_an_unknown_key_gets_the_nearest_known_one(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(write(tmp_path, BASE), Config, [f"{key}=1"])
    assert f"  {key}: unknown key; {UNKNOWN[key]}" in str(raised.value)


def test_no_section_takes_unknown_keys(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    sections = {concrete(p.rpartition(".")[0]) for p in field_paths(Config)}
    assert len(sections) >= 5
    for section in sorted(sections):
        key = f"{section}.no_such_key".lstrip(".")
        with pytest.raises(ConfigError, match="unknown key"):
            load_config(path, Config, [f"{key}=1"])


def test_a_config_cannot_be_changed(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, BASE), Config)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 2  # type: ignore[misc]
