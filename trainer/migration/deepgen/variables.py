"""DeepGen-RL's environment variables: which of our fields each one sets, or why it sets none.

docs/migration_deepgen.md shows this table; a test keeps the two equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.migration.deepgen.rewards import PORTS


@dataclass(frozen=True)
class Variable:
    """What becomes of a variable.

    Attributes:
        remark: what differs, or why it is not used; a phrase for the migration page and the start of a run.
        field: the field it sets, dotted; several are joined by commas. None: it sets none.
        convert: its text to values by field. Raises ValueError with what it must be.
        only_if: (field, value) without which it does not act, as in DeepGen-RL.
        in_sections: it sets only those of its fields whose section the recipe has.
        quiet: it acts or matters elsewhere, so a run does not mention it.
    """

    remark: str
    field: str | None = None
    convert: Callable[[str], Mapping[str, Any]] | None = None
    only_if: tuple[str, str] | None = None
    in_sections: bool = False
    quiet: bool = False


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("it must be a number") from None


def _flag(text: str) -> bool:
    if text.strip().lower() not in ("0", "1", "true", "false", "yes", "no", "on", "off"):
        raise ValueError("it must be 1 or 0")
    return text.strip().lower() in ("1", "true", "yes", "on")


def _url(text: str) -> list[str]:
    if "@" in text:
        raise ValueError(
            "a user name or a password in it would end up in logs; put the token into a file and name that in the "
            "service's token_file"
        )
    return [url if "://" in url else f"http://{url}" for url in map(str.strip, text.split(",")) if url]


def _sets(
    field: str,
    remark: str = "",
    value: Callable[[str], Any] = str,
    only_if: tuple[str, str] | None = None,
) -> Variable:
    return Variable(remark, field, lambda text: {field: value(text)}, only_if)


def _service_url(service: str, remark: str) -> Variable:
    field, remark = f"rewards.services.{service}.urls", f"{remark}; several, joined by commas, share the load"
    return Variable(remark, field, lambda text: {field: _url(text)}, in_sections=True)


def _service_host(text: str) -> dict[str, list[str]]:
    host = text.strip().removeprefix("http://").rstrip("/")
    if not re.fullmatch(r"[\w.-]+|\[[0-9A-Fa-f:.]+\]", host):  # a name, or an IPv6 address in brackets
        raise ValueError(
            "it must be a host name, such as node7, without a port or any scheme but http://; set OCR_URL or HPS_URL for "
            "a service at another port or behind https"
        )
    return {f"rewards.services.{name}.urls": [f"http://{host}:{PORTS[name]}"] for name in _ADDRESSED}


def _run_folder(text: str) -> dict[str, Any]:
    folder = Path(text)
    if not folder.name:
        raise ValueError("it must be a folder with a name, such as outputs/first")
    return {"output_dir": str(folder.parent), "run_name": folder.name}


def _never(text: str) -> dict[str, Any]:
    if _flag(text):
        raise ValueError("the last denoising step is deterministic here and has no log-probability; unset the variable")
    return {}


# The services that DeepGen-RL finds by REWARD_SERVICE_ADDR where their own variable is not set.
_ADDRESSED = ("ocr", "hps", "aesthetic", "pickscore", "imagereward", "geneval", "editreward", "deqa")
_DEEPGEN = ("policy.type", "deepgen")
_NFT = ("objective.type", "diffusion_nft")
_NOT_SERVED = "no service of ours gives this reward; leave it out by data.ignore_rewards"
_OF_THE_SERVICE = "belongs to the reward service: its own flags, `python -m services.{} --help`"
_OURS_READS = "our {} service reads it as {}: unset it before starting our services on that machine"
_OF_VLLM = "belongs to the vLLM server: see docs/vllm.md"
_LIMITS = "the service bounds its own work; ours are rewards.services.*.max_in_flight and the service's flags"
_LOGS = "no such log: phase times are in metrics.jsonl and the report, what services say is under logs/"
_SLEEP = "no switching of GPUs between judges: give each its own, or evaluate with evaluation.wait: false"
_LAUNCHER = "read by train.sh, under this name"
_REPORTERS = "read by the reporter of that name, where the logging section leaves it open"

VARIABLES: dict[str, Variable] = {
    # Models, data, output
    "SD3_5_MODEL_NAME_OR_PATH": _sets("policy.sd3_path", "a local folder", only_if=_DEEPGEN),
    "QWEN2_5_VL_MODEL_NAME_OR_PATH": _sets("policy.qwen_path", "a local folder", only_if=_DEEPGEN),
    "CHECKPOINT": _sets("policy.checkpoint", "a file or a folder", only_if=_DEEPGEN),
    "CLIP_MODEL_NAME_OR_PATH": Variable(
        "read by our CLIP service, which gives clip_sim, as its `--model`; a local folder", quiet=True
    ),
    "MODEL_CONFIG": Variable(
        "a Python file, which is not run; the policy section says all that differs between models"
    ),
    "DATASET_CONFIG": _sets("data.dataset_config", "the YAML as it is"),
    "EVAL_DATASET_CONFIG": _sets("evaluation.dataset_config", "the YAML as it is"),
    "SFTAUX_DATASET_CONFIG": Variable(
        "a Python file, which is not run; name the JSON of images and texts in the section sft"
    ),
    "DATA_ROOT": Variable(
        "where image paths of the SFT data start",
        "sft.image_folder",
        lambda text: {"sft.image_folder": text},
        in_sections=True,
    ),
    "OUTPUT_DIR": Variable(
        "the run's folder; without it the name is fixed by the recipe, not a time stamp, so that a restart resumes",
        "output_dir, run_name",
        _run_folder,
    ),
    # Processes
    "NNODES": Variable(_LAUNCHER, quiet=True),
    "NODE_RANK": Variable(_LAUNCHER, quiet=True),
    "NGPUS": Variable(f"{_LAUNCHER}; 1 where it is not set, not all", quiet=True),
    "MASTER_ADDR": Variable(_LAUNCHER, quiet=True),
    "MASTER_PORT": Variable(f"{_LAUNCHER}; 29500 where it is not set", quiet=True),
    "NODE_IP_LIST": Variable("read by train.sh: the number of its entries is NNODES", quiet=True),
    "INDEX": Variable("read by train.sh beside NODE_IP_LIST, where NODE_RANK is not set", quiet=True),
    "CHIEF_IP": Variable("read by train.sh beside NODE_IP_LIST, where MASTER_ADDR is not set", quiet=True),
    # Rewards
    "REWARD_SERVICE_ADDR": Variable(
        "the host of these services, each at our port of it; a service's own variable wins",
        ", ".join(f"rewards.services.{name}.urls" for name in _ADDRESSED),
        _service_host,
        in_sections=True,
    ),
    "OCR_URL": _service_url(
        "ocr", "our OCR service, which also takes DeepGen-RL's requests with `--legacy --legacy-reward flow_grpo`"
    ),
    "UNIFIEDREWARD_THINK_URL": _service_url(
        "unifiedreward", "our UnifiedReward service; vLLM is behind it, given to the service as `--judge-url`"
    ),
    "UNIGENBENCH_API_URL": _service_url("eval", "our judge service; vLLM is behind it, as above"),
    "HPS_URL": _service_url("hps", "our HPS service, at 18083: 18087 was UnifiedReward's port, too"),
    "AESTHETIC_URL": _service_url("aesthetic", "our CLIP service with `--aesthetic`, at 18080"),
    "PICKSCORE_URL": _service_url(
        "pickscore", "our CLIP service with `--pickscore`, at 18080: 18083 is HPS's port here"
    ),
    "IMAGE_REWARD_URL": _service_url("imagereward", "our ImageReward service, at 18081"),
    "GEN_EVAL_URL": _service_url("geneval", "our GenEval service, at 18085"),
    "EDITREWARD_URL": _service_url("editreward", "our regression service, at 18086: 18088 is the judge's port here"),
    "DEQA_URL": _service_url(
        "deqa", "our VQA service, at 18089; vLLM is behind it, given to the service as `--judge-url`"
    ),
    "UNIFIEDREWARD_SGLANG_URL": _service_url(
        "unifiedreward_sglang",
        "our UnifiedReward service with `--family v1`; the server with the model (sglang or vLLM) is behind it, given to the "
        "service as `--judge-url`; a `--port` of its own beside UNIFIEDREWARD_THINK_URL's",
    ),
    "OCR_VLLM_URL": Variable(_NOT_SERVED),
    "OCR_WORKERS": Variable(_OURS_READS.format("OCR", "its number of processes")),
    "HPS_WORKERS": Variable(_OURS_READS.format("HPS", "its number of processes, each with the weights")),
    "IMAGE_REWARD_WORKERS": Variable(
        _OURS_READS.format("ImageReward", "its number of processes, each with the weights")
    ),
    "UNIFIEDREWARD_WORKERS": Variable(_OURS_READS.format("UnifiedReward", "`--workers`, which must be at most 256")),
    **{
        f"{name}_WORKERS": Variable(_LIMITS)
        for name in (
            "AESTHETIC",
            "PICKSCORE",
            "DEQA",
            "GEN_EVAL",
            "UNIFIEDREWARD_SGLANG",
            "EDITREWARD",
            "UNIFIEDREWARD_THINK",
            "OCR_VLLM",
            "UNIGENBENCH",
        )
    },
    "VLLM_MAX_WORKERS": Variable(_LIMITS),
    "VLLM_LOG_STATS": Variable(_OF_VLLM),
    "UNIGENBENCH_MODEL_NAME": Variable(_OF_THE_SERVICE.format("eval")),
    **{f"OCR_VLLM_{name}": Variable(f"ocr_vllm: {_NOT_SERVED}") for name in ("MODEL", "TEMPERATURE", "MAX_TOKENS")},
    "OCR_PORT": Variable(_OURS_READS.format("OCR", "the port it listens on")),
    **{
        f"OCR_{name}": Variable(_OF_THE_SERVICE.format("ocr"))
        for name in (
            "SCORER_IMPL",
            "CASE_SENSITIVE",
            "IGNORE_PUNCT",
            "MIN_CONF",
            "NGRAM_MAX",
            "USE_CONFUSION_FOLD",
            "REWARD_MODE",
        )
    },
    "UNIFIEDREWARD_PORT": Variable(
        "vLLM's there; " + _OURS_READS.format("UnifiedReward", "the port it listens on itself")
    ),
    "UNIFIEDREWARD_MODEL": Variable(
        "vLLM's there; "
        + _OURS_READS.format(
            "UnifiedReward", "the name under which vLLM serves the model, and with `serve` as the model to load"
        )
    ),
    **dict.fromkeys(
        (
            "UNIFIEDREWARD_VLLM_PARALLEL_MODE",
            "UNIFIEDREWARD_VLLM_DATA_PARALLEL_SIZE",
            "UNIFIEDREWARD_VLLM_TENSOR_PARALLEL_SIZE",
            "VLLM_PARALLEL_MODE",
            "VLLM_DATA_PARALLEL_SIZE",
            "VLLM_TENSOR_PARALLEL_SIZE",
            "VLLM_GPU_MEMORY_UTILIZATION",
            "VLLM_SERVER_DEV_MODE",
            "UNIGENBENCH_PORT",
            "UNIGENBENCH_MODEL",
            "DP_SIZE",
            "GPU_MEMORY_UTILIZATION",
        ),
        Variable(_OF_VLLM),
    ),
    **dict.fromkeys(
        (
            "DEEPGEN_EXCLUSIVE_VLLM_SERVERS",
            "DEEPGEN_EXCLUSIVE_VLLM_SWITCH_ON_REWARD_CALLS",
            "DEEPGEN_EXCLUSIVE_VLLM_TIMEOUT_S",
            "DEEPGEN_EXCLUSIVE_VLLM_CONNECT_TIMEOUT_S",
            "DEEPGEN_EXCLUSIVE_VLLM_RETRIES",
            "DEEPGEN_EXCLUSIVE_VLLM_RETRY_BACKOFF_S",
            "DEEPGEN_DEBUG_EXCLUSIVE_VLLM",
        ),
        Variable(_SLEEP),
    ),
    # Algorithm
    "ATRAIN_ADV_CLIP_MAX": _sets("advantage.adv_clip", value=_number),
    "ATRAIN_INCLUDE_LAST_DENOISE_STEP": Variable(
        "0 is what we do; 1 is refused: the last step is deterministic and has no log-probability", None, _never
    ),
    "ATRAIN_CLAMP_LOGPROB": Variable("log-probabilities stay float32, and one that is not finite stops the run"),
    "ATRAIN_CLAMP_LOGPROB_DIFF": Variable("likewise; objective.clip_range bounds the ratio"),
    "ATRAIN_GRPOGUARD_PAPER_IMPL": _sets(
        "objective.guard_reweight", "the paper's weight of each step", _flag, ("objective.type", "grpo_guard")
    ),
    "ATRAIN_GRPOGUARD_HIGHCLIP_RANGE": Variable(
        "DeepGen-RL prints it and does not use it; objective.clip_range takes [lo, hi]"
    ),
    "ATRAIN_NFT_BETA": _sets("objective.nft_beta", value=_number, only_if=_NFT),
    "ATRAIN_NFT_ADV_CLIP_RANGE": _sets("objective.nft_adv_clip", value=_number, only_if=_NFT),
    # Logs
    **dict.fromkeys(
        ("WANDB_PROJECT", "WANDB_RUN_NAME", "WANDB_MODE", "SWANLAB_MODE", "SWANLAB_PROJ_NAME", "SWANLAB_EXP_NAME"),
        Variable(_REPORTERS, quiet=True),
    ),
    **dict.fromkeys(
        (
            "LOG_DIR",
            "GRPO_PHASE_LOG_LEVEL",
            "GRPO_PHASE_LOG_FILE",
            "GRPO_PHASE_PRINT_ENABLED",
            "JONB_DEBUG_OCR",
            "DEBUG_OCR_VLLM",
            "DEBUG_UNIFIED_REWARD",
            "DEBUG_CPS_SDE",
            "DEBUG_SWANLAB_VIS",
            "DEBUG_EVAL_DEVICEISSUE",
        ),
        Variable(_LOGS),
    ),
}
